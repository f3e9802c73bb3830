"""Splits that never share a speaker: a model that has heard the test speakers is measured too well."""

import re
from collections.abc import Mapping

import numpy as np
from datasets import Dataset
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

from .catalogue import CORPORA
from .given_splits import is_split, role_of_split
from .recordings import UNKNOWN_SPEAKER

N_DRAWS = 200  # of held-out speakers; more changes little: 2 of 10 speakers are 45 draws, 3 are 120
FEW_SPEAKERS = 12  # up to here each speaker is left out once: EMO-DB has 10, nEMO 9, IEMOCAP 10


class SplitError(ValueError):
    """A split that cannot be made, or would share a speaker; the message says what to do."""


def split_by_speaker(
    dataset: Dataset, fraction: float, seed: int = 0, allow_shared_speakers: bool = False
) -> tuple[Dataset, Dataset]:
    """Splits off about `fraction` of the speakers: (the rest, the speakers split off), sharing none.

    Of many seeded draws of whole speakers the one is taken whose classes are nearest to `fraction` of each
    class, so that a class with few speakers is on both sides where that is possible. With several corpora
    this is by class and corpus. `allow_shared_speakers` draws single recordings where speakers are unknown
    or only one. Raises SplitError for one speaker, unknown speakers, or a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise SplitError(f"fraction {fraction} is not between 0 and 1")
    groups = _groups(dataset, allow_shared_speakers)
    names, speaker_of_row = np.unique(groups, return_inverse=True)
    strata = _strata(dataset)
    counts = np.zeros((len(names), strata.max() + 1))  # recordings by speaker and stratum
    np.add.at(counts, (speaker_of_row, strata), 1)
    target = fraction * counts.sum(0)
    n_held_out = min(max(round(fraction * len(names)), 1), len(names) - 1)
    generator = np.random.default_rng(seed)
    draws = [generator.permutation(len(names))[:n_held_out] for _ in range(N_DRAWS)]

    def badness(draw: np.ndarray) -> tuple[int, float]:
        size = counts[draw].sum(0)
        n_one_sided = int(((size == 0) | (size == counts.sum(0))).sum())
        # Relative to the target, so that a rare class weighs as much as a frequent one.
        return n_one_sided, float((np.abs(size - target) / target).sum())

    held_out = min(draws, key=badness)
    is_held_out = np.isin(speaker_of_row, held_out)
    return _rows(dataset, ~is_held_out), _rows(dataset, is_held_out)


def fold_indices(
    dataset: Dataset, n_folds: int | None = None, seed: int = 0, allow_shared_speakers: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers (training, test) of each fold; every speaker is tested in exactly one fold.

    n_folds None: as many as there are speakers up to FEW_SPEAKERS, else 5. One speaker is left out per fold
    where folds are as many as speakers; else classes are spread over folds as evenly as whole speakers allow
    (scikit-learn's StratifiedGroupKFold).
    Raises SplitError for one speaker, unknown speakers, or fewer than two folds.
    """
    if n_folds is not None and n_folds < 2:
        raise SplitError(f"{n_folds} folds: at least two are needed, so that no recording is trained and tested on")
    groups = _groups(dataset, allow_shared_speakers)
    labels = np.asarray(dataset["label"])
    n_speakers = len(set(groups))
    if n_folds is None:
        n_folds = n_speakers if n_speakers <= FEW_SPEAKERS else 5
    if n_folds >= n_speakers:
        splitter = LeaveOneGroupOut()
    else:
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = list(splitter.split(labels, labels, groups))
    return [(train, test) for train, test in folds if len(test) and len(train)]


