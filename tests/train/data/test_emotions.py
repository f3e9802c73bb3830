"""Emotion words and label schemes."""

import logging
import re

import pytest

from tests.support.corpus_folders import labels_of, load, touch
from train.data.catalogue import CORPORA
from train.data.emotions import ALIASES, EMOTIONS, SCHEMES, LabelError, canonical_emotion, label_under_scheme


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
