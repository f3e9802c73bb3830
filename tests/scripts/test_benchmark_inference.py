"""The script that measures inference: what a contender cannot do is a row."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tones import write_corpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_contender_that_fails_is_a_row_that_says_why(tmp_path, tiny_model):
    model, corpus = tmp_path / "model", write_corpus(tmp_path / "tones", n_speakers=1)
    tiny_model("linear").save_pretrained(model)
    command = [sys.executable, "scripts/benchmark_inference.py", model, "--recordings", corpus, "--n_recordings", "3"]
    command += ["--tables", "recordings", "pipeline", "--contenders", "ours float32"]
    command += ["--report", tmp_path / "report.json"]
    environment = os.environ | {"PATH": str(tmp_path)}  # without FFmpeg
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert rows["ours float32"].count(" ms, 1.00 ×") == 2 and "3 of 3" in rows["ours float32"]
    for name in ("stock pipeline", "ours pipeline"):
        assert "ffmpeg program" in rows[name]
    tables = json.loads((tmp_path / "report.json").read_text())["tables"]
    assert [row[0] for row in tables["pipeline"][1:]] == ["stock pipeline", "ours pipeline"]
