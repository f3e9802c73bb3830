"""Recordings checked once, and names that differ in nothing but how they are written."""

import numpy as np
import pytest
import soundfile

from train.data import recordings
from train.data.recordings import bad_recordings, column_key, is_nothing, recording_names, speaker_key


def test_what_was_found_good_is_not_decoded_again_wherever_it_lies(tmp_path, monkeypatch):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * np.ones(800) * (number + 1), 16_000)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    files = [str(tmp_path / name) for name in ("0.wav", "bad.wav", "1.wav")]
    assert list(bad_recordings(files, tmp_path / "memory")) == [1]
    decoded = []
    monkeypatch.setattr(recordings, "load_recording", decoded.append)
    (tmp_path / "0.wav").rename(tmp_path / "moved.wav")
    bad_recordings([str(tmp_path / "moved.wav"), str(tmp_path / "2.wav")], tmp_path / "memory")
    assert decoded == [str(tmp_path / "2.wav")]


def test_a_memory_that_cannot_be_written_costs_time_alone(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(800), 16_000)
    (tmp_path / "memory").write_text("a file, no folder")
    assert bad_recordings([str(tmp_path / "a.wav")], tmp_path / "memory") == {}


@pytest.mark.parametrize(("one", "other"), [("Anna", " anna"), ("Straße", "STRASSE"), ("Ａnna", "anna")])
def test_a_speaker_is_one_however_the_name_is_written(one, other):
    assert speaker_key(one) == speaker_key(other) != speaker_key(other + "2")


def test_columns_and_empty_cells_are_known_in_any_spelling():
    assert column_key("Speaker ID") == column_key("speaker_id") == column_key("SpeakerID")
    assert all(map(is_nothing, (None, "", " NaN ", float("nan"), "<NA>"))) and not any(map(is_nothing, (0, "0", [])))


def test_recordings_of_a_corpus_keep_their_names_when_it_is_moved():
    assert recording_names(["/a/b/anna/01.wav"]) == recording_names([{"path": "c/anna/01.flac"}]) == ["anna/01"]
