"""Corpora as their downloads lie on disk, for tests of what reads them."""

import csv
import json
from pathlib import Path

from datasets import Dataset

from train.data.corpora import load_corpus

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


def make_iemocap(root: Path) -> Path:
    turns = {"Ses01F_impro01_F000": "neu", "Ses01F_impro01_M000": "exc", "Ses01F_impro01_F001": "xxx"}
    dialog = root / "Session1" / "dialog"
    for folder in ("EmoEvaluation", "transcriptions"):
        (dialog / folder).mkdir(parents=True)
    lines = [
        f"[6.2901 - 8.2357]\t{turn}\t{emotion}\t[2.5, 3.0000, 3.5]\nC-E1:\tNeutral;\t()\nC-F1:\tNeutral;\t()\n"
        for turn, emotion in turns.items()
    ]
    (dialog / "EmoEvaluation" / "Ses01F_impro01.txt").write_text("% [START_TIME - END_TIME] …\n\n" + "\n".join(lines))
    (dialog / "EmoEvaluation" / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    (dialog / "transcriptions" / "Ses01F_impro01.txt").write_text(
        "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\nSes01F_impro01_M000 [007.5712-010.4750]: Your forms?\n"
    )
    return touch(root, *(f"Session1/sentences/wav/Ses01F_impro01/{turn}.wav" for turn in turns))


def make_msp_podcast(root: Path) -> Path:
    rows = [
        ("MSP-PODCAST_0001_0008.wav", "N", "2.2", "4.0", "3.6", "127", "Train"),
        ("MSP-PODCAST_0001_0019.wav", "X", "5.8", "2.4", "5.5", "127", "Train"),
        ("MSP-PODCAST_0002_0033.wav", "H", "4.6", "5.2", "4.8", "Unknown", "Test1"),
    ]
    columns = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Split_Set")
    write_table(root / "Labels" / "labels_consensus.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    return touch(root, *(f"Audios/{name}" for name, *_ in rows))


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
