import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[2]
# Rooms that the source distribution leaves out, as far as the tests that are in it ask for them.
LEFT_OUT = {
    "__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: pass",
    "generation/test_utils.py": "class GenerationTesterMixin: pass",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}",
}


@pytest.fixture(scope="module")
def common_tests(tmp_path_factory) -> Path:
    """Folder that holds transformers' tests, of the installed version, as the package `transformers_tests`."""
    pytest.importorskip("parameterized")
    folder = tmp_path_factory.mktemp("transformers")
    source = f"transformers=={transformers.__version__}"
    command = ["download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", folder, source]
    downloaded = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True)
    if downloaded.returncode:
        pytest.skip(f"pip cannot download the source of {source}: {downloaded.stderr.strip()[-200:]}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    tests = next(folder.glob("transformers-*/tests")).rename(folder / "transformers_tests")
    for name, text in LEFT_OUT.items():
        if not (tests / name).exists():
            (tests / name).parent.mkdir(exist_ok=True)
            (tests / name).write_text(text + "\n")
    return folder


@pytest.mark.slow
def test_transformers_own_tests_of_models_configs_and_feature_extractors_pass(common_tests, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{common_tests}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = common_tests / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-o", "addopts=", "--tb=short", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, "tests/support/transformers_common.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    cases = list(ElementTree.parse(report).iter("testcase"))
    reasons = Counter(skipped.get("message") for case in cases for skipped in case.iter("skipped"))
    with capsys.disabled():
        print(f"\ntransformers {transformers.__version__}: {run.stdout.splitlines()[-1]}")
        for reason, count in reasons.most_common():
            print(f"  skipped {count:3d}: {reason}")
    assert run.returncode == 0, run.stdout[-10_000:]
    assert len(cases) > 150
