"""Pretraining as one runs it: a kill costs nothing but time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import WavLMModel

from tests.support.pretraining import TINY, write_recordings, write_whisper

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import pretrain_backbone as pretraining  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    return write_recordings(tmp_path_factory.mktemp("speech"), tmp_path_factory.mktemp("noise"))


def arguments(folders, output, *more) -> list[str]:
    speech, noise = map(str, folders)
    common = ["--speech", speech, "--noise", noise, "--noise_leave_out", "4-", "--batch_size", "2"]
    tiny = ["--sizes", json.dumps(TINY), "--crop_seconds", "1", "--mixed_precision", "no", "--log_every", "1"]
    return [str(output), *common, *tiny, *more]


@pytest.mark.parametrize("teacher", [None, "whisper"])
def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(folders, tmp_path, teacher, monkeypatch, request):
    taught = ("--teacher", write_whisper(tmp_path / teacher), "--varied_share", "0.5") if teacher else ()
    budget = ("--steps", "40", "--save_minutes", "0", *taught)
    killed = arguments(folders, tmp_path / "killed", *budget)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums of several threads differ by their number
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(n_threads))
    process = subprocess.Popen([sys.executable, SCRIPTS / "pretrain_backbone.py", *killed])
    log, deadline = tmp_path / "killed" / "log.jsonl", time.monotonic() + 300
    while not (log.exists() and len(log.read_text().splitlines()) >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = torch.load(tmp_path / "killed" / "training.pt", weights_only=True)["step"]
    assert 0 < reached < 40
    WavLMModel.from_pretrained(tmp_path / "killed" / "backbone")  # whole, though killed at any moment

    pretraining.main(killed)
    pretraining.main(arguments(folders, tmp_path / "unbroken", "--steps", "40", *taught))
    resumed, unbroken = (
        WavLMModel.from_pretrained(tmp_path / run / "backbone").state_dict() for run in ("killed", "unbroken")
    )
    for name, value in unbroken.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-5, rtol=1e-4)


def test_pretraining_starts_from_a_finished_backbone(folders, tmp_path):
    pretraining.main(arguments(folders, tmp_path / "first", "--steps", "2"))
    first = WavLMModel.from_pretrained(tmp_path / "first" / "backbone").state_dict()
    more = ("--steps", "1", "--learning_rate", "0", "--backbone", str(tmp_path / "first" / "backbone"))
    pretraining.main(arguments(folders, tmp_path / "second", *more))
    second = WavLMModel.from_pretrained(tmp_path / "second" / "backbone").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
