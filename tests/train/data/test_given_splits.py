"""Splits by their usual names."""

import pytest

from train.data.given_splits import is_split, role_of_split


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(("Train", "train"), ("training", "train"), ("dev", "validation"), ("Validation", "validation")),
        *(("test", "test"), ("Test1", "test"), ("test_set", "test"), ("eval", "test")),
        *(("trainer", None), ("latest", None), ("speaker1", None), ("", None), (None, None)),
    ],
)
def test_usual_names_have_a_role_and_words_that_hold_them_none(name, role):
    assert role_of_split(name) == role


def test_one_of_several_numbered_splits_is_asked_for_by_its_own_name():
    assert is_split("Dev", "validation") and is_split("TEST", "test")
    assert is_split("Test1", "test1") and not is_split("Test1", "test") and not is_split("Test1", "Test2")
