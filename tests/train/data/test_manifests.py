"""Anybody's recordings: class folders and manifests."""

import pytest

from tests.support.corpus_folders import ROWS, labels_of, load, touch, write_manifest, write_table
from train.data import manifests
from train.data.recordings import UNKNOWN_SPEAKER, CorpusError


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


def test_usual_column_names_are_found_in_their_order():
    assert manifests.find_columns(["label", "emotion", "path"], ("audio", None, None), "here")[:2] == (
        "path",
        "emotion",
    )
