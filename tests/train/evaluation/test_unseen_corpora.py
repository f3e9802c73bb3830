"""Sets that hold on corpora that nobody trained on."""

import numpy as np
import pytest
import torch

from modeling_edrl_mea.embeddings import Embeddings
from modeling_edrl_mea.targets import IGNORED
from train.evaluation.unseen_corpora import right_on_left_out, thresholds_of

COUNT = 80  # recordings of each corpus


def corpus(number: int, size: tuple[int, int], shift: float, speakers: str) -> Embeddings:
    """Four classes along four directions, which in every corpus are turned a little, each in its own way."""
    generator = np.random.default_rng(number)
    directions = np.random.default_rng(99).normal(size=(4, *size)) + shift * generator.normal(size=(4, *size))
    labels = np.arange(COUNT) % 4
    statistics = directions[labels] + 2.5 * generator.normal(size=(COUNT, *size))
    names = [f"{speakers}{number} {row % 8}" for row in range(COUNT)]
    rows = torch.arange(COUNT)
    return Embeddings(
        torch.from_numpy(statistics).float(), torch.from_numpy(labels), names, rows, [f"c{number}"] * COUNT
    )


def united(parts: list[Embeddings]) -> Embeddings:
    joined = [sum((getattr(part, name) for part in parts), []) for name in ("speakers", "corpora")]
    statistics, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("layer_statistics", "labels"))
    return Embeddings(statistics, labels, joined[0], torch.arange(len(labels)), joined[1])


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("linear")


@pytest.fixture(scope="module")
def size(model) -> tuple[int, int]:
    return tuple(model.edrl_mea.speech_embedding.mean.shape)


def data(size, shift: float) -> tuple[Embeddings, Embeddings]:
    return tuple(united([corpus(number, size, shift, part) for number in range(3)]) for part in ("train", "validation"))


def test_one_corpus_has_none_to_leave_out(model, size):
    one = corpus(0, size, 0.0, "train")
    assert right_on_left_out(model, one, one) == []


def test_the_more_corpora_differ_the_lower_the_thresholds(model, size):
    alike, apart = (thresholds_of(model, *data(size, shift)) for shift in (0.0, 3.0))
    assert apart["0.9"] < alike["0.9"] and list(apart) == ["0.5", "0.6", "0.7", "0.8", "0.9", "0.95"]
    assert all(low >= high for low, high in zip(apart.values(), list(apart.values())[1:], strict=False))


def test_each_clean_recording_counts_once_and_its_copies_do_not(model, size):
    train, validation = data(size, 1.0)
    copies = train.with_copies([train.layer_statistics + 0.01])
    right = right_on_left_out(model, copies, validation)
    assert [len(part) for part in right] == [COUNT] * 3
    assert all((part >= 0).all() and (part <= 1).all() for part in right)


def test_recordings_without_an_emotion_do_not_count(model, size):
    train, validation = data(size, 1.0)
    train.labels[:10] = validation.labels[COUNT:] = IGNORED
    train.labels[-COUNT:] = IGNORED
    assert [len(part) for part in right_on_left_out(model, train, validation)] == [COUNT - 10, COUNT]
    assert thresholds_of(model, train, validation)["0.9"] > 0
