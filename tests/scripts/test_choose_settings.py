"""scripts/choose_settings.py as a whole, on tones and a tiny backbone, and what it refuses."""

import json

import numpy as np
import pytest

from scripts import choose_settings
from tests.support.four_corpora import four_corpora

RECIPE = {"num_train_epochs": 1, "noisy_copies": 1}


def refused(capsys, tmp_path, vary: str) -> str:
    given = ["--corpus", "a", "--noise", "noise", "--output", str(tmp_path / "out"), "--vary", vary]
    with pytest.raises(SystemExit):
        choose_settings.main(given)
    return capsys.readouterr().err


@pytest.mark.parametrize("vary", ["block_size", "block_size=8", "block_size=8,8"])
def test_one_option_is_no_choice(vary, tmp_path, capsys):
    assert "--vary block_size: give two or more options, as block_size=8,16" in refused(capsys, tmp_path, vary)


def test_a_misspelled_setting_is_refused_before_anything_is_trained(tmp_path, tiny_backbone_config):
    given = four_corpora(tmp_path, tiny_backbone_config, RECIPE)
    with pytest.raises(SystemExit, match="Unknown setting 'block_sizes'. Did you mean 'block_size'"):
        choose_settings.main([*given, "--vary", "block_sizes=2,4", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "settings.md").exists()


def test_the_option_is_chosen_that_recognizes_most_of_the_other_corpora():
    choice = choose_settings.Choice.__new__(choose_settings.Choice)
    choice.corpora, choice.options = list("abc"), ["low", "high"]
    choice.others = lambda test: frozenset("abc") - {test}
    good = {("low", "a"): 60, ("high", "a"): 50}  # of a corpus on which the options differ
    places = [
        (option, choice.others(test) - {one}, one) for option in choice.options for test in "abc" for one in "abc"
    ]
    choice.inner = {place: np.full(4, good.get((place[0], place[2]), 55 + (place[0] == "high"))) for place in places}
    assert {test: choice.chosen_for(test) for test in "abc"} == {"a": "high", "b": "low", "c": "low"}


@pytest.mark.slow  # some twenty trainings
def test_tables_say_what_was_chosen_and_what_it_is_worth(tmp_path, tiny_backbone_config):
    given = four_corpora(tmp_path, tiny_backbone_config, RECIPE)
    given += ["--output", str(tmp_path / "out"), "--seeds", "2", "--vary", "block_size=2,16"]
    varied, worth = choose_settings.main(given)["tables"].values()
    assert [row[0] for row in varied[1:]] == ["block_size = 2", "block_size = 16"]
    assert {name for row in varied[1:] for name in filter(None, row[-1].split(", "))} == set("abcd")
    assert [row[0] for row in worth[1:]] == ["block_size"] and len(worth[1]) == 5
    assert "| block_size |" in (tmp_path / "out" / "settings.md").read_text()
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["tables"]["block_size"] == varied
