"""Anybody's recordings: class folders, manifests and Hub datasets."""

import numpy as np
import pytest
import soundfile
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from tests.corpus_folders import ROWS, labels_of, load, touch, write_manifest, write_table
from train import manifests
from train.recordings import UNKNOWN_SPEAKER, CorpusError


def test_class_folders_are_labels(tmp_path):
    touch(tmp_path / "mine", "angry/1.wav", "angry/2.mp3", "Sad/3.opus", "Sad/4.m4a")
    dataset = load(tmp_path / "mine")
    assert sorted(labels_of(dataset)) == ["anger", "anger", "sadness", "sadness"]
    assert set(dataset["corpus"]) == {"mine"}


@pytest.mark.parametrize("layout", ["{emotion}/{speaker}/1.wav", "{speaker}/{emotion}/1.wav"])
def test_a_folder_beside_the_emotion_is_the_speaker(layout, tmp_path):
    pairs = [(speaker, emotion) for speaker in ("anna", "ben") for emotion in ("anger", "fear")]
    touch(tmp_path / "mine", *(layout.format(speaker=speaker, emotion=emotion) for speaker, emotion in pairs))
    dataset = load(tmp_path / "mine")
    assert sorted(zip(dataset["speaker"], labels_of(dataset), strict=True)) == sorted(
        (f"mine_{speaker}", emotion) for speaker, emotion in pairs
    )


def test_without_speakers_each_recording_is_its_own_and_a_warning_says_so(tmp_path, caplog):
    dataset = load(touch(tmp_path, "anger/1.wav", "fear/1.wav"))
    assert len(set(dataset["speaker"])) == 2
    assert all(UNKNOWN_SPEAKER in speaker for speaker in dataset["speaker"])
    assert "speaker-independent split is impossible" in caplog.text


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_manifest_is_read_alone_or_as_metadata_of_its_folder(suffix, as_folder, tmp_path):
    manifest = write_manifest(tmp_path / f"metadata{suffix}")
    dataset = load(tmp_path if as_folder else manifest, corpus="mine", label_scheme="four_emotions")
    assert labels_of(dataset) == ["happiness", "sadness"]
    assert dataset["audio"] == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    assert dataset["speaker"] == ["mine_x", "mine_y"]
    assert list(dataset["text"]) == ["Good morning.", None]


def test_columns_can_be_named(tmp_path):
    touch(tmp_path, "a.wav")
    write_table(tmp_path / "m.csv", [{"sound": "a.wav", "mood": "fear", "who": "x", "label": "anger"}])
    dataset = load(tmp_path / "m.csv", audio_column="sound", label_column="mood", speaker_column="who")
    assert labels_of(dataset) == ["fear"] and dataset["speaker"] == ["m_x"]


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    manifest = write_manifest(tmp_path / "m.csv")
    with pytest.raises(CorpusError, match="'mood', found file_name, emotion, speaker, text; name it by label_column"):
        load(manifest, label_column="mood")


def test_a_row_without_a_label_is_named(tmp_path):
    manifest = write_manifest(tmp_path / "m.csv", [ROWS[0], {**ROWS[1], "emotion": ""}])
    with pytest.raises(CorpusError, match="row 2 .* has no emotion"):
        load(manifest)


def test_a_listed_recording_that_is_not_there_is_named(tmp_path):
    manifest = write_manifest(tmp_path / "m.csv")
    (tmp_path / "b.wav").unlink()
    with pytest.raises(CorpusError, match="1 of 2 recordings .* 'b.wav'"):
        load(manifest)


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "m.json").write_text("[{")
    with pytest.raises(CorpusError, match="m.json.* cannot be read as json"):
        load(tmp_path / "m.json")


def test_a_hub_dataset_is_read_without_decoding(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(160), 16_000)
    data = (tmp_path / "a.wav").read_bytes()
    rows = {
        "audio": [{"bytes": data, "path": "a.wav"}] * 2,
        "emotion": ["angry", "sad"],
        "speaker_id": [7, 8],
    }
    asked = []

    def load_dataset(name, split=None):
        asked.append((name, split))
        part = Dataset.from_dict(rows)
        return part if split else DatasetDict(train=part, test=part)

    monkeypatch.setattr(manifests, "load_dataset", load_dataset)
    dataset = load("somebody/emotions", label_scheme="four_emotions")
    assert len(dataset) == 4 and len(load("somebody/emotions", split="test")) == 2
    assert asked == [("somebody/emotions", None), ("somebody/emotions", "test")]
    assert dataset[0]["audio"]["bytes"] == data
    assert dataset[0]["speaker"] == "emotions_7" and dataset[0]["label"] == 0


def test_an_unlabelled_row_of_a_hub_dataset_is_named(monkeypatch):
    names = ClassLabel(names=["anger", "sadness"])
    features = Features(audio=Value("string"), emotion=names)
    rows = Dataset.from_dict({"audio": ["a.wav", "b.wav"], "emotion": [0, -1]}, features)
    monkeypatch.setattr(manifests, "load_dataset", lambda name, split=None: rows)
    with pytest.raises(CorpusError, match="row 1 of 'somebody/emotions' has no emotion"):
        load("somebody/emotions")


def test_a_hub_dataset_that_is_not_there_is_named(monkeypatch):
    def load_dataset(name, split=None):
        raise ConnectionError("no network")

    monkeypatch.setattr(manifests, "load_dataset", load_dataset)
    with pytest.raises(CorpusError, match="no folder or file here, and loading it from the Hub failed: no network"):
        load("somebody/emotions")


def test_usual_column_names_are_found_in_their_order():
    assert manifests._find_columns(["label", "emotion", "path"], ("audio", None, None), "here")[:2] == (
        "path",
        "emotion",
    )
