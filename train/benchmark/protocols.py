"""Who is trained on and who is tested: speaker-independent folds, corpus against corpus, and leave-one-corpus-out.

EmoBox's public folds and balanced cross-corpus lists (Ma et al. 2024) can be given as files in their place.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from train.data.emotions import canonical_emotion
from train.data.files import fingerprint
from train.data.recordings import CorpusError, recording_names
from train.data.splits import SplitError, fold_indices, split_by_speaker

logger = logging.getLogger(__name__)

PROTOCOLS = ("clean", "corruption", "cross_corpus", "leave_one_corpus_out")
LISTED_FILE = ("wav", "wav_filename", "audio", "key")  # what EmoBox's files call a recording, first found wins


@dataclass(frozen=True)
class Trial:
    """One training and its tests: rows by corpus. `fold` None: the whole of each test corpus."""

    protocol: str  # "folds", "cross_corpus" or "leave_one_corpus_out"
    train: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]  # of other speakers than train and test; may be empty
    tests: Mapping[str, np.ndarray]
    fold: int | None = None
    folds: dict | None = field(default=None)  # for the report: how many, from where, shared speakers

    @property
    def title(self) -> str:
        fold = f", fold {self.fold}" if self.fold is not None else ""
        return f"{'+'.join(self.train) or 'trained before'} → {'+'.join(self.tests)}{fold}"


def plan(
    corpora: Mapping[str, Dataset],
    protocols: Sequence[str],
    n_folds: int | None = None,
    given_folds: Mapping[str, list] | None = None,
    test_rows: Mapping[str, np.ndarray] | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> tuple[list[Trial], list[dict]]:
    """All trials that the protocols ask for, and an error (as in a report) for each that cannot be.

    Args:
        corpora: by name, as `load_corpus` gives them, labels of one scheme.
        n_folds: see `splits.fold_indices`; `given_folds`: [(training rows, test rows)] by corpus, instead.
        test_rows: the rows of a corpus that cross-corpus and leave-one-corpus-out tests use; default: all.
        validation_fraction: share of the training speakers held out for early stopping and temperature.
    """
    trials, errors = [], []
    everything = {name: np.arange(len(dataset)) for name, dataset in corpora.items()}
    tested = everything | dict(test_rows or {})

    def add(protocol, train, tests, fold=None, folds=None):
        train, validation = _hold_out(corpora, train, validation_fraction, seed)
        trials.append(Trial(protocol, train, validation, tests, fold, folds))

    if {"clean", "corruption"} & set(protocols):
        for name, dataset in corpora.items():
            try:
                given = (given_folds or {}).get(name)
                found = given if given is not None else fold_indices(dataset, n_folds, seed)
            except SplitError as error:
                errors.append({"model": "all recipes", "protocol": "clean", "test": name, "error": str(error)})
                continue
            about = {"count": len(found), "given": given is not None, "shared_speakers": _shared(dataset, found)}
            for number, (train, test) in enumerate(found, start=1):
                add("folds", {name: train}, {name: test}, number, about)
    if "cross_corpus" in protocols:
        for name in corpora:
            tests = {other: rows for other, rows in tested.items() if other != name}
            if tests:
                add("cross_corpus", {name: everything[name]}, tests)
    if "leave_one_corpus_out" in protocols and len(corpora) > 1:
        for name in corpora:
            train = {other: rows for other, rows in everything.items() if other != name}
            add("leave_one_corpus_out", train, {name: tested[name]})
    return trials, errors


def _hold_out(corpora, train: Mapping[str, np.ndarray], fraction: float, seed: int):
    """Splits training rows by speaker into (training, validation); all for training where that cannot be."""
    numbered = [corpora[name].select(rows).add_column("row", rows) for name, rows in train.items()]
    united = concatenate_datasets([part.select_columns(["corpus", "speaker", "label", "row"]) for part in numbered])
    try:
        kept, held_out = split_by_speaker(united, fraction, seed)
    except SplitError as error:
        logger.warning("%s: trained without validation speakers: %s", "+".join(train), error)
        return dict(train), {}
    return _rows_by_corpus(kept), _rows_by_corpus(held_out)


def _rows_by_corpus(dataset: Dataset) -> dict[str, np.ndarray]:
    names, rows = np.array(dataset["corpus"]), np.array(dataset["row"])
    return {name: rows[names == name] for name in dict.fromkeys(names.tolist())}


def _shared(dataset: Dataset, folds) -> int:
    """The most speakers that training and test of one fold have in common; 0 but for some given folds."""
    speakers = np.array(dataset["speaker"])
    return max(len(set(speakers[train]) & set(speakers[test])) for train, test in folds)


# --- fewer recordings ---------------------------------------------------------------------------------


def capped(dataset: Dataset, max_recordings: int | None) -> Dataset:
    """At most that many recordings, the same every time, spread evenly over speakers and classes."""
    if max_recordings is None or len(dataset) <= max_recordings:
        return dataset
    names = recording_names(dataset["audio"])
    cells: dict[tuple, list[int]] = {}
    for row, cell in enumerate(zip(dataset["speaker"], dataset["label"], strict=True)):
        cells.setdefault(cell, []).append(row)
    ranked = []  # each cell's first recording, then each cell's second …
    for cell, rows in cells.items():
        ordered = sorted(rows, key=lambda row: fingerprint(names[row], 64))
        ranked += [(rank, fingerprint(f"{cell} {rank}", 64), row) for rank, row in enumerate(ordered)]
    return dataset.select(sorted(row for _, _, row in sorted(ranked)[:max_recordings]))


# --- folds and lists in files -------------------------------------------------------------------------


def read_folds(folder: str | Path, dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds as EmoBox ships them: fold_<k>/<corpus>_{train,valid,test}_fold_<k>.jsonl; "valid" is trained on.

    Recordings that the files do not list are left out. Some of EmoBox's folds share speakers: see `Trial.folds`.
    Raises CorpusError: no such files, or files that list other recordings.
    """
    folder = Path(folder)
    folds = []
    for part in sorted(folder.glob("fold_*"), key=lambda path: int(path.name.split("_")[-1])):
        k = part.name.split("_")[-1]
        files = {kind: sorted(part.glob(f"*_{kind}_fold_{k}.jsonl")) for kind in ("train", "valid", "test")}
        if not files["train"] or not files["test"]:
            raise CorpusError(f"{part} lacks *_train_fold_{k}.jsonl or *_test_fold_{k}.jsonl.")
        train = [read_list(file, dataset) for file in files["train"] + files["valid"]]
        folds.append((np.unique(np.concatenate(train)), read_list(files["test"][0], dataset)))
    if not folds:
        raise CorpusError(f"{folder} has no folder fold_1; give EmoBox's data/<corpus>, or leave these folds out.")
    return folds


