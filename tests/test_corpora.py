"""Every corpus is read from its own layout, generic sources too, and what is wrong with them is named."""

import csv
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from train import manifests
from train.corpora import concatenate_corpora, load_corpus
from train.declared_corpora import CORPORA
from train.emotions import ALIASES, EMOTIONS, SCHEMES, LabelError, canonical_emotion, label_under_scheme
from train.recordings import UNKNOWN_SPEAKER, CorpusError

# Paths as in the corpora's downloads, with the (emotion, speaker) they stand for.
TREES = {
    "emodb": {
        "wav/03a01Fa.wav": ("happiness", "03"),
        "wav/08b09Wb.wav": ("anger", "08"),
        "wav/16a05Lc.wav": ("boredom", "16"),
        "wav/10b10Td.wav": ("sadness", "10"),
    },
    "ravdess": {
        "Actor_01/03-01-01-01-01-01-01.wav": ("neutral", "01"),
        "Actor_01/03-01-05-02-02-01-01.wav": ("anger", "01"),
        "Actor_24/03-01-08-01-02-02-24.wav": ("surprise", "24"),
        "Actor_24/03-01-02-01-02-02-24.wav": ("calm", "24"),
    },
    "cremad": {
        "AudioWAV/1001_DFA_ANG_XX.wav": ("anger", "1001"),
        "AudioWAV/1091_IEO_SAD_HI.wav": ("sadness", "1091"),
        "AudioWAV/1040_ITH_SAD_X.wav": ("sadness", "1040"),
    },
    "tess": {
        "OAF_angry/OAF_back_angry.wav": ("anger", "OA"),
        "OAF_Pleasant_surprise/OAF_back_ps.wav": ("surprise", "OA"),
        "OAF_neutral/OA_bite_neutral.wav": ("neutral", "OA"),
        "YAF_sad/YAF_youth_sad.wav": ("sadness", "YA"),
    },
    "savee": {
        "AudioData/DC/a01.wav": ("anger", "DC"),
        "AudioData/DC/sa01.wav": ("sadness", "DC"),
        "AudioData/KL/su15.wav": ("surprise", "KL"),
        "AudioData/JK/n30.wav": ("neutral", "JK"),
    },
    "emovo": {
        "EMOVO/f1/gio-f1-b1.wav": ("happiness", "f1"),
        "EMOVO/m3/rab-m3-n5.wav": ("anger", "m3"),
        "EMOVO/m2/tri-m2-d2.wav": ("sadness", "m2"),
    },
    "nemo": {
        "samples/EB0_anger_1.wav": ("anger", "EB0"),
        "samples/WR0_surprised_59.wav": ("surprise", "WR0"),
    },
    "ased": {
        "01Neutral/n1-01-01-01-01.wav": ("neutral", "01"),
        "05Angry/a5-06-01-01-23.wav": ("anger", "23"),
    },
}


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def load(source, **options) -> Dataset:
    return load_corpus(str(source), **{"min_class_size": 1, **options})


def labels_of(dataset: Dataset) -> list[str]:
    return [dataset.features["label"].names[label] for label in dataset["label"]]


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("extension", [".wav", ".ogg"])
def test_a_corpus_is_recognised_and_read_by_its_file_names(name, extension, tmp_path):
    tree = {str(Path(file).with_suffix(extension)): what for file, what in TREES[name].items()}
    touch(tmp_path / "download", *tree, "README.txt")
    dataset = load(tmp_path / "download")
    found = zip(dataset["audio"], labels_of(dataset), dataset["speaker"], strict=True)
    rows = {str(Path(audio).relative_to(tmp_path / "download")): what for audio, *what in found}
    assert rows == {file: [emotion, f"{name}_{speaker}"] for file, (emotion, speaker) in tree.items()}
    assert set(dataset["corpus"]) == {name}
    assert set(dataset["language"]) == {CORPORA[name].language}


