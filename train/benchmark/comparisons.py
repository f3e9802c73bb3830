"""Figures over several cells of a benchmark: means, paired differences, corruption errors."""

from collections.abc import Callable, Sequence

import numpy as np

from train.evaluation.metrics import paired_bootstrap_difference, uar_of, wa_of
from train.evaluation.report import interval_entry

from .runner import Cell

NOISE_SNR_DB = (10, 0)  # the two levels of recorded noise at which robustness is judged


def _of(protocol: str) -> Callable[[Cell], bool]:
    return lambda cell: cell.protocol == protocol


def _noise(cell: Cell) -> bool:
    return cell.condition.startswith("noise_") and (cell.setting or {}).get("snr_db") in NOISE_SNR_DB


OVER: dict[str, Callable[[Cell], bool]] = {
    "clean": _of("clean"),
    "noise at 10 and 0 dB": _noise,
    "all corruptions": _of("corruption"),
    "cross-corpus": _of("cross_corpus"),
    "leave-one-corpus-out": _of("leave_one_corpus_out"),
}


def groups_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """One model's cells by what is averaged: each of `OVER`, and the same for each corpus as "name: corpus"."""
    groups = {name: [cell for cell in cells if belongs(cell)] for name, belongs in OVER.items()}
    groups = {name: found for name, found in groups.items() if found}
    single: dict[str, list[Cell]] = {}
    for name, found in groups.items():
        for cell in found:
            corpus = f"{'+'.join(cell.train)} → {cell.test}" if name == "cross-corpus" else cell.test
            single.setdefault(f"{name}: {corpus}", []).append(cell)
    return groups | single


def noise_levels_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """One model's cells by SNR: "noise: 10 dB" over all recorded sources, "gaussian: 10 dB"."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        kind = cell.condition.split("_")[0]
        if kind in ("noise", "gaussian"):
            groups.setdefault(f"{kind}: {cell.setting['snr_db']} dB", []).append(cell)
    return groups


def summaries(cells: Sequence[Cell]) -> list[dict]:
    """Mean UAR of each model over each group, with an interval from resampling the speakers of all its corpora."""
    entries = []
    for model, own in _by_model(cells).items():
        for over, found in (groups_of(own) | noise_levels_of(own)).items():
            counts, strata = _counts([cell.predictions for cell in found], [cell.test for cell in found])
            mean = interval_entry(mean_uar, counts, strata=strata)
            entries.append(_entry(model, over, found, counts) | {"mean": mean})
    return entries


def comparisons(cells: Sequence[Cell], baseline: str) -> list[dict]:
    """Each other model less the baseline over each group, on the recordings that both predicted."""
    by_model = _by_model(cells)
    theirs = {_pair_key(cell): cell for cell in by_model.get(baseline, [])}
    entries = []
    for model, own in by_model.items():
        if model == baseline:
            continue
        for over, found in groups_of(own).items():
            pairs = [(cell, theirs[_pair_key(cell)]) for cell in found if _pair_key(cell) in theirs]
            pairs = [_common(cell.predictions, other.predictions) + (cell,) for cell, other in pairs]
            pairs = [pair for pair in pairs if len(pair[0])]
            if len(pairs) < len(found):  # a mean over fewer cells would be another figure under the same name
                continue
            tests = [cell.test for *_, cell in pairs]
            counts, strata = _counts([pair[0] for pair in pairs], tests)
            other_counts, _ = _counts([pair[1] for pair in pairs], tests)
            difference = _difference(counts, other_counts, strata)
            entries.append(_entry(model, over, found, counts) | {"baseline": baseline, "difference": difference})
    return entries


def corruption_errors(cells: Sequence[Cell], baseline: str) -> list[dict]:
    """RobuSER's corruption error and relative corruption error of each model, percent of the baseline's.

    CE = 100 × Σ_levels error / Σ_levels baseline's error; relative CE the same with the error on clean speech
    subtracted from each; error = 1 − WA, and 1 − UAR in the fields that say so. With several corpora each error is
    first averaged over them. Errors are counted on the recordings that both predicted.
    """
    by_model = _by_model(cells)
    entries = []
    conditions = list(dict.fromkeys(cell.condition for cell in cells if cell.protocol == "corruption"))
    for model, own in by_model.items():
        for condition in conditions:
            pair = _paired_errors(own, by_model.get(baseline, []), condition)
            if pair is None:
                continue
            entry = {"model": model, "baseline": baseline, "condition": condition, "tests": pair[0]["tests"]}
            for suffix, figure in (("", "wa"), ("_uar", "uar")):
                (noisy, clean), (their_noisy, their_clean) = pair[0][figure], pair[1][figure]
                entry[f"ce{suffix}"] = _ratio(noisy.sum(), their_noisy.sum())
                entry[f"relative_ce{suffix}"] = _ratio((noisy - clean).sum(), (their_noisy - their_clean).sum())
            entries.append(entry)
    return entries


def mean_uar(counts: np.ndarray) -> np.ndarray:
    """Of confusion matrices (..., cells, C, C), over the cells."""
    return uar_of(counts).mean(-1)


# --- how --------------------------------------------------------------------------------------------


def _by_model(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.model, []).append(cell)
    return found


def _entry(model: str, over: str, cells: Sequence[Cell], counts: np.ndarray) -> dict:
    return {"model": model, "over": over, "metric": "uar", "n_cells": len(cells), "n_speakers": len(counts)}


def _pair_key(cell: Cell) -> tuple:
    train = cell.train if cell.protocol == "cross_corpus" else ()
    return cell.protocol, train, cell.test, cell.condition, cell.level


def _common(predictions, others):
    """Both models' predictions for the recordings that both predicted, in the same order."""
    shared, own_rows, other_rows = np.intersect1d(predictions.names, others.names, return_indices=True)
    return (predictions.rows(own_rows), others.rows(other_rows)) if len(shared) else ([], [])


