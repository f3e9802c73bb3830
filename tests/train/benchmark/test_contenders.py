"""What contenders are given: statistics by corpus and condition, and noisy copies linked to their originals."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset

from train.benchmark import contenders
from train.benchmark.contenders import BenchmarkData, condition_key


class Cache:
    """Statistics that tell which recording, condition or copy they are of; counts what is asked for."""

    def __init__(self):
        self.asked = []

    def chunks(self, audio, condition=None, keys=None, title=""):
        copy = int(keys[0].rpartition("#")[2]) + 1 if keys else 0
        self.asked.append((tuple(audio), condition_key(condition)))
        return [100.0 * copy + float(path.split("/")[-1]) for path in audio]

    def joined(self, chunks):
        return torch.tensor(chunks)[:, None, None]


class Noise:
    fingerprint = "noise"


@pytest.fixture
def data():
    def corpus(name, numbers):
        rows = {"audio": [f"{name}/{number}" for number in numbers], "label": [n % 2 for n in numbers]}
        rows |= {"speaker": [f"{name}_{n}" for n in numbers], "corpus": [name] * len(numbers)}
        return Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["anger", "neutral"]))

    return BenchmarkData({"a": corpus("a", [1, 2, 3]), "b": corpus("b", [4, 5])}, Cache(), Noise())


def test_copies_follow_their_originals_in_the_same_order(data):
    found = data.embeddings({"a": np.array([2, 0]), "b": np.array([1])}, noisy_copies=2)
    assert found.layer_statistics.flatten().tolist() == [3, 1, 5, 103, 101, 105, 203, 201, 205]
    assert found.labels.tolist() == [1, 1, 1] * 3 and found.speakers == ["a_3", "a_1", "b_5"] * 3
    assert found.clean_rows.tolist() == [0, 1, 2] * 3 and found.corpora == ["a", "a", "b"] * 3


def test_what_was_read_last_is_held_and_what_does_not_fit_is_read_again(data, monkeypatch):
    data.statistics("a")
    data.statistics("a")
    assert len(data.cache.asked) == 1
    data.statistics("a", Noise())
    assert len(data.cache.asked) == 2
    monkeypatch.setattr(contenders, "HELD_IN_MEMORY", 1)
    data.statistics("b")
    data.statistics("a")
    assert len(data.cache.asked) == 4