def make_iemocap(root: Path) -> Path:
    turns = {"Ses01F_impro01_F000": "neu", "Ses01F_impro01_M000": "exc", "Ses01F_impro01_F001": "xxx"}
    dialog = root / "Session1" / "dialog"
    for folder in ("EmoEvaluation", "transcriptions"):
        (dialog / folder).mkdir(parents=True)
    lines = [
        f"[6.2901 - 8.2357]\t{turn}\t{emotion}\t[2.5, 2.5, 2.5]\nC-E1:\tNeutral;\t()\n"
        for turn, emotion in turns.items()
    ]
    (dialog / "EmoEvaluation" / "Ses01F_impro01.txt").write_text("% [START_TIME - END_TIME] …\n\n" + "\n".join(lines))
    (dialog / "EmoEvaluation" / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    (dialog / "transcriptions" / "Ses01F_impro01.txt").write_text(
        "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\nSes01F_impro01_M000 [007.5712-010.4750]: Your forms?\n"
    )
    return touch(root, *(f"Session1/sentences/wav/Ses01F_impro01/{turn}.wav" for turn in turns))


def test_iemocap_is_read_from_its_evaluations_and_transcriptions(tmp_path):
    dataset = load(make_iemocap(tmp_path))
    assert labels_of(dataset) == ["neutral", "excitement"]
    assert dataset["speaker"] == ["iemocap_Ses01F", "iemocap_Ses01M"]
    assert list(dataset["text"]) == ["Excuse me.", "Your forms?"]


def test_iemocap_excitement_is_happiness_among_four_emotions(tmp_path):
    assert labels_of(load(make_iemocap(tmp_path), label_scheme="four_emotions")) == ["neutral", "happiness"]


def make_msp_podcast(root: Path) -> Path:
    rows = [
        ("MSP-PODCAST_0001_0008.wav", "N", "127", "Train"),
        ("MSP-PODCAST_0001_0019.wav", "X", "127", "Train"),
        ("MSP-PODCAST_0002_0033.wav", "H", "Unknown", "Test1"),
    ]
    columns = ("FileName", "EmoClass", "SpkrID", "Split_Set")
    write_table(root / "Labels" / "labels_consensus.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    return touch(root, *(f"Audios/{name}" for name, *_ in rows))


def test_msp_podcast_is_read_from_its_consensus_labels(tmp_path):
    dataset = load(make_msp_podcast(tmp_path))
    assert labels_of(dataset) == ["neutral", "happiness"]
    assert dataset["speaker"] == ["msppodcast_127", "msppodcast_Unknown"]
    assert labels_of(load(tmp_path, split="Test1")) == ["happiness"]


def make_meld(root: Path, extension: str = ".wav") -> Path:
    def row(text, speaker, emotion):
        return {
            "Utterance": text,
            "Speaker": speaker,
            "Emotion": emotion,
            "Dialogue_ID": 0,
            "Utterance_ID": 0,
        }

    write_table(root / "train_sent_emo.csv", [row("Oh my God!", "Chandler", "surprise")])
    write_table(root / "dev_sent_emo.csv", [row("Hi.", "Monica", "joy")])
    write_table(root / "test_sent_emo.csv", [row("No.", "Chandler", "anger")])
    folders = ("train_splits", "dev_splits_complete", "output_repeated_splits_test")
    return touch(root, *(f"{folder}/dia0_utt0{extension}" for folder in folders))


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


@pytest.mark.parametrize("name", ["emodb", "ravdess", "nemo", "ased"])
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


# --- anybody's recordings


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


ROWS = [
    {"file_name": "a.wav", "emotion": "Happy", "speaker": "x", "text": "Good morning."},
    {"file_name": "b.wav", "emotion": "sad", "speaker": "y", "text": ""},
]


def write_manifest(path: Path, rows: list[dict] = ROWS) -> Path:
    touch(path.parent, *(row["file_name"] for row in rows if row.get("file_name")))
    if path.suffix in (".csv", ".tsv"):
        return write_table(path, rows, "\t" if path.suffix == ".tsv" else ",")
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    return path


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


# --- labels


def test_classes_of_a_scheme_are_fixed_whatever_the_corpus_has(tmp_path):
    touch(tmp_path, "anger/1.wav", "boredom/1.wav")
    assert load(tmp_path, label_scheme="four_emotions").features["label"].names == list(SCHEMES["four_emotions"])
    assert labels_of(load(tmp_path, label_scheme="arousal")) == ["high", "low"]


def test_rows_outside_the_scheme_are_dropped_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    touch(tmp_path, "anger/1.wav", "boredom/1.wav", "boredom/2.wav")
    assert len(load(tmp_path, label_scheme="four_emotions")) == 1
    assert "2 recordings outside four_emotions dropped: {'boredom': 2}" in caplog.text


def test_an_unknown_emotion_is_a_class_under_native_and_an_error_under_a_scheme(tmp_path):
    touch(tmp_path, "anger/1.wav", "saddness/1.wav")
    assert load(tmp_path).features["label"].names == ["anger", "saddness"]
    with pytest.raises(LabelError, match="'saddness' .* did you mean 'sadness'"):
        load(tmp_path, label_scheme="four_emotions")


def test_an_unknown_scheme_is_an_error_that_lists_the_known(tmp_path):
    with pytest.raises(LabelError, match="native, four_emotions, arousal, valence"):
        load(tmp_path, label_scheme="five_emotions")


def test_every_emotion_of_the_table_fits_the_schemes():
    for row in EMOTIONS.values():
        for label, names in zip(row, SCHEMES.values(), strict=True):
            assert label is None or label in names


def test_aliases_are_unambiguous_and_spelling_of_case_and_hyphens_does_not_matter():
    words = [word for emotion, words in ALIASES.items() for word in (emotion, *words)]
    assert len(words) == len(set(words))
    assert canonical_emotion(" Pleasant_Surprise ") == canonical_emotion("pleasant-surprise") == "surprise"
    assert label_under_scheme("Angry", "valence") == "negative"


def test_every_declared_label_is_an_emotion_of_the_table():
    for corpus in CORPORA.values():
        assert set(corpus.labels.values()) <= {*EMOTIONS, None}
        assert bool(corpus.pattern) != bool(corpus.read)
        assert corpus.homepage and corpus.licence and re.fullmatch("[a-z]{2}", corpus.language)


# --- what is wrong is named


@pytest.mark.parametrize(
    "source",
    ["../nowhere/at/all", "emodb=nowhere/at/all", "/nowhere", "tests/nowhere", "emodb=tests/nowhere"],
)
def test_a_missing_folder_is_named_without_asking_the_hub(source, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(CorpusError, match="nowhere.* does not exist"):
        load_corpus(source)


def test_an_empty_corpus_says_what_was_expected_and_what_is_there(tmp_path):
    touch(tmp_path, "docs/erkennung.txt")
    with pytest.raises(CorpusError, match=r"no recording of emodb.*expected names like.*docs/erkennung\.txt"):
        load_corpus(f"emodb={tmp_path}")
    with pytest.raises(CorpusError, match=r"no audio in .*class folders.*docs/erkennung\.txt"):
        load_corpus(str(tmp_path))


def test_recordings_without_a_label_are_named(tmp_path):
    with pytest.raises(CorpusError, match="have no label, such as 1.wav"):
        load(touch(tmp_path, "1.wav", "anger/2.wav"))


def test_a_class_of_one_recording_is_named_with_its_file(tmp_path):
    touch(tmp_path, "anger/1.wav", "anger/2.wav", "fear/only.wav")
    with pytest.raises(CorpusError, match="'fear' .* has 1 recording .*only.wav"):
        load_corpus(str(tmp_path))


def test_nothing_left_under_a_scheme_is_an_error(tmp_path):
    touch(tmp_path, "boredom/1.wav", "boredom/2.wav")
    with pytest.raises(CorpusError, match="no recording under 'four_emotions'"):
        load_corpus(str(tmp_path), label_scheme="four_emotions")


def test_a_split_that_a_corpus_does_not_have_is_an_error(tmp_path):
    touch(tmp_path, *TREES["emodb"])
    with pytest.raises(CorpusError, match="no official splits"):
        load(tmp_path, split="test")
    with pytest.raises(CorpusError, match="train, dev, test"):
        load(make_meld(tmp_path / "meld"), split="Train")


def test_a_link_back_up_does_not_go_round_for_ever(tmp_path):
    touch(tmp_path, "anger/1.wav")
    (tmp_path / "anger" / "up").symlink_to(tmp_path)
    assert len(load(tmp_path)) == 1


# --- several corpora


def test_corpora_of_different_classes_unite_theirs(tmp_path):
    one = load(touch(tmp_path / "one", "anger/1.wav", "fear/1.wav"))
    two = load(touch(tmp_path / "two", "boredom/1.wav", "anger/1.wav"))
    both = concatenate_corpora([one, two])
    assert both.features["label"].names == ["anger", "boredom", "fear"]
    assert sorted(labels_of(both)) == sorted(labels_of(one) + labels_of(two))
    assert both.column_names == one.column_names


def test_corpora_on_disk_and_from_the_hub_can_be_joined(tmp_path, monkeypatch):
    rows = {"audio": [{"bytes": b"RIFF", "path": "a.wav"}], "emotion": ["angry"]}
    monkeypatch.setattr(manifests, "load_dataset", lambda name, split=None: Dataset.from_dict(rows))
    local = load(touch(tmp_path, "anger/1.wav"))
    joined = concatenate_corpora([local, load("somebody/emotions")])
    assert joined[0]["audio"]["path"] == local[0]["audio"]
    assert joined[1]["audio"]["bytes"] == b"RIFF"


def test_usual_column_names_are_found_in_their_order():
    assert manifests._find_columns(["label", "emotion", "path"], ("audio", None, None), "here")[:2] == (
        "path",
        "emotion",
    )
