"""README's Python runs as written, in a fresh process, one block after the other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_readme_runs_as_written(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    demo = [sys.executable, ROOT / "scripts" / "make_demo_corpus.py", tmp_path / "outputs" / "demo"]
    subprocess.run(demo, check=True, capture_output=True)
    script = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    shown = re.search(r"^```\n(anger .*?)^```", text, re.M | re.S)[1]
    assert done.stdout == shown
    assert (tmp_path / "outputs" / "timeline.png").stat().st_size > 10_000