def _counts(predictions: Sequence, tests: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Confusion matrices (speakers, cells, C, C) over the speakers of all cells, and each speaker's corpus."""
    found = [part.confusion() for part in predictions]
    places: dict[tuple[str, str], int] = {}
    for (_, speakers), test in zip(found, tests, strict=True):
        for speaker in speakers:
            places.setdefault((test, speaker), len(places))
    counts = np.zeros((len(places), len(found), *found[0][0].shape[1:]))
    for cell, ((confusion, speakers), test) in enumerate(zip(found, tests, strict=True)):
        counts[[places[test, speaker] for speaker in speakers], cell] = confusion
    return counts, [test for test, _ in places]


def _difference(counts: np.ndarray, other_counts: np.ndarray, strata: Sequence[str]) -> dict:
    if len(counts) < 2:
        value = float(mean_uar(counts.sum(0)) - mean_uar(other_counts.sum(0)))
        return {"value": value, "low": None, "high": None}
    interval = paired_bootstrap_difference(mean_uar, counts, other_counts, strata)
    return dict(zip(("value", "low", "high"), interval, strict=True))


def _paired_errors(own: Sequence[Cell], theirs: Sequence[Cell], condition: str) -> list[dict] | None:
    """Two models' errors: {"wa": (noisy by level, clean), "uar": …}, averaged over corpora; None where cells lack."""
    of_baseline = {_pair_key(cell): cell for cell in theirs}
    tests = sorted({cell.test for cell in own if cell.condition == condition})
    cells = [cell for cell in own if cell.test in tests and (cell.condition == condition or cell.protocol == "clean")]
    levels = sorted({cell.level for cell in cells if cell.level})
    if not tests or len(cells) < len(tests) * (1 + len(levels)):
        return None
    if any(_pair_key(cell) not in of_baseline for cell in cells):
        return None
    both = [(cell.level, *_common(cell.predictions, of_baseline[_pair_key(cell)].predictions)) for cell in cells]
    if not all(len(predictions) for _, predictions, _ in both):
        return None
    found: list[dict] = [{"tests": tests}, {"tests": tests}]
    for side, errors in enumerate(found, start=1):
        for name, figure in (("wa", wa_of), ("uar", uar_of)):
            by_level: dict = {}
            for part in both:
                by_level.setdefault(part[0], []).append(1 - figure(part[side].confusion()[0].sum(0)))
            noisy = np.array([np.mean(by_level[level]) for level in levels])
            errors[name] = noisy, np.mean(by_level[None])
    return found


def _ratio(own: float, theirs: float) -> float | None:
    """Percent; None where the baseline makes no (more) errors, so that there is nothing to be a part of."""
    return float(100 * own / theirs) if theirs > 1e-9 else None
