"""The Python of README and train/README runs as written, in a fresh process, one block after the other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_edrl_mea import EdrlMeaForAudioClassification

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder as a clone in which the demo recordings were made."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "outputs").mkdir()
    (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
    demo = [sys.executable, ROOT / "scripts" / "make_demo_corpus.py", folder / "outputs" / "demo"]
    subprocess.run(demo, check=True, capture_output=True)
    return folder


def printed(page: str, clone: Path) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    script = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    return subprocess.run(
        [sys.executable, "-c", script], cwd=clone, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_the_readme_runs_as_written(clone):
    shown = re.search(r"^```\n(anger .*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[1]
    assert printed("README.md", clone) == shown
    assert (clone / "outputs" / "timeline.png").stat().st_size > 10_000


def test_the_stock_trainer_trains_both_stages_as_written(clone):
    printed("train/README.md", clone)
    model = EdrlMeaForAudioClassification.from_pretrained(clone / "outputs" / "stock")
    assert model.edrl_mea.speech_embedding.is_fitted
