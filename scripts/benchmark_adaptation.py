"""What `model.adapt` is worth, and what it can harm: every corpus in turn is left out of training, and adapted to.

    python scripts/benchmark_adaptation.py --corpus emodb=DIR --corpus ravdess=DIR --corpus nemo=DIR \\
        --corpus ased=DIR --noise DIR --recipe train/configs/compact.yaml --max_recordings 500 --output OUT

Settings are chosen by cross-validation over the training corpora alone: each is left out of a further training, and
never the corpus that is tested. Prints tables, and writes them to OUT/adaptation.md with adaptation.json and a curve
over the number of recordings. All figures are UAR in per cent, means over the corpora left out; intervals are 95% from
resampling speakers.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from modeling_edrl_mea.adaptation import evidence_of, standardized  # noqa: E402
from modeling_edrl_mea.correction import correct  # noqa: E402
from train.benchmark.adaptation_study import (  # noqa: E402
    BIASES,
    LEARNED_LATER,
    SETTINGS,
    LeftOut,
    Study,
    argument_parser,
    gain_interval,
    print_tables,
    settings_of,
)
from train.benchmark.published_adaptation import METHODS  # noqa: E402
from train.data.files import write_json  # noqa: E402

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, None)  # recordings adapted to; None: all
DRAWS = 10  # ways to draw so many
BIAS_SETTINGS = tuple(product((2.0, 4.0, 8.0), (0.5, 0.75, 1.0)))  # priors and strengths
STANDARDIZATION_PRIORS = (4.0, 16.0, 64.0)
SELF_TRAINING = (0.0, 0.5, 1.0, 2.0)
CHOSEN_BY = 4, 32, None  # recordings
SPEAKER_PRIORS = (2.0, 4.0, 8.0, 16.0)
SKEWS = (0.5, 0.7, 0.9, 1.0)  # share of one emotion
SKEWED_SET = 60  # recordings
EXAMPLES = (1, 2, 4, 8)  # labeled recordings of each emotion
RIDGES = (0.03, 0.1, 0.3, 1.0)
WAYS = ("balanced", "true mix", "open")  # what may be expected of a set
NEW_LABEL_SETS = {  # examples of each old emotion, and recordings without a label, beside four of the new label
    "4 of the new label, 32 without labels": (0, 32),
    "4 of the new label, 128 without labels": (0, 128),
    "4 of every label": (4, 0),
    "4 of every label, 32 without labels": (4, 32),
}


# --- which recordings ---


def draws(corpus: LeftOut, count: int | None, n_draws: int = DRAWS) -> Iterator[np.ndarray]:
    """Rows of some drawings of so many recordings; None: all of them, once."""
    if count is None or count >= len(corpus.ids):
        yield corpus.every
        return
    for seed in range(n_draws):
        yield np.random.default_rng(seed).choice(len(corpus.ids), count, replace=False)


def examples(corpus: LeftOut, count: int, seed: int) -> np.ndarray:
    """Rows of so many recordings of each emotion."""
    return drawn_by(corpus.ids, count, np.random.default_rng(seed))


def two_a_speaker(corpus: LeftOut) -> np.ndarray:
    return drawn_by(corpus.speakers, 2, np.random.default_rng(0))


def drawn_by(groups: np.ndarray, count: int, generator) -> np.ndarray:
    """Rows of so many recordings of each group, or all of a smaller one."""
    rows = [np.flatnonzero(groups == one) for one in np.unique(groups)]
    return np.concatenate([generator.choice(own, min(count, len(own)), replace=False) for own in rows])


def skewed(corpus: LeftOut, emotion: int, share: float, seed: int) -> np.ndarray:
    """Rows of a set in which one emotion has this share."""
    generator = np.random.default_rng(seed)
    own, other = np.flatnonzero(corpus.ids == emotion), np.flatnonzero(corpus.ids != emotion)
    size = min(SKEWED_SET, int(len(own) / share))
    n_own = round(size * share)
    return np.concatenate([generator.choice(own, n_own, False), generator.choice(other, size - n_own, False)])


# --- the tables ---


def choose(study: Study) -> dict[str, SimpleNamespace]:
    """By test corpus: priors and strengths by the training corpora."""
    return {test: chosen_for(study, test, corpus.model.config) for test, corpus in study.tests().items()}


def chosen_for(study: Study, test: str, config) -> SimpleNamespace:
    def without_labels(inner, option):
        settings = settings_of(config, **found, **option)
        return np.mean(
            [np.mean([inner.uar(inner.adapted(rows, settings)) for rows in draws(inner, n)]) for n in CHOSEN_BY]
        )

    def by_speaker(inner, option):
        settings = settings_of(config, **found, speaker_prior=option)
        subsets = inner.every, two_a_speaker(inner)
        return np.mean([inner.uar(inner.adapted(rows, settings, by_speaker=True), rows) for rows in subsets])

    def by_labels(inner, option):
        settings = settings_of(config, **found, label_ridge=option)
        return np.mean([labeled(inner, n, seed, settings) for n in (2, 8) for seed in range(3)])

    found = {}
    for options in (
        [dict(zip(BIASES, values, strict=True)) for values in BIAS_SETTINGS],
        [{"standardization_prior": value} for value in STANDARDIZATION_PRIORS],
        [{"self_training": value} for value in SELF_TRAINING],
    ):
        found |= study.chosen(test, options, without_labels)
    found["speaker_prior"] = study.chosen(test, SPEAKER_PRIORS, by_speaker)
    return settings_of(config, **found, label_ridge=study.chosen(test, RIDGES, by_labels))


def table_of_settings(chosen) -> list[list]:
    return [
        ["left out", *SETTINGS],
        *([test, *(getattr(one, name) for name in SETTINGS)] for test, one in chosen.items()),
    ]


def gains(study: Study, after: Callable[[str, LeftOut], np.ndarray]) -> list[tuple[float, float, float]]:
    """In each condition the gain and its interval, from confusion matrices `after` adaptation."""
    return [
        gain_interval([(one.confusion(one.logits), after(test, one)) for test, one in tests.items()])
        for tests in study.conditions().values()
    ]


def in_words(intervals) -> list[str]:
    return ["{:+.1f} ({:+.1f}…{:+.1f})".format(*interval) for interval in intervals]


def gains_by_count(study: Study, chosen) -> dict[str, list[tuple]]:
    """By condition (recordings without labels, gain, low, high)."""

    def after(count):
        def mean(test, corpus):
            adapted = (corpus.adapted(rows, chosen[test]) for rows in draws(corpus, count))
            return np.mean([corpus.confusion(logits) for logits in adapted], axis=0)

        return mean

    found = zip(*(gains(study, after(count)) for count in COUNTS), strict=True)
    return {
        name: [(count, *interval) for count, interval in zip(COUNTS, column, strict=True)]
        for name, column in zip(study.conditions(), found, strict=True)
    }


def table_of_counts(study: Study, chosen, curves) -> list[list]:
    conditions = study.conditions()
    plain = [np.mean([one.uar(one.logits) for one in tests.values()]) for tests in conditions.values()]
    rows = [["recordings", *conditions], ["none", *(f"{value:.1f}" for value in plain)]]
    for points in zip(*curves.values(), strict=True):
        rows.append([points[0][0] or "all", *in_words(interval for _, *interval in points)])

    def by_speaker(subset):
        return lambda test, corpus: corpus.confusion(corpus.adapted(subset(corpus), chosen[test], by_speaker=True))

    rows.append(["all, by speaker", *in_words(gains(study, by_speaker(lambda corpus: corpus.every)))])
    rows.append(["two a speaker, by speaker", *in_words(gains(study, by_speaker(two_a_speaker)))])
    return rows


def table_of_harm(study: Study, chosen) -> list[list]:
    """Sets that are not what was expected: change of UAR and accuracy on the very set adapted to."""
    rows = [["set", "as it is, UAR / accuracy", *(f"{way}, UAR / accuracy" for way in WAYS)]]
    tests = study.tests().items()
    for share in SKEWS:
        parts = [
            (test, corpus, skewed(corpus, emotion, share, seed))
            for test, corpus in tests
            for emotion in np.unique(corpus.ids)
            for seed in range(DRAWS // 2)
        ]
        scores = [scores_by_way(corpus, part, part, chosen[test]) for test, corpus, part in parts]
        rows.append([f"{share:.0%} one emotion", *harm_cells(scores)])
    for count in (1, 2, 4, 8):
        parts = [(test, corpus, part) for test, corpus in tests for part in draws(corpus, count)]
        scores = [scores_by_way(corpus, part, corpus.every, chosen[test]) for test, corpus, part in parts]
        rows.append([f"adapted to {count}, tested on all", *harm_cells(scores)])
    return rows


def scores_by_way(corpus: LeftOut, part: np.ndarray, tested: np.ndarray, settings) -> list[tuple[float, float]]:
    """UAR and accuracy on the rows `tested` as it is, and adapted to `part` by each of [`WAYS`]; the true mix is that
    of the rows tested."""
    labels, ids = corpus.model.config.labels, corpus.ids[tested]
    true = dict(zip(labels, np.bincount(ids, minlength=len(labels)) / len(ids), strict=True))
    logits = [corpus.logits, *(corpus.adapted(part, settings, mix) for mix in ("balanced", true, None))]
    return [(corpus.uar(one, tested), 100 * float((one.argmax(1)[tested] == ids).mean())) for one in logits]


def harm_cells(scores) -> list[str]:
    plain, *adapted = np.mean(scores, axis=0)
    return ["{:.1f} / {:.1f}".format(*plain), *("{:+.1f} / {:+.1f}".format(*(one - plain)) for one in adapted)]


def table_of_methods(study: Study, chosen) -> list[list]:
    """Published methods, tuned by the same rule, on all recordings of each test, clean and in noise."""
    rows = [["method", *study.conditions(), "settings chosen"]]
    for name, (act, options) in METHODS.items():

        def logits(corpus, option, act=act):
            return act(corpus.model, corpus.statistics, option).numpy()

        def score(corpus, option, logits=logits):
            return corpus.uar(logits(corpus, option))

        settings = {test: study.chosen(test, options, score) for test in study.corpora}

        def after(test, corpus, logits=logits, settings=settings):
            return corpus.confusion(logits(corpus, settings[test]))

        rows.append([name, *in_words(gains(study, after)), ", ".join(map(str, settings.values()))])
    ours = gains(study, lambda test, one: one.confusion(one.adapted(one.every, chosen[test])))
    return [*rows, ["**`adapt` (ours)**", *in_words(ours), "as above"]]


def labeled(corpus: LeftOut, count: int, seed: int, settings) -> tuple[float, float]:
    """UAR after so many labeled recordings an emotion, alone and among all recordings of the corpus; on the others."""
    part = examples(corpus, count, seed)
    rest, labels = np.setdiff1d(corpus.every, part), np.full(len(corpus.every), None)
    labels[part] = names(corpus, part)
    alone = corpus.adapted(part, settings, labels=list(labels[part]))
    return corpus.uar(alone, rest), corpus.uar(corpus.adapted(corpus.every, settings, labels=list(labels)), rest)


def from_examples_alone(corpus: LeftOut, count: int, seed: int, settings, blocks=None) -> float:
    """The same UAR where nothing counts but the examples; `blocks`: another embedding to learn on."""
    part = examples(corpus, count, seed)
    evidence = replace(corpus.evidence, blocks=blocks or corpus.evidence.blocks, logits=np.zeros_like(corpus.logits))
    given = corpus.rows(part, evidence)
    given.labels = names(corpus, part)
    after = correct(given, settings, None).apply(evidence)
    return corpus.uar(after, np.setdiff1d(corpus.every, part))


def names(corpus: LeftOut, rows) -> list[str]:
    return [corpus.model.config.labels[one] for one in corpus.ids[rows]]


def table_of_labels(study: Study, chosen) -> list[list]:
    head = ["labeled recordings an emotion", "adapted to them", "to them and all others, without labels"]
    rows = [[*head, "from the examples alone: EDRL's embedding", "speech embedding"]]
    for count in EXAMPLES:
        found = []
        for test, corpus in study.tests().items():
            with torch.no_grad():
                speech = [corpus.model.edrl_mea.speech_embedding(corpus.statistics).double().numpy()]
            for seed in range(DRAWS):
                alone = [from_examples_alone(corpus, count, seed, chosen[test], blocks) for blocks in (None, speech)]
                found.append((*labeled(corpus, count, seed, chosen[test]), *alone))
        rows.append([count, *(f"{value:.1f}" for value in np.mean(found, axis=0))])
    return rows


def table_of_new_label(study: Study, chosen) -> list[list]:
    """A label that no model was trained on, from four recordings; old emotions with and without four of each."""
    rows = [["given", f"recall of {LEARNED_LATER}", "UAR of the others, as it is", "with the new label"]]
    for title, (old, unlabeled) in NEW_LABEL_SETS.items():
        found = []
        for test, corpus in study.tests().items():
            if (name := f"{test} {LEARNED_LATER}") in study.later:
                new = study.left_out(study.others(test), name)
                found += [new_label(corpus, new, old, unlabeled, seed, chosen[test]) for seed in range(DRAWS)]
        if found:
            rows.append([title, *(f"{value:.1f}" for value in np.mean(found, axis=0))])
    return rows


def new_label(
    corpus: LeftOut, new: LeftOut, old: int, unlabeled: int, seed: int, settings
) -> tuple[float, float, float]:
    """Recall of the new label, and UAR of the others before and after. Of the recordings without labels a fair share
    has the new label; tested on the rest of both."""
    generator = np.random.default_rng(seed)
    trained = corpus.model.config.labels
    part = examples(corpus, old, seed) if old else np.zeros(0, int)
    rest, rest_new = (generator.permutation(rows) for rows in (np.setdiff1d(corpus.every, part), new.every))
    n_new = 4 + min(unlabeled // (len(trained) + 1), (len(new.ids) - 4) // 2)
    n_pool = min(unlabeled - (n_new - 4), len(rest))
    pieces = [(new, rest_new[:n_new]), (corpus, np.concatenate([part, rest[:n_pool]]).astype(int))]
    expected = "balanced" if unlabeled else None
    statistics = torch.cat([one.statistics[rows] for one, rows in pieces])
    with standardized(corpus.model, statistics, np.ones(len(statistics)), expected, settings):
        given, *everything = (evidence_of(corpus.model, one) for one in (statistics, new.statistics, corpus.statistics))
    given.labels = [LEARNED_LATER] * 4 + [None] * (n_new - 4) + names(corpus, part) + [None] * n_pool
    found = correct(given, settings, expected)
    of_new, after = (found.apply(one) for one in everything)
    says_new = of_new.argmax(1) == len(found.labels) - 1
    tested = rest[n_pool:]
    return 100 * says_new[rest_new[n_new:]].mean(), corpus.uar(corpus.logits, tested), corpus.uar(after, tested)


# --- the report ---


def plot(curves: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        counts, mean, low, high = zip(*points, strict=True)
        axes.plot(range(len(counts)), mean, "o-", label=name)
        axes.fill_between(range(len(counts)), low, high, alpha=0.2)
    axes.set_xticks(range(len(counts)), [str(count or "all") for count in counts])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="recordings without labels", ylabel="gain in UAR, points")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def tables(study: Study, chosen, curves) -> Iterator[tuple[str, list[list]]]:
    yield "Settings that the training corpora chose", table_of_settings(chosen)
    yield "Gain by the number of recordings without labels", table_of_counts(study, chosen, curves)
    yield "Harm", table_of_harm(study, chosen)
    yield "Against published methods, all recordings of the test", table_of_methods(study, chosen)
    yield "Labeled recordings", table_of_labels(study, chosen)
    yield f"A new label, {LEARNED_LATER}, from four recordings", table_of_new_label(study, chosen)


def main(argv=None) -> dict:
    options = argument_parser(__doc__).parse_args(argv)
    study = Study(options)
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = choose(study)
    curves = gains_by_count(study, chosen)
    plot(curves, options.output / "adaptation.png")
    report = {"tables": print_tables(tables(study, chosen, curves), options.output / "adaptation.md"), "curves": curves}
    write_json(options.output / "adaptation.json", report)
    return report


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
