"""Tables, folders and labels as people have them: read as they meant them, or refused, and what was done is said."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from modeling_edrl_mea import load_recording
from tests.support.corpus_folders import TREES, labels_of, load, touch, write_table
from train.data.emotions import LabelError, canonical_emotion, nearest_emotion
from train.data.recordings import CorpusError
from train.data.segments import seconds_of


@pytest.fixture(autouse=True)
def heard(caplog, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    caplog.set_level(logging.INFO)
    return caplog


def rows(*emotions: str, first: int = 0, **more) -> list[dict]:
    return [
        {"file_name": f"{i}.wav", "emotion": emotion, "speaker": f"s{i}", **more}
        for i, emotion in enumerate(emotions, start=first)
    ]


def test_a_table_for_each_split_gives_labels_and_splits(tmp_path):
    for split, emotions in {"train": ("anger", "fear"), "test": ("fear", "anger")}.items():
        touch(tmp_path / "mine" / split, "0.wav", "1.wav")
        write_table(tmp_path / "mine" / split / "metadata.csv", rows(*emotions))
    dataset = load(tmp_path / "mine")
    assert dataset.features["label"].names == ["anger", "fear"]
    assert list(zip(labels_of(dataset), dataset["split"], strict=True)) == [
        *(("fear", "test"), ("anger", "test"), ("anger", "train"), ("fear", "train"))
    ]
    assert labels_of(load(tmp_path / "mine", split="train")) == ["anger", "fear"]


@pytest.mark.parametrize("layout", ["column", "train.csv", "folders of one table", "class folders"])
def test_splits_are_found_wherever_they_are_written(layout, tmp_path):
    root = tmp_path / "mine"
    if layout == "column":
        touch(root, "0.wav", "1.wav")
        write_table(root / "metadata.csv", rows("anger", Split="train") + rows("fear", first=1, Split="dev"))
    if layout == "train.csv":
        touch(root, "0.wav", "1.wav")
        write_table(root / "train.csv", rows("anger"))
        write_table(root / "dev.csv", rows("fear", first=1))
    if layout == "folders of one table":
        touch(root, "train/0.wav", "dev/1.wav")
        named = [row | {"file_name": f"{part}/{row['file_name']}"}
                 for part, row in zip(("train", "dev"), rows("anger", "fear"), strict=True)]  # fmt: skip
        write_table(root / "metadata.csv", named)
    if layout == "class folders":
        touch(root, "train/anger/0.wav", "dev/fear/1.wav")
    dataset = load(root)
    assert sorted(zip(labels_of(dataset), dataset["split"], strict=True)) == [("anger", "train"), ("fear", "dev")]


def test_split_folders_without_labels_are_no_emotions(tmp_path):
    with pytest.raises(CorpusError, match="metadata.csv"):
        load(touch(tmp_path, "train/1.wav", "test/2.wav"))


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_any_separator_and_encoding_are_read(delimiter, encoding, tmp_path):
    touch(tmp_path, "001.wav", "002.wav")
    lines = ["file_name emotion speaker", "001 Müde 001", "002 Ärger 002"]
    text = "\r\n".join(line.replace(" ", delimiter) for line in lines)
    (tmp_path / "metadata.csv").write_bytes(text.encode(encoding))
    dataset = load(tmp_path, corpus="mine")
    assert labels_of(dataset) == ["müde", "anger"]
    assert list(dataset["speaker"]) == ["mine_001", "mine_002"] and dataset["audio"][0].endswith("001.wav")


def test_unknown_labels_of_other_case_and_spaces_are_one_class_and_that_is_said(tmp_path, heard):
    touch(tmp_path, *(f"{i}.wav" for i in range(4)))
    write_table(tmp_path / "metadata.csv", rows("Stressed", "stressed ", "STRESSED", "happy"))
    assert load(tmp_path).features["label"].names == ["happiness", "stressed"]
    assert "Stressed → stressed (1)" in heard.text and "happy → happiness (1)" in heard.text


@pytest.mark.parametrize(
    ("word", "emotion"),
    [("Freude", "happiness"), ("tristesse", "sadness"), ("Rabbia", "anger"), ("miedo", "fear"), ("mutlu", "happiness"),
     ("злость", "anger"), ("中性", "neutral"), ("怒り", "anger"), ("분노", "anger"), ("strach", "fear"),
     ("Überraschung", "surprise"), ("Uberraschung", "surprise"), ("dégoût", "disgust")],
)  # fmt: skip
def test_emotions_are_known_in_other_languages(word, emotion):
    assert canonical_emotion(word) == emotion


def test_no_suggestion_is_better_than_a_senseless_one(tmp_path):
    assert nearest_emotion("saddness") == "sadness" and nearest_emotion("Müdigkeit") is None
    touch(tmp_path, "Müdigkeit/1.wav", "anger/1.wav")
    with pytest.raises(LabelError) as error:
        load(tmp_path, label_scheme="four_emotions")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("layout", ["{emotion}/{speaker}/1.wav", "{speaker}/{emotion}/1.wav"])
def test_folders_of_partly_unknown_emotions_are_told_from_speakers(layout, tmp_path):
    pairs = [(speaker, emotion) for speaker in ("anna", "ben") for emotion in ("anger", "stressed")]
    touch(tmp_path / "mine", *(layout.format(speaker=speaker, emotion=emotion) for speaker, emotion in pairs))
    dataset = load(tmp_path / "mine")
    assert set(labels_of(dataset)) == {"anger", "stressed"} and set(dataset["speaker"]) == {"mine_anna", "mine_ben"}


def test_two_levels_of_unknown_words_are_not_guessed(tmp_path):
    with pytest.raises(CorpusError, match="which folders"):
        load(touch(tmp_path, "tired/anna/1.wav", "awake/ben/1.wav"))


def test_speakers_that_differ_in_case_and_spaces_are_one(tmp_path, heard):
    touch(tmp_path, "0.wav", "1.wav", "2.wav")
    names = ("Anna", "anna", "Anna ")
    write_table(
        tmp_path / "m.csv", [row | {"speaker": name} for row, name in zip(rows(*["fear"] * 3), names, strict=True)]
    )
    assert set(load(tmp_path / "m.csv")["speaker"]) == {"m_Anna"} and "taken for one" in heard.text


@pytest.mark.parametrize("user_wrote", ["metadata.csv", "class folders", "train/metadata.csv"])
def test_what_the_user_wrote_wins_over_names_that_look_like_a_known_corpus(user_wrote, tmp_path):
    names = ["03a01Fa.wav", "08b09Wb.wav", "16a05Lc.wav", "10b10Td.wav"]
    folder = tmp_path / "emodb"
    if user_wrote == "class folders":
        touch(folder, *(f"{'fear' if i % 2 else 'calm'}/{name}" for i, name in enumerate(names)))
    else:
        table = folder / user_wrote
        touch(table.parent, *names)
        write_table(table, [{"file_name": name, "emotion": ("calm", "fear")[i % 2]} for i, name in enumerate(names)])
    assert sorted(labels_of(load(folder))) == ["calm", "calm", "fear", "fear"]


def test_a_known_corpus_sorted_into_folders_of_its_own_emotions_keeps_its_speakers(tmp_path):
    touch(tmp_path / "x", *(f"{emotion}/{name.split('/')[-1]}" for name, (emotion, _) in TREES["emodb"].items()))
    dataset = load(tmp_path / "x")
    assert set(dataset["corpus"]) == {"emodb"} and "emodb_03" in set(dataset["speaker"])


# --- parts of files


def ramp(path, seconds: int = 10, rate: int = 16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (np.arange(seconds * rate) // rate * 1000).astype(np.int16), rate)
    return path


@pytest.mark.parametrize(
    ("start", "end"),
    [("0 days 00:00:02", "0 days 00:00:05"), ("2.0", "5"), ("00:00:02.0", "00:00:05"), ("2,0", "5,0")],
)
def test_segments_of_a_file_are_cut(start, end, tmp_path, heard):
    ramp(tmp_path / "long.wav")
    table = [
        {"file": "long.wav", "start": start, "end": end, "emotion": "anger", "speaker": "a"},
        {"file": "long.wav", "start": end, "end": "NaT", "emotion": "fear", "speaker": "a"},
    ]
    dataset = load(write_table(tmp_path / "m.csv", table, delimiter=";"))
    first, second = (soundfile.read(path, dtype="int16")[0] for path in dataset["audio"])
    assert len(first) == 3 * 16_000 and set(first.tolist()) == {2000, 3000, 4000}
    assert len(second) == 5 * 16_000 and second[0] == 5000
    assert load_recording(dataset["audio"][0]).shape == (48_000,) and "2 segments cut from 1 files" in heard.text
    assert labels_of(dataset) == ["anger", "fear"]


def test_a_start_with_a_duration_is_a_segment_and_a_duration_alone_is_none(tmp_path):
    ramp(tmp_path / "long.wav")
    row = {"file": "long.wav", "emotion": "fear", "duration": "3"}
    assert soundfile.info(load(write_table(tmp_path / "a.csv", [row | {"offset": "1"}]))["audio"][0]).frames == 48_000
    assert load(write_table(tmp_path / "b.csv", [row]))["audio"][0] == str(tmp_path / "long.wav")


@pytest.mark.parametrize(
    "times",
    [
        {"begin_time": 2, "end_time": 5},
        {"Start (ms)": 2000, "End (ms)": 5000},
        {"start_ms": 2000, "duration_ms": 3000},
        {"onset": 2, "offset": 5},
        {"offset": 2, "duration": 3},
        {"xmin": 2, "xmax": 5},
        {"StartTime": "00:00:02,000", "EndTime": "00:00:05,000"},
    ],
    ids=lambda times: " and ".join(times),
)
def test_times_are_found_by_the_names_that_tables_give_them(times, tmp_path):
    ramp(tmp_path / "long.wav")
    path = load(write_table(tmp_path / "a.csv", [{"file": "long.wav", "emotion": "fear"} | times]))["audio"][0]
    assert set(soundfile.read(path, dtype="int16")[0].tolist()) == {2000, 3000, 4000}


@pytest.mark.parametrize(("known", "lacking"), [("end_time", "start"), ("start", "end"), ("offset", "end")])
def test_half_a_pair_of_times_is_refused(known, lacking, tmp_path):
    """The part taken for the utterance would be another."""
    ramp(tmp_path / "long.wav")
    with pytest.raises(CorpusError, match=f"the column '{known}' and none called {lacking}"):
        load(write_table(tmp_path / "a.csv", [{"file": "long.wav", known: 2, "emotion": "fear", "t0": 1}]))


def test_recordings_that_are_cut_already_are_not_cut_again(tmp_path):
    ramp(tmp_path / "part.wav", seconds=3)
    row = {"file": "part.wav", "start": "120", "end": "123", "emotion": "fear"}
    assert load(write_table(tmp_path / "a.csv", [row]))["audio"][0] == str(tmp_path / "part.wav")


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9] + b"!" + content[-8:], lambda content: content[:99], None]
)
@pytest.mark.parametrize("suffix", ["", ".sha256"])
def test_a_damaged_segment_is_cut_again(suffix, damage, tmp_path):
    ramp(tmp_path / "long.wav")
    row = {"file": "long.wav", "start": "2", "end": "4", "emotion": "fear"}
    (path,) = load(write_table(tmp_path / "a.csv", [row]))["audio"]
    whole, file = Path(path).read_bytes(), Path(path + suffix)
    content = file.read_bytes()
    file.unlink()
    if damage:
        file.write_bytes(damage(content))
    assert load(tmp_path / "a.csv")["audio"][:] == [path] and Path(path).read_bytes() == whole


def test_segments_that_cannot_be_are_named_or_left_out(tmp_path):
    ramp(tmp_path / "long.wav")
    times = {"good": (0, 1), "swapped": (3, 2), "beyond": (30, 32)}
    table = [{"file": "long.wav", "start": a, "end": b, "emotion": "fear"} for a, b in times.values()]
    write_table(tmp_path / "a.csv", table)
    with pytest.raises(CorpusError, match=r"2 segments(.|\n)*from 3.0 to 2.0 s(.|\n)*of 10.00 s"):
        load(tmp_path / "a.csv")
    assert len(load(tmp_path / "a.csv", skip_missing=True)) == 1
    with pytest.raises(CorpusError, match="row 1 .*, start 'soon'"):
        load(write_table(tmp_path / "b.csv", [{"file": "long.wav", "start": "soon", "end": "9", "emotion": "fear"}]))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1 days 01:00:00.5", 90_000.5), ("01:02", 62), ("0 days", None), (2, 2), ("NaT", None), ("", None)],
)
def test_times_are_understood_or_refused(text, seconds):
    if text == "0 days":
        with pytest.raises(CorpusError):
            seconds_of(text)
    else:
        assert seconds_of(text) == seconds


def test_a_recording_of_two_emotions_is_refused_and_one_listed_twice_counts_once(tmp_path, heard):
    touch(tmp_path, "0.wav")
    with pytest.raises(CorpusError, match="0.wav is listed as anger and as fear"):
        load(write_table(tmp_path / "a.csv", rows("anger") + rows("fear")))
    assert len(load(write_table(tmp_path / "b.csv", rows("fear") * 3))) == 1 and "2 rows that repeat" in heard.text


def test_columns_that_are_not_used_are_named(tmp_path, heard):
    touch(tmp_path, "0.wav")
    load(write_table(tmp_path / "a.csv", rows("anger", channel="2")))
    assert "a.csv: columns not used: channel" in heard.text


def test_missing_recordings_can_be_left_out(tmp_path, heard):
    touch(tmp_path, "0.wav")
    write_table(tmp_path / "a.csv", rows("anger", "fear"))
    with pytest.raises(CorpusError, match="on_bad_audio skip"):
        load(tmp_path / "a.csv")
    assert len(load(tmp_path / "a.csv", skip_missing=True)) == 1 and "1 of 2 recordings" in heard.text


# --- audformat

HEADER = """
name: mine
languages: [deu]
tables:
  emotion.train: {type: segmented, columns: {emotion: {scheme_id: emotion}}}
  emotion.test: {type: segmented, columns: {emotion: {scheme_id: emotion}}}
  files: {type: filewise, columns: {speaker: {scheme_id: speaker}, duration: {}}}
"""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_audformat_database_is_read(kind, tmp_path):
    for name in ("a.wav", "b.wav"):
        ramp(tmp_path / "db" / "audio" / name)
    (tmp_path / "db" / "db.yaml").write_text(HEADER)
    times = {"start": "0 days 00:00:01", "end": "0 days 00:00:03"}
    tables = {
        "emotion.train": [{"file": "audio/a.wav", **times, "emotion": "anger"}],
        "emotion.test": [{"file": "audio/b.wav", **times, "emotion": "fear"}],
        "files": [{"file": f"audio/{x}.wav", "speaker": f"0{x}", "duration": "0 days 00:00:10"} for x in "ab"],
    }
    for name, table in tables.items():
        if kind == "csv":
            write_table(tmp_path / "db" / f"db.{name}.csv", table)
        else:
            pq.write_table(pa.Table.from_pylist(table), tmp_path / "db" / f"db.{name}.parquet")
    dataset = load(tmp_path / "db")
    assert list(zip(labels_of(dataset), dataset["speaker"], dataset["split"], strict=True)) == [
        ("anger", "db_0a", "train"),
        ("fear", "db_0b", "test"),
    ]
    assert {soundfile.info(path).frames for path in dataset["audio"]} == {32_000}
