"""Splits share no speaker, keep classes on both sides, and refuse what cannot be split."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.recordings import UNKNOWN_SPEAKER
from train.data.splits import SplitError, assert_no_shared_speaker, fold_indices, split_by_speaker


def corpus_of(speakers: list[str], labels: list[int] | None = None, corpus: str = "toy") -> Dataset:
    labels = labels if labels is not None else [row % 2 for row in range(len(speakers))]
    columns = {"speaker": speakers, "label": labels, "corpus": [corpus] * len(speakers)}
    columns["audio"] = [f"{row}.wav" for row in range(len(speakers))]
    text = Value("string")
    label = ClassLabel(names=["anger", "sadness"])
    return Dataset.from_dict(columns, Features(speaker=text, label=label, corpus=text, audio=text))


def speakers(count: int, each: int = 4) -> list[str]:
    return [f"toy_{speaker}" for speaker in range(count) for _ in range(each)]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 9), fraction=st.floats(0.05, 0.95), seed=st.integers(0, 5))
def test_a_split_shares_no_speaker_and_loses_no_recording(count, fraction, seed):
    dataset = corpus_of(speakers(count))
    kept, held_out = split_by_speaker(dataset, fraction, seed)
    assert_no_shared_speaker(kept, held_out)
    assert sorted([*kept["audio"], *held_out["audio"]]) == sorted(dataset["audio"])
    assert len(kept) and len(held_out)


def test_the_same_seed_gives_the_same_split():
    dataset = corpus_of(speakers(8))
    once, again = (list(split_by_speaker(dataset, 0.25, 3)[1]["audio"]) for _ in range(2))
    assert once == again


def test_a_class_that_two_speakers_have_is_on_both_sides():
    rare = {"toy_0", "toy_5"}
    names = speakers(8)
    labels = [int(name in rare and row % 2) for row, name in enumerate(names)]
    for seed in range(10):
        kept, held_out = split_by_speaker(corpus_of(names, labels), 0.25, seed)
        assert 1 in kept["label"] and 1 in held_out["label"]


@pytest.mark.parametrize("n_folds", [None, 2, 3, 99])
def test_folds_share_no_speaker_and_test_everybody_once(n_folds):
    dataset = corpus_of(speakers(6))
    folds = [(dataset.select(train), dataset.select(test)) for train, test in fold_indices(dataset, n_folds)]
    for train, test in folds:
        assert_no_shared_speaker(train, test)
    assert sorted(audio for _, test in folds for audio in test["audio"]) == sorted(dataset["audio"])
    assert len(folds) == (n_folds if n_folds in (2, 3) else 6)


def test_few_speakers_are_left_out_one_by_one_and_many_go_into_five_folds():
    assert len(fold_indices(corpus_of(speakers(10)))) == 10
    assert len(fold_indices(corpus_of(speakers(30)))) == 5


def test_a_shared_speaker_is_refused_unless_asked_for():
    one, other = corpus_of(["toy_1", "toy_2"]), corpus_of(["toy_2", "toy_3"])
    with pytest.raises(SplitError, match="toy_2"):
        assert_no_shared_speaker(one, other)
    assert_no_shared_speaker(one, other, allow_shared_speakers=True)


@pytest.mark.parametrize("split", [lambda d, **k: split_by_speaker(d, 0.5, **k), fold_indices])
def test_one_speaker_cannot_be_split_unless_asked_for(split):
    dataset = corpus_of(["toy_1"] * 6)
    with pytest.raises(SplitError, match="1 speaker .*toy_1"):
        split(dataset)
    assert split(dataset, allow_shared_speakers=True)


def test_unknown_speakers_cannot_be_kept_apart():
    dataset = corpus_of([f"toy_{UNKNOWN_SPEAKER}{row}.wav" for row in range(6)])
    with pytest.raises(SplitError, match="Add a speaker column"):
        fold_indices(dataset)
    kept, held_out = split_by_speaker(dataset, 0.5, allow_shared_speakers=True)
    with pytest.raises(SplitError, match="unknown speakers of toy"):
        assert_no_shared_speaker(kept, held_out)
    assert_no_shared_speaker(dataset, corpus_of(["b_1", "b_2"], corpus="b"))


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 1.5])
def test_a_fraction_outside_0_to_1_is_an_error(fraction):
    with pytest.raises(SplitError, match="between 0 and 1"):
        split_by_speaker(corpus_of(speakers(4)), fraction)


def test_one_fold_is_an_error():
    with pytest.raises(SplitError, match="at least two"):
        fold_indices(corpus_of(speakers(4)), 1)
