"""What people report as bugs of such projects, as a table: each is read as they meant it, or refused in one line."""

import json
import logging
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import soundfile

from modeling_edrl_mea import RecordingError, load_recording
from tests.support.corpus_folders import labels_of, load, touch
from train.data.recordings import CorpusError, bad_recordings
from train.data.splits import SplitError, split_by_speaker

HEAD = "file_name,emotion,speaker\n"


@pytest.fixture(autouse=True)
def heard(caplog, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    caplog.set_level(logging.INFO)
    return caplog


def csv(text: str, *files: str, name: str = "metadata.csv"):
    def build(root):
        touch(root, *(files or ("0.wav", "1.wav")))
        (root / name).write_text(text, encoding="utf-8")

    return build


def folders(*files: str):
    return lambda root: touch(root, *files)


def linked(root):
    touch(root.parent / "elsewhere", "0.wav", "1.wav")
    root.mkdir()
    (root / "anger").symlink_to(root.parent / "elsewhere")
    (root / "anger" / "loop").symlink_to(root)
    touch(root, "fear/2.wav")
    (root / "fear" / "gone.wav").symlink_to(root / "nowhere.wav")


def rows_of_json(*rows):
    def build(root):
        touch(root, "0.wav", "1.wav")
        (root / "metadata.json").write_text(json.dumps(list(rows)))

    return build


def in_parquet(file: str):
    """A table of paths as pandas 3 writes one, with its categories and its floats for whole numbers."""

    def build(root):
        touch(root, "wav/0.wav", "wav/1.wav")
        for number, path in enumerate(("wav/0.wav", "wav/1.wav")):
            (root / path).write_bytes(bytes([number]))
        labels = pandas.Categorical(["anger", "fear"])
        table = pandas.DataFrame({"path": ["wav/0.wav", "wav/1.wav"], "emotion": labels, "speaker": [1.0, 2.0]})
        (root / file).parent.mkdir(exist_ok=True)
        table.to_parquet(root / file)

    return build


def saved(*recordings):
    """What `datasets` saves of such an audio column."""

    def build(root):
        emotions = ["anger", "fear", "anger"][: len(recordings)]
        columns = {"audio": list(recordings), "emotion": emotions, "speaker": ["a", "b", "c"][: len(recordings)]}
        datasets.Dataset.from_dict(columns).save_to_disk(root)

    return build


def samples(number: int) -> dict:
    return {"array": [0.1 * number] * 100, "sampling_rate": 16_000}


def in_other_accents(root):
    touch(root, unicodedata.normalize("NFD", "wütend_0.wav"), unicodedata.normalize("NFC", "Zoë_1.wav"))
    rows = [("NFC", "wütend_0.wav", "Wut", "Zoë"), ("NFD", "Zoë_1.wav", "Ärger", "Zoë")]
    lines = [unicodedata.normalize(form, ",".join(cells)) for form, *cells in rows]
    (root / "metadata.csv").write_text(HEAD + "\n".join(lines), encoding="utf-8")


def archive(root):
    root.mkdir()
    with zipfile.ZipFile(root / "speech.zip", "w") as file:
        file.writestr("anger/0.wav", b"")


READ = {  # name: (how it lies there, classes with counts, speakers without the corpus's name)
    "folders with spaces, capitals and accents": (
        folders("ÄRGER /0.wav", "Ärger/1.wav", "Very Calm/2.wav", "Very Calm/3.wav"),
        {"anger": 2, "very calm": 2},
        None,
    ),
    "numbered folders": (folders("01_anger/0.wav", "2 - Sad/1.wav"), {"anger": 1, "sadness": 1}, None),
    "hidden and macOS files": (
        folders("anger/0.wav", "anger/._0.wav", "anger/.1.wav", "__MACOSX/anger/0.wav", "anger/notes.txt"),
        {"anger": 1},
        None,
    ),
    "symbolic links, one in a circle": (linked, {"anger": 2, "fear": 2}, None),
    "files of other capitals": (folders("anger/0.WAV", "fear/1.Mp3"), {"anger": 1, "fear": 1}, None),
    "speakers with leading zeros": (
        csv(f"{HEAD}0.wav,anger,001\n1.wav,fear,01\n"),
        {"anger": 1, "fear": 1},
        {"001", "01"},
    ),
    "speakers as numbers": (
        rows_of_json(
            {"path": "0.wav", "emotion": "anger", "speaker": 7}, {"path": "1.wav", "emotion": "fear", "speaker": 8}
        ),
        {"anger": 1, "fear": 1},
        {"7", "8"},
    ),
    "a speaker who is NaN is unknown": (
        rows_of_json(
            {"path": "0.wav", "emotion": "anger", "speaker": float("nan")},
            {"path": "1.wav", "emotion": "fear", "speaker": float("nan")},
        ),
        {"anger": 1, "fear": 1},
        None,
    ),
    "columns with capitals and spaces": (
        csv("File Name;Emotion Label;Speaker ID\n0.wav;anger;a\n1.wav;fear;b\n"),
        {"anger": 1, "fear": 1},
        {"a", "b"},
    ),
    "NeMo's manifest": (
        csv(
            '{"audio_filepath": "0.wav", "emotion": "anger"}\n\n{"audio_filepath": "1.wav", "emotion": "fear"}\n',
            name="metadata.jsonl",
        ),
        {"anger": 1, "fear": 1},
        None,
    ),
    "pandas' own index": (csv(f",{HEAD}0,0.wav,anger,a\n1,1.wav,fear,b\n"), {"anger": 1, "fear": 1}, {"a", "b"}),
    "quotes, commas and line breaks": (
        csv('file_name,text,emotion\n"0.wav","No, ""never""\nagain",anger\n1.wav,Yes,fear\n'),
        {"anger": 1, "fear": 1},
        None,
    ),
    "Windows paths": (
        csv(f"{HEAD}sub\\0.wav,anger,a\n.\\sub\\1.wav ,fear,b\n", "sub/0.wav", "sub/1.wav"),
        {"anger": 1, "fear": 1},
        {"a", "b"},
    ),
    "relative paths": (
        csv(f"{HEAD}./sub/../0.wav,anger,a\nsub//1.wav,fear,b\n", "0.wav", "sub/1.wav"),
        {"anger": 1, "fear": 1},
        {"a", "b"},
    ),
    "repeated rows": (csv(HEAD + "0.wav,anger,a\n" * 3 + "1.wav,fear,b\n"), {"anger": 1, "fear": 1}, {"a", "b"}),
    "labels as numbers": (csv(f"{HEAD}0.wav,0,a\n1.wav,1,b\n"), {"0": 1, "1": 1}, {"a", "b"}),
    "blank lines": (csv(f"{HEAD}\n0.wav,anger,a\n\n1.wav,fear,b\n\n"), {"anger": 1, "fear": 1}, {"a", "b"}),
    "labels and speakers that an empty cell made floats": (
        csv("file_name,label,speaker\n0.wav,0.0,1.0\n1.wav,1.0,2.0\n"),
        {"0": 1, "1": 1},
        {"1", "2"},
    ),
    "lists and shares as text": (
        csv("""file_name,emotion\n0.wav,['anger']\n1.wav,"{'fear': 0.8, 'anger': 0.2}"\n"""),
        {"anger": 1, "fear": 1},
        None,
    ),
    "words with a point or a mark": (csv("path,emotion\n0.wav,Angry!\n1.wav,(fear)\n"), {"anger": 1, "fear": 1}, None),
    "accents in either of Unicode's ways": (in_other_accents, {"anger": 2}, {"Zoë"}),
    "folders that tell counts": (folders("Angry (127)/0.wav", "fear[3]/1.wav"), {"anger": 1, "fear": 1}, None),
    "SpeechBrain's JSON": (
        csv(
            '{"u0": {"wav": "{data_root}/0.wav", "length": 1.0, "emo": "ang"}, '
            '"u1": {"wav": "{data_root}/1.wav", "length": 1.0, "emo": "hap"}}',
            name="metadata.json",
        ),
        {"anger": 1, "happiness": 1},
        None,
    ),
    "EmoBox's JSONL": (
        csv(
            '{"key": "x-0", "dataset": "x", "wav": "0.wav", "sex": "male", "emo": "ang", "channel": 1}\n'
            '{"key": "x-1", "dataset": "x", "wav": "1.wav", "sex": "male", "emo": "neu", "channel": 1}\n',
            name="metadata.jsonl",
        ),
        {"anger": 1, "neutral": 1},
        None,
    ),
    "nkululeko's table": (
        csv("file,emotion,gender,speaker,duration\n./0.wav,anger,female,s1,0 days 00:00:01\n./1.wav,fear,male,s2,\n"),
        {"anger": 1, "fear": 1},
        {"s1", "s2"},
    ),
    "a Parquet table beside its recordings": (in_parquet("train.parquet"), {"anger": 1, "fear": 1}, {"1", "2"}),
    "samples that datasets saved": (saved(samples(1), samples(2)), {"anger": 1, "fear": 1}, {"a", "b"}),
    "a number and the name that it stands for": (
        csv("file_name,label,label_name,subject\n0.wav,0,anger,a\n1.wav,1,fear,b\n"),
        {"anger": 1, "fear": 1},
        {"a", "b"},
    ),
    "an empty class": (
        lambda root: (touch(root, "anger/0.wav", "fear/1.wav"), (root / "sadness").mkdir()),
        {"anger": 1, "fear": 1},
        None,
    ),
}

SAID = {
    "labels as numbers": "emotions are numbers",
    "an empty class": "folders without recordings: sadness",
    "repeated rows": "2 rows that repeat",
    "numbered folders": "01_anger → anger",
    "a speaker who is NaN is unknown": "not who speaks",
    "labels and speakers that an empty cell made floats": "emotions are numbers",
    "nkululeko's table": "columns not used: gender, duration",
}

REFUSED = {
    "a label that is NaN": (csv(f"{HEAD}0.wav,nan,a\n1.wav,fear,b\n"), "row 1 .*no emotion"),
    "a label that is missing": (csv(f"{HEAD}0.wav,anger,a\n1.wav\n"), "row 2 .*no emotion"),
    "a number that is NaN": (rows_of_json({"path": "0.wav", "label": float("nan")}), "row 1 .*no label"),
    "no header": (csv("0.wav,anger\n1.wav,fear\n"), "no audio column.*found 0.wav, anger"),
    "no emotions": (csv("file_name,speaker\n0.wav,a\n"), "no label column.*label_column"),
    "a column twice": (csv("file_name,emotion,Emotion\n0.wav,anger,fear\n"), "two columns called emotion"),
    "an empty table": (csv(HEAD), "lists no recording"),
    "text without quotes": (csv("file_name,emotion,text\n0.wav,anger,No, never\n"), "row 1 has more columns"),
    "other capitals than the files": (
        csv(f"{HEAD}0.WAV,anger,a\n"),
        "1 of 1 recordings .* do not exist, such as '0.WAV'",
    ),
    "another disk": (csv(f"{HEAD}C:\\data\\0.wav,anger,a\n"), "do not exist"),
    "a path out of nowhere": (csv(f"{HEAD}/nowhere/0.wav,anger,a\n"), "do not exist"),
    "no folders": (folders("0.wav", "1.wav"), "have no label"),
    "no audio": (folders("anger/0.txt"), "no audio in"),
    "an archive inside": (archive, "unpack its archives"),
    "JSON of columns": (csv('{"path": ["0.wav"], "emotion": ["anger"]}', name="metadata.json"), "list of rows"),
    "two labels as a list's text": (
        csv("path,emotion\n0.wav,\"['anger', 'fear']\"\n"),
        "row 1 .*give each recording one",
    ),
    "a column for each emotion": (csv("path,anger,fear\n0.wav,1,0\n"), "no label column"),
    "arousal and valence alone": (csv("path,arousal,valence\n0.wav,3.2,1.1\n"), "no label column.*arousal"),
    "one folder that is no emotion": (folders("wav/0.wav", "wav/1.wav"), "lie in 'wav', which is no known emotion"),
    "folders of people": (folders("Actor_01/a1.wav", "Actor_02/a1.wav"), "lie in 'Actor_01' and the like, which is no"),
    "samples without a rate": (saved([0.1] * 99, [0.2] * 99), "row 0 .*samples without a rate"),
    "a row of nothing": (saved({"bytes": b"1", "path": "0.wav"}, None), "row 1 .*no recording.*on_bad_audio skip"),
    "no Parquet": (csv("path,emotion", name="metadata.parquet"), "cannot be read"),
    "Kaldi's folder": (csv("u0 0.wav\n", name="wav.scp"), "have no label"),
    "an address": (csv("path,emotion\nhttps://nowhere.invalid/0.wav,anger\n"), "do not exist, such as 'https:"),
    "half a JSON": (csv('[{"path": "0.wav"', name="metadata.json"), "cannot be read as json"),
}


@pytest.mark.parametrize("report", READ)
def test_it_is_read_as_it_was_meant(report, tmp_path, heard):
    build, classes, speakers = READ[report]
    build(tmp_path / "mine")
    dataset = load(tmp_path / "mine")
    assert Counter(labels_of(dataset)) == classes
    if speakers:
        assert set(dataset["speaker"]) == {f"mine_{speaker}" for speaker in speakers}
    assert SAID.get(report, "") in heard.text


@pytest.mark.parametrize("report", REFUSED)
def test_it_is_refused_in_one_line(report, tmp_path):
    build, said = REFUSED[report]
    build(tmp_path / "mine")
    with pytest.raises(CorpusError, match=said) as refused:
        load(tmp_path / "mine")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("source", ["speech.zip", "speech.xlsx", "nowhere/speech", "speech.wav"])
def test_a_source_that_is_no_corpus_is_refused_in_one_line(source, tmp_path):
    if not source.startswith("nowhere"):
        (tmp_path / source).write_bytes(b"PK")
    with pytest.raises(CorpusError, match="archive|no manifest|does not exist"):
        load(tmp_path / source)


@pytest.mark.parametrize("where", ["beside", "where the command runs"])
def test_paths_of_a_parquet_file_are_found(where, tmp_path, monkeypatch):
    in_parquet("lists/a.parquet" if where != "beside" else "a.parquet")(tmp_path)
    monkeypatch.chdir(tmp_path)
    dataset = load(next(tmp_path.rglob("*.parquet")))
    assert [Path(path).read_bytes() for path in dataset["audio"]] == [b"\0", b"\1"]
    assert list(dataset["speaker"]) == ["a_1", "a_2"]


def test_paths_relative_to_where_the_command_runs_are_found(tmp_path, monkeypatch):
    csv(f"{HEAD}data/0.wav,anger,a\n", "0.wav")(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert list(load("data")["audio"]) == [str(tmp_path / "data" / "0.wav")]


@pytest.mark.parametrize(
    "build",
    [
        saved({"bytes": b"1", "path": "0.wav"}, None, {"bytes": None, "path": None}),
        csv(f"{HEAD}0.wav,anger,a\n,fear,b\ngone.wav,fear,b\n"),
    ],
    ids=["dataset", "table"],
)
def test_rows_without_a_recording_are_left_out_where_bad_ones_are_to_be_skipped(build, tmp_path, heard):
    build(tmp_path / "mine")
    assert labels_of(load(tmp_path / "mine", skip_missing=True)) == ["anger"]
    assert "2 rows without a recording left out" in heard.text or "2 of 3 recordings" in heard.text


def test_a_home_folder_in_a_settings_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path / "speech", "anger/0.wav")
    assert len(load("mine=~/speech")) == 1


def test_one_recording_of_a_class_and_one_speaker_are_refused_by_name(tmp_path):
    touch(tmp_path, "anger/0.wav", "anger/1.wav", "fear/2.wav")
    with pytest.raises(CorpusError, match="class 'fear' .* has 1 recording .*2.wav"):
        load(tmp_path, min_class_size=2)
    touch(tmp_path / "one", "anger/ann/0.wav", "fear/ann/1.wav")
    with pytest.raises(SplitError, match="speaker"):
        split_by_speaker(load(tmp_path / "one"), 0.5)


# --- sound ---

TONE = 0.5 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
SOUNDS = {
    "stereo": (np.stack([TONE, TONE], 1), 16_000, "PCM_16"),
    "8 bits": (TONE, 16_000, "PCM_U8"),
    "24 bits": (TONE, 16_000, "PCM_24"),
    "32 bits": (TONE, 16_000, "PCM_32"),
    "floats": (TONE, 16_000, "FLOAT"),
    "doubles": (TONE, 16_000, "DOUBLE"),
    "A-law": (TONE, 16_000, "ALAW"),
    "ADPCM": (TONE, 16_000, "IMA_ADPCM"),
    "96 kHz": (0.5 * np.sin(2 * np.pi * 200 * np.arange(96_000) / 96_000), 96_000, "PCM_24"),
    "11 kHz": (0.5 * np.sin(2 * np.pi * 200 * np.arange(11_025) / 11_025), 11_025, "PCM_16"),
}


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_wav_of_any_kind_is_the_same_sound(kind, tmp_path):
    samples, rate, subtype = SOUNDS[kind]
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype=subtype)
    found = load_recording(tmp_path / "a.wav")
    assert abs(len(found) - 16_000) < 300  # ADPCM pads its last block
    assert np.abs(found[500:15_000] - TONE[500:15_000]).max() < 0.04


def test_ten_milliseconds_are_a_recording_and_no_samples_are_none(tmp_path):
    soundfile.write(tmp_path / "short.wav", TONE[:160], 16_000)
    soundfile.write(tmp_path / "empty.wav", TONE[:0], 16_000)
    assert len(load_recording(tmp_path / "short.wav")) == 160
    assert bad_recordings([str(tmp_path / "short.wav"), str(tmp_path / "empty.wav")], tmp_path / "memory").keys() == {1}
    with pytest.raises(RecordingError, match="empty.wav: zero length"):
        load_recording(tmp_path / "empty.wav")