def by_given_splits(dataset: Dataset, names: Mapping[str, str | None]) -> dict[str, Dataset]:
    """The parts "train", "validation" and "test" that the corpora themselves give; without "test", none at all.

    names: of the split for each part, where it is not to be found by its usual names. Corpora that give no splits are
    trained on, and splits of other names are left out.
    Raises SplitError for a name that no recording's split has.
    """
    given = dataset["split"]
    roles = np.array([_role(split, names) for split in given])
    for part, name in names.items():
        if name and part not in roles:
            known = ", ".join(dict.fromkeys(split for split in given if split)) or "none"
            raise SplitError(f"no recording is in split {name!r} ({part}); the splits are: {known}")
    parts = {part: _rows(dataset, roles == part) for part in ("train", "validation", "test") if part in roles}
    return parts if {"train", "test"} <= parts.keys() else {}


def _role(split: str | None, names: Mapping[str, str | None]) -> str:
    for part, name in names.items():
        if split and name and split.lower() == name.lower():
            return part
    for part, name in names.items():
        if split and name and is_split(split, name):
            return part
    role = role_of_split(split)
    if role is not None and names.get(role):  # another split than the one named for it
        return "left out"
    return role or ("left out" if split else "train")


def assert_no_shared_speaker(*datasets: Dataset, allow_shared_speakers: bool = False) -> None:
    """Raises SplitError, naming the speakers, where two of the datasets share any, unless that is allowed.

    Recordings of one corpus on both sides whose speakers nobody knows count as shared.
    """
    if allow_shared_speakers:
        return
    for place, dataset in enumerate(datasets):
        for other in datasets[place + 1 :]:
            shared = sorted(_speakers_or_corpora(dataset) & _speakers_or_corpora(other))
            if shared:
                raise SplitError(
                    f"{len(shared)} speakers are on both sides of the split ({', '.join(shared[:5])}): "
                    "results would be too good. Split by speaker, or set allow_shared_speakers if you mean it"
                )


def _speakers_or_corpora(dataset: Dataset) -> set[str]:
    rows = zip(dataset["speaker"], dataset["corpus"], strict=True)
    return {f"unknown speakers of {corpus}" if UNKNOWN_SPEAKER in speaker else speaker for speaker, corpus in rows}


def _groups(dataset: Dataset, allow_shared_speakers: bool) -> list[str]:
    speakers = list(dataset["speaker"])
    unknown = sum(UNKNOWN_SPEAKER in speaker for speaker in speakers)
    if allow_shared_speakers:
        return [str(row) for row in range(len(speakers))] if unknown or len(set(speakers)) < 2 else speakers
    if unknown:
        raise SplitError(
            f"nobody says who speaks in {unknown} of {len(speakers)} recordings of {_corpora(dataset)}: "
            "no split keeps speakers apart. Add a speaker column, or set allow_shared_speakers to split by "
            "recording"
        )
    speakers = [_session(speaker, corpus) for speaker, corpus in zip(speakers, dataset["corpus"], strict=True)]
    if len(set(speakers)) < 2:
        raise SplitError(
            f"{_corpora(dataset)} has {len(set(speakers))} speaker ({', '.join(set(speakers))}), and two are "
            "needed to split: add speakers, test on another corpus, or set allow_shared_speakers to split by "
            "recording"
        )
    return speakers


def _session(speaker: str, corpus: str) -> str:
    """What must stay on one side of a split: the speaker, or in some corpora the session with its other speakers."""
    session = CORPORA[corpus].session if corpus in CORPORA else None
    found = session and re.match(rf"{corpus}_{session}", speaker)
    return found.group() if found else speaker


def _corpora(dataset: Dataset) -> str:
    return ", ".join(sorted(set(dataset["corpus"]))) if len(dataset) else "an empty dataset"


def _strata(dataset: Dataset) -> np.ndarray:
    pairs = list(zip(dataset["corpus"], dataset["label"], strict=True))
    order = {pair: place for place, pair in enumerate(sorted(set(pairs)))}
    return np.asarray([order[pair] for pair in pairs])


def _rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    return dataset.select(np.flatnonzero(rows) if rows.dtype == bool else rows)
