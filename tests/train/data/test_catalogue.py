"""The declared corpora are read from the layouts of their downloads."""

import csv
from pathlib import Path

import pytest

from tests.support.corpus_folders import TREES, labels_of, load, make_iemocap, make_meld, make_msp_podcast, touch
from train.data.catalogue import CORPORA
from train.data.corpora import load_corpus
from train.data.recordings import CorpusError


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("extension", [".wav", ".ogg"])
def test_a_corpus_is_recognized_and_read_by_its_file_names(name, extension, tmp_path):
    tree = {str(Path(file).with_suffix(extension)): what for file, what in TREES[name].items()}
    touch(tmp_path / "download", *tree, "README.txt")
    dataset = load(tmp_path / "download")
    found = zip(dataset["audio"], labels_of(dataset), dataset["speaker"], strict=True)
    rows = {str(Path(audio).relative_to(tmp_path / "download")): what for audio, *what in found}
    assert rows == {file: [emotion, f"{name}_{speaker}"] for file, (emotion, speaker) in tree.items()}
    assert set(dataset["corpus"]) == {name}
    assert set(dataset["language"]) == {CORPORA[name].language}


def test_iemocap_is_read_from_its_evaluations_and_transcriptions(tmp_path):
    dataset = load(make_iemocap(tmp_path))
    assert labels_of(dataset) == ["neutral", "excitement"]
    assert dataset["speaker"] == ["iemocap_Ses01F", "iemocap_Ses01M"]
    assert list(dataset["text"]) == ["Excuse me.", "Your forms?"]


def test_iemocap_excitement_is_happiness_among_four_emotions(tmp_path):
    assert labels_of(load(make_iemocap(tmp_path), label_scheme="four_emotions")) == ["neutral", "happiness"]


def test_msp_podcast_is_read_from_its_consensus_labels(tmp_path):
    dataset = load(make_msp_podcast(tmp_path))
    assert labels_of(dataset) == ["neutral", "happiness"]
    assert dataset["speaker"] == ["msppodcast_127", "msppodcast_Unknown"]
    assert labels_of(load(tmp_path, split="Test1")) == ["happiness"]


def test_meld_dialogues_of_different_splits_are_kept_apart(tmp_path):
    dataset = load(make_meld(tmp_path))
    assert labels_of(dataset) == ["surprise", "happiness", "anger"]
    assert dataset["speaker"] == ["meld_Chandler", "meld_Monica", "meld_Chandler"]
    assert [Path(audio).parent.name[:4] for audio in dataset["audio"]] == ["trai", "dev_", "outp"]
    assert labels_of(load(tmp_path, split="dev")) == ["happiness"]


def test_meld_as_video_says_how_to_get_the_audio(tmp_path):
    with pytest.raises(CorpusError, match="ffmpeg"):
        load(make_meld(tmp_path, ".mp4"))


def test_recordings_listed_without_a_file_are_left_out_with_a_warning(tmp_path, caplog):
    make_meld(tmp_path)
    (tmp_path / "dev_splits_complete" / "dia0_utt0.wav").unlink()
    assert len(load(tmp_path)) == 2
    assert "dev/dia0_utt0" in caplog.text


def test_a_recording_that_an_archive_repeats_is_read_once(tmp_path):
    file = "Actor_01/03-01-01-01-01-01-01.wav"
    touch(tmp_path, file, f"audio_speech_actors_01-24/{file}", "AudioMP3/03-01-01-01-01-01-01.mp3")
    assert len(load(tmp_path, corpus="ravdess")) == 1


def test_lossless_is_preferred_where_a_corpus_has_two_formats(tmp_path):
    touch(tmp_path, "AudioMP3/1001_DFA_ANG_XX.mp3", "AudioWAV/1001_DFA_ANG_XX.wav")
    assert load(tmp_path)["audio"][0].endswith(".wav")


def test_songs_of_ravdess_are_left_out(tmp_path):
    touch(tmp_path, "Actor_01/03-01-01-01-01-01-01.wav", "Actor_01/03-02-01-01-01-01-01.wav")
    assert len(load(tmp_path, corpus="ravdess")) == 1


@pytest.mark.parametrize("name", ["emodb", "ravdess", "nemo", "ased", "kett"])
def test_a_real_corpus_agrees_with_its_metadata(name, shared_data):
    folder = shared_data / name
    if not folder.is_dir():
        pytest.skip(f"needs the recordings of {name}")
    with open(folder / "metadata.csv", encoding="utf-8") as table:
        expected = {
            row["file_name"]: (row["emotion"], row["speaker"], row["language"]) for row in csv.DictReader(table)
        }
    dataset = load_corpus(f"{name}={folder}")
    found = zip(labels_of(dataset), dataset["speaker"], dataset["language"], strict=True)
    paths = [Path(audio).relative_to(folder).as_posix() for audio in dataset["audio"]]
    assert dict(zip(paths, found, strict=True)) == expected