def read_list(file: str | Path, dataset: Dataset) -> np.ndarray:
    """Rows of the recordings that a file names: JSON lines with one of `LISTED_FILE`, or names alone.

    Recordings of other emotions than the dataset's are passed over. Raises CorpusError where none is in the dataset.
    """
    entries = [_entry(line) for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    labels = dataset.features["label"].names
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(recording_names(dataset["audio"])):
        for known_as in {name, name.rsplit("/", 1)[-1]}:
            rows_of.setdefault(known_as, []).append(row)
    label_of = [labels[label] for label in dataset["label"]]
    rows = set()
    for name, emotion in entries:
        whole = "/".join(Path(name).with_suffix("").parts[-2:])
        found = rows_of.get(whole) or rows_of.get(whole.rsplit("/", 1)[-1]) or []
        if len(found) > 1:  # MELD's names start again in each split
            found = [row for row in found if emotion is None or label_of[row] == emotion]
        rows.update(found[:1])
    if not rows:
        first = entries[0][0] if entries else "nothing"
        raise CorpusError(
            f"{file} lists {len(entries)} recordings, such as {first}, and none of them is in this corpus, whose first "
            f"is {dataset[0]['audio']}: give the list that belongs to it."
        )
    if len(rows) < len(entries):
        logger.info(
            "%s: %d of %d listed recordings used (others are absent or of other emotions)",
            file,
            len(rows),
            len(entries),
        )
    return np.array(sorted(rows))


def _entry(line: str) -> tuple[str, str | None]:
    """(recording, emotion or None) of one line."""
    if not line.lstrip().startswith("{"):
        return line.strip(), None
    given = json.loads(line)
    name = next((str(given[key]) for key in LISTED_FILE if key in given), "")
    return name, canonical_emotion(str(given.get("emo") or given.get("label") or ""))
