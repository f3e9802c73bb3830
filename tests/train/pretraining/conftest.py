"""Recordings to pretrain on, and teachers, made once."""

from pathlib import Path

import pytest

from tests.support.pretraining import write_recordings, write_wavlm, write_whisper


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Of speech and of noise."""
    return write_recordings(tmp_path_factory.mktemp("speech"), tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="session")
def teachers(tmp_path_factory) -> dict[str, str]:
    """Folders of a Whisper and of a WavLM that are tiny and know nothing."""
    whisper, wavlm = tmp_path_factory.mktemp("whisper"), tmp_path_factory.mktemp("wavlm")
    return {"whisper": write_whisper(whisper), "wavlm": write_wavlm(wavlm)}
