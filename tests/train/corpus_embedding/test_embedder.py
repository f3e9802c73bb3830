"""Batches of recordings, and rows of what a model says of them."""

import numpy as np
import torch

from tests.conftest import noise_recordings
from train.corpus_embedding.embedder import Embedder, batches
from train.corpus_embedding.listing import Item


def test_batches_are_of_similar_lengths_and_bounded():
    lengths = np.random.default_rng(0).integers(1, 1_000, 200)
    items = [Item(i, "", waveform=np.zeros(length)) for i, length in enumerate(lengths)]
    made = list(batches(items, 4_000))
    assert sorted(item.place for batch in made for item in batch) == list(range(200))
    padded = [len(batch) * max(len(item.waveform) for item in batch) for batch in made]
    assert max(padded) <= 4_000
    assert sum(padded) < 1.15 * lengths.sum()


def test_a_recording_longer_than_a_batch_is_a_batch_of_its_own():
    items = [Item(0, "", waveform=np.zeros(10)), Item(1, "", waveform=np.zeros(9_000)), Item(2, "", reason="damaged")]
    places = [[item.place for item in batch] for batch in batches(items, 4_000)]
    assert sorted(places) == [[0], [1], [2]]


def test_a_row_has_the_columns_of_the_schema_and_scores_that_are_none_are_a_failure(tiny_model):
    embed = Embedder(tiny_model("linear"), ["speech_embedding"])
    items = [Item(place, f"{place}.wav", "stamp", waveform) for place, waveform in enumerate(noise_recordings(2))]
    rows = list(embed(items))
    assert all(row.keys() - {"stamp"} == set(embed.schema().names) for row in rows)
    with torch.no_grad():
        embed.hear.model.classifier.bias.fill_(torch.nan)
    assert [row.keys() for row in embed(items)] == [{"index", "path", "reason"}] * 2
