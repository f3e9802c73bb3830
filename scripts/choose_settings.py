#!/usr/bin/env python
"""Choose settings of a recipe by corpora left out, and see what the choice is worth.

    python scripts/choose_settings.py --corpus emodb=DIR --corpus ravdess=DIR --corpus nemo=DIR --corpus ased=DIR \\
        --noise DIR --recipe train/configs/whisper_tiny.yaml --vary block_size=8,16,32 \\
        --vary learning_rate=0.0001,0.0003 --output OUT

One setting is varied at a time, the others staying as in the recipe. Every corpus is the test in turn, which never
takes part in the choice: of the other corpora each is left out of training in turn, and the option is chosen whose
models recognize most there, over clean speech and noise at 0 dB, as they are and adapted without labels. Models of that
option and of the recipe, trained on all but the test, are then compared on the test. Each is trained by some seeds.

Prints tables, and writes them to OUT/settings.md and OUT/settings.json. UAR in per cent, intervals are 95% from
resampling speakers.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from train.benchmark.adaptation_study import (  # noqa: E402
    LeftOut,
    Study,
    argument_parser,
    gain_interval,
    print_tables,
    settings_of,
)
from train.data.files import write_json  # noqa: E402

CONDITIONS = ("clean", "adapted", "noise at 0 dB", "adapted")


def logits_by_condition(study: Study, trained: frozenset, test: str) -> list[tuple[LeftOut, np.ndarray]]:
    """A corpus that a model was not trained on, and its logits, in each of the CONDITIONS."""
    found = []
    for noise in (None, study.noise):
        corpus = study.left_out(trained, test, noise)
        adapted = corpus.adapted(corpus.every, settings_of(corpus.model.config))
        found += [(corpus, corpus.logits), (corpus, adapted)]
    study.known.clear()  # embeddings of every place would come to gigabytes
    return found


def recalls(studies: list[Study], trained: frozenset, test: str) -> np.ndarray:
    """(conditions,) UAR, mean over the seeds."""
    found = [logits_by_condition(study, trained, test) for study in studies]
    return np.mean([[corpus.uar(logits) for corpus, logits in one] for one in found], axis=0)


def confusions(studies: list[Study], test: str) -> list[np.ndarray]:
    """In each condition counts (speakers, C, C) by models of all other corpora, mean over the seeds."""
    found = [logits_by_condition(study, study.others(test), test) for study in studies]
    return [np.mean([one[i][0].confusion(one[i][1]) for one in found], axis=0) for i in range(len(CONDITIONS))]


def by_seeds(study: Study, seeds: int, **changed: str) -> list[Study]:
    return [study.varied(**changed, seed=str(seed)) for seed in range(seeds)]


class Choice:
    """Options of one setting, and what models of each recognize of corpora left out.

    `recipes`: the recipe with each seed, whose models stand for the option that it has.
    """

    def __init__(self, recipes: list[Study], setting: str, options: list[str]):
        first = recipes[0]
        self.corpora, self.others, self.setting, self.options = list(first.corpora), first.others, setting, options
        self.recipes, self.studies, self.inner = recipes, {}, {}
        for option in options:
            varied = by_seeds(first, len(recipes), **{setting: option})
            is_the_recipe = varied[0].recipe.settings == first.recipe.settings
            self.studies[option] = recipes if is_the_recipe else varied

    def measure(self) -> None:
        """UAR (conditions,) by option, corpora trained on and corpus left out: two train, one test and one neither."""
        places = {(self.others(test) - {one}, one) for test in self.corpora for one in self.others(test)}
        tasks = [(option, *place) for option in self.options for place in sorted(places, key=str)]
        for option, trained, one in tqdm(tasks, desc=self.setting, unit="test"):
            self.inner[option, trained, one] = recalls(self.studies[option], trained, one)

    def scores(self, option: str, test: str) -> np.ndarray:
        """(conditions,) Mean over the corpora that are not the test."""
        training = self.others(test)
        return np.mean([self.inner[option, training - {one}, one] for one in training], axis=0)

    def chosen_for(self, test: str) -> str:
        return max(self.options, key=lambda option: self.scores(option, test).mean())

    def rows(self) -> Iterator[list]:
        chosen = {test: self.chosen_for(test) for test in self.corpora}
        for option in self.options:
            means = np.mean([self.scores(option, test) for test in chosen], axis=0)
            chosen_for = ", ".join(test for test, best in chosen.items() if best == option)
            yield [f"{self.setting} = {option}", *(f"{mean:.1f}" for mean in (*means, means.mean())), chosen_for]

    def gains(self) -> list[str]:
        """What the choice is worth on the tests, against the recipe, in each condition."""
        pairs = []
        for test in self.corpora:
            chosen = self.studies[self.chosen_for(test)]
            pairs.append(list(zip(confusions(self.recipes, test), confusions(chosen, test), strict=True)))
        by_condition = (gain_interval(one) for one in zip(*pairs, strict=True))
        return ["{:+.1f} ({:+.1f}…{:+.1f})".format(*interval) for interval in by_condition]


def tables(study: Study, varied: dict[str, list[str]], seeds: int) -> Iterator[tuple[str, list[list]]]:
    recipes = by_seeds(study, seeds)
    worth = [["setting, as chosen", *CONDITIONS]]
    for setting, options in varied.items():
        choice = Choice(recipes, setting, options)
        choice.measure()
        yield setting, [["option", *CONDITIONS, "mean", "chosen for"], *choice.rows()]
        worth.append([setting, *choice.gains()])
    yield "What the choices are worth on the tests, against the recipe", worth


def parse_options(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--vary", action="append", required=True, help="SETTING=OPTION,OPTION of train/run.py")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model")
    options = parser.parse_args(argv)
    varied = [one.partition("=") for one in options.vary]
    if wrong := [name for name, _, values in varied if len(set(values.split(","))) < 2]:
        parser.error(f"--vary {wrong[0]}: give two or more options, as block_size=8,16.")
    options.vary = {name: values.split(",") for name, _, values in varied}
    return options


def main(argv=None) -> dict:
    options = parse_options(argv)
    study = Study(options)
    for setting, values in options.vary.items():  # what is misspelled is refused before anything is trained
        for value in values:
            study.varied(**{setting: value})
    options.output.mkdir(parents=True, exist_ok=True)
    report = {"tables": print_tables(tables(study, options.vary, options.seeds), options.output / "settings.md")}
    write_json(options.output / "settings.json", report)
    return report


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
