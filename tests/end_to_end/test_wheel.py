"""What `pip install` of the built wheel gives, in a process that sees no checkout, and what the sdist does."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import soundfile

from tests.support.voice import vowels

ROOT = Path(__file__).resolve().parents[2]
USE = """
import sys
import train  # the user's own file of that name
assert train.MINE
import numpy as np
from transformers import pipeline
import modeling_edrl_mea
from modeling_edrl_mea import EdrlMeaForAudioClassification, MultiblockPLS
assert modeling_edrl_mea.__file__.startswith(sys.argv[2]), modeling_edrl_mea.__file__
sounds = [np.random.default_rng(n).standard_normal(16_000).astype("float32") / 10 for n in range(4)]
model = EdrlMeaForAudioClassification.from_pretrained(sys.argv[1]).eval()
model.adapt(sounds)
model.save_pretrained("adapted")

import torch
from transformers import Trainer, TrainingArguments

from modeling_edrl_mea import AlignmentCallback

labels = {0: "yes", 1: "no"}
other = EdrlMeaForAudioClassification.from_pretrained(sys.argv[1], id2label=labels, ignore_mismatched_sizes=True)
other.freeze_backbone()
extract = other.feature_extractor()
rows = [dict(extract([sound], sampling_rate=16_000, return_tensors="pt")) for sound in sounds]
rows = [{name: part[0] for name, part in row.items()} | {"labels": i % 2} for i, row in enumerate(rows)]
args = TrainingArguments("tuned", max_steps=2, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True)
Trainer(other, args, train_dataset=rows, callbacks=[AlignmentCallback()]).train()
assert other.alignment.is_fitted
print(len(model.predict_timeline(sounds[0], sampling_rate=16_000, window_s=0.5, hop_s=0.25)), "windows")
print(pipeline("audio-classification", model="adapted")({"array": sounds[0], "sampling_rate": 16_000}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of commands of a fresh environment with the wheel and, of this one, the libraries alone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "modeling_edrl_mea"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    commands = fresh_environment(folder / "fresh")
    subprocess.run([*pip, "--python", commands / "python", "install", "--no-deps", wheel], check=True)
    return commands


def fresh_environment(folder: Path) -> Path:
    """Its folder of commands. It sees this environment's libraries, but nothing installed here as a link (.pth)."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    (site_packages(commands) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return commands


def site_packages(commands: Path) -> Path:
    ask = [commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())


def run(command, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_wheel_brings_one_name_and_no_solver_of_others(installed):
    found = {path.name for path in site_packages(installed).iterdir() if not path.name.endswith((".dist-info", ".pth"))}
    assert found == {"modeling_edrl_mea"}


def test_an_installed_package_adapts_fine_tunes_and_times_beside_a_users_own_train_py(
    installed, model_folder, tmp_path
):
    (tmp_path / "train.py").write_text("MINE = True")
    (tmp_path / "use.py").write_text(USE)
    printed = run([installed / "python", "use.py", model_folder, site_packages(installed)], tmp_path)
    assert "windows" in printed and "score" in printed


@pytest.fixture
def calls(tmp_path):
    (tmp_path / "calls").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "calls" / f"{number}.wav", vowels(1.0, pitch=110 + 20 * number), 16_000)


def test_the_console_command_predicts(installed, model_folder, calls, tmp_path):
    assert "anger" in run([installed / "edrl-mea", "predict", model_folder, "calls"], tmp_path)


@pytest.mark.slow
def test_the_console_command_adapts_times_embeds_and_exports(installed, model_folder, calls, tmp_path):
    command = installed / "edrl-mea"
    adapted = run([command, "adapt", model_folder, "calls", "--output", "adapted"], tmp_path)
    assert "Adapted to 3 recordings" in adapted
    assert "anger" in run([command, "predict", "adapted", "calls"], tmp_path)
    assert "start,end,label" in run([command, "timeline", "adapted", "calls/0.wav"], tmp_path)
    assert "3 recordings" in run([command, "embed", "adapted", "calls", "--output", "e.parquet"], tmp_path)
    pytest.importorskip("onnxscript")
    assert "model_int8.onnx" in run([command, "export", "adapted", "--output", "graphs"], tmp_path)


# Of each room one test file, none of which needs the network, a model download or minutes.
TESTS_OF_THE_SDIST = [
    "tests/modeling_edrl_mea/test_targets.py",
    "tests/modeling_edrl_mea/test_frames.py",
    "tests/train/data/test_files.py",
    "tests/hub_card/test_wording.py",
    "tests/test_rooms.py",
]


@pytest.mark.slow
def test_the_source_distribution_runs_its_own_tests(tmp_path):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not in a git checkout")
    source = tmp_path / "source"
    for name in filter(None, listed.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    python = fresh_environment(tmp_path / "fresh") / "python"
    printed = run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS_OF_THE_SDIST], unpacked)
    assert "passed" in printed
