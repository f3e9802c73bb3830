"""Ratings of attributes (arousal, valence …): which columns of a table hold them, and the ends of their scales."""

import math
from collections.abc import Mapping, Sequence

from datasets import Dataset

from .catalogue import CORPORA
from .recordings import CorpusError, column_key, is_nothing

# Usual names of columns; an attribute of another name is looked for under its own.
RATING_COLUMNS = {
    "arousal": ("arousal", "activation", "emo_act", "act"),
    "valence": ("valence", "emo_val", "val"),
    "dominance": ("dominance", "emo_dom", "dom"),
}


def find_ratings(names: Sequence[str], attributes: Sequence[str]) -> dict[str, str]:
    """The column of each attribute among a table's, as far as there is one."""
    by_key = {column_key(name): name for name in reversed(names) if name}
    found = {}
    for attribute in attributes:
        usual = map(column_key, (attribute, *RATING_COLUMNS.get(attribute, ())))
        column = next((by_key[key] for key in usual if key in by_key), None)
        found |= {attribute: column} if column else {}
    return found


def ratings_of(row: Mapping, columns: Mapping[str, str], where: str) -> dict[str, float]:
    """A row's ratings, without those that are missing. Raises CorpusError for one that is no number."""
    found = {}
    for attribute, column in columns.items():
        if is_nothing(row.get(column)):
            continue
        try:
            found[attribute] = float(str(row[column]).replace(",", "."))
        except ValueError:
            found[attribute] = math.inf
        if not math.isfinite(found[attribute]):
            raise CorpusError(f"{where}: {column} {row[column]!r} is no number; leave it empty where nobody rated")
    return found


def attributes_of(dataset) -> list[str]:
    """The attributes that a dataset of `load_corpus` has columns for: its only numbers that are no ids."""
    features = getattr(dataset, "features", None) or {}
    return [name for name, feature in features.items() if getattr(feature, "dtype", None) == "float32"]


def scales_of(dataset: Dataset) -> dict[str, list[float]]:
    """The ends of each attribute's scale: those of the corpora that declare one, else the extremes of the ratings.

    Raises CorpusError: an attribute that nobody rated, or corpora that rate it on different scales.
    """
    found = {}
    for attribute in attributes_of(dataset):
        rated = {corpus: [] for corpus in dict.fromkeys(dataset["corpus"])}
        for corpus, rating in zip(dataset["corpus"], dataset[attribute], strict=True):
            if not math.isnan(rating):
                rated[corpus].append(rating)
        rated = {corpus: ratings for corpus, ratings in rated.items() if ratings}
        if not rated:
            raise CorpusError(f"no recording to train on has a rating of {attribute}: leave it out of --attributes")
        found[attribute] = _scale(attribute, rated)
    return found


def _scale(attribute: str, rated: Mapping[str, list[float]]) -> list[float]:
    declared = {name: CORPORA[name].scale for name in rated if name in CORPORA and CORPORA[name].scale}
    if len(set(declared.values())) > 1:
        scales = ", ".join(f"{name} from {low:g} to {high:g}" for name, (low, high) in declared.items())
        raise CorpusError(f"corpora rate {attribute} on different scales ({scales}): bring them to one in a manifest")
    if declared:
        return list(map(float, next(iter(declared.values()))))
    every = [rating for ratings in rated.values() for rating in ratings]
    low, high = min(every), max(every)
    return [low, high] if low < high else [low - 1, low + 1]
