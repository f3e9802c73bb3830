"""What `model.adapt` is worth, and what it can harm: every corpus in turn is left out of training, and adapted to.

    python scripts/benchmark_adaptation.py --corpus emodb=DIR --corpus ravdess=DIR --corpus nemo=DIR \\
        --corpus ased=DIR --noise DIR --recipe train/configs/compact.yaml --max_recordings 500 --output OUT

Settings are chosen by cross-validation over the training corpora alone: each is left out of a further training, and
never the corpus that is tested. Prints tables, and writes them to OUT/adaptation.md with adaptation.json and a curve
over the number of recordings. All figures are UAR in per cent, means over the corpora left out; intervals are 95% from
resampling speakers.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from modeling_edrl_mea import EdrlMeaConfig  # noqa: E402
from modeling_edrl_mea.adaptation import Evidence, correct, evidence_of  # noqa: E402
from train.benchmark.published_adaptation import METHODS  # noqa: E402
from train.evaluation.metrics import uar_of  # noqa: E402

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)  # recordings adapted to; then all
DRAWS = 10  # ways to draw so many
PRIORS, STRENGTHS = (2.0, 4.0, 8.0), (0.5, 0.75, 1.0)
SPEAKER_PRIORS = (2.0, 4.0, 8.0, 16.0)
SKEWS = (0.5, 0.7, 0.9, 1.0)  # share of one emotion
SKEWED_SET = 60  # recordings
EXAMPLES = (1, 2, 4, 8)  # labeled recordings of each emotion
RIDGES = (0.03, 0.1, 0.3, 1.0)
LEARNED_LATER = "fear"  # the label that the models never saw


@dataclass
class Heard:
    """A corpus as a model that was not trained on it hears it."""

    model: object
    statistics: torch.Tensor
    evidence: Evidence
    ids: np.ndarray
    speakers: np.ndarray

    def rows(self, rows) -> Evidence:
        own = self.evidence
        blocks = [block[rows] for block in own.blocks]
        return Evidence(own.logits[rows], blocks, np.ones(len(rows)), [None] * len(rows))

    @property
    def logits(self) -> np.ndarray:
        return self.evidence.logits

    def adapted(self, rows, settings, expected="balanced", by_speaker=False, labels=None) -> np.ndarray:
        """Logits of all recordings after adapting to some rows."""
        evidence = self.rows(rows)
        if labels is not None:
            evidence.labels = labels
        if by_speaker:
            evidence.speakers = [str(name) for name in self.speakers[rows]]
        found = correct(evidence, settings, expected)
        speakers = self.speakers if by_speaker else None
        return found.apply(self.logits, self.evidence.embedding, speakers)


def settings_of(model_config, **chosen) -> SimpleNamespace:
    names = ("adaptation_prior", "balanced_strength", "speaker_prior", "label_ridge")
    own = {name: getattr(EdrlMeaConfig, name) for name in names} | chosen
    return SimpleNamespace(labels=model_config.labels, n_trained_labels=model_config.n_trained_labels, **own)


# --- training, and what the models hear ---


class Study:
    """Models of a recipe for every set of training corpora, and each left-out corpus in two conditions."""

    def __init__(self, corpora, later, recipe, data, noise):
        self.corpora, self.later, self.recipe, self.data, self.noise = corpora, later, recipe, data, noise
        self.models, self.heard = {}, {}

    def trial(self, names: frozenset):
        """The rows of these corpora to train and to validate on."""
        from train.benchmark.protocols import plan

        wanted = {name: self.corpora[name] for name in self.corpora if name in names}
        rest = next(iter(wanted.values()))  # whatever stands for the corpus left out
        trials, _ = plan({**wanted, "": rest}, ["leave_one_corpus_out"])
        return next(one for one in trials if set(one.train) == names)

    def model(self, names: frozenset):
        if names not in self.models:
            trial = self.trial(names)
            print(f"training on {', '.join(sorted(names))}", file=sys.stderr)
            model = self.recipe.train(trial, self.data, self.data.embeddings(trial.validation))
            self.models[names] = model.eval().requires_grad_(False)
        return self.models[names]

    def hear(self, trained: frozenset, corpus: str, condition=None) -> Heard:
        place = trained, corpus, condition is None
        if place not in self.heard:
            model, statistics = self.model(trained), self.data.statistics(corpus, condition)
            dataset = self.corpora.get(corpus, self.later.get(corpus))
            ids, speakers = np.array(dataset["label"]), np.array(dataset["speaker"])
            self.heard[place] = Heard(model, statistics, evidence_of(model, statistics), ids, speakers)
        return self.heard[place]

    def tests(self, condition=None) -> dict[str, Heard]:
        everything = frozenset(self.corpora)
        return {name: self.hear(everything - {name}, name, condition) for name in self.corpora}

    def inner(self, test: str) -> list[Heard]:
        """Training corpora as models that saw neither them nor the test hear them."""
        training = frozenset(self.corpora) - {test}
        return [self.hear(training - {name}, name) for name in sorted(training)]

    def chosen(self, test: str, options, score) -> object:
        """The option of the highest mean score (heard, option) over the training corpora."""
        means = [np.mean([score(heard, option) for heard in self.inner(test)]) for option in options]
        return options[int(np.argmax(means))]


# --- figures ---


def confusions(heard: Heard, logits: np.ndarray, n_classes: int | None = None) -> np.ndarray:
    """(speakers, C, C) counts of answers."""
    n_classes = n_classes or heard.logits.shape[1]
    places = np.unique(heard.speakers, return_inverse=True)[1]
    counts = np.zeros((places.max() + 1, n_classes, n_classes))
    np.add.at(counts, (places, heard.ids, logits[:, :n_classes].argmax(1)), 1)
    return counts


def uar(heard: Heard, logits: np.ndarray, rows=slice(None)) -> float:
    found, ids = logits.argmax(1)[rows], heard.ids[rows]
    return 100 * float(np.mean([(found[ids == one] == one).mean() for one in np.unique(ids)]))


def accuracy(heard: Heard, logits: np.ndarray, rows) -> float:
    return 100 * float((logits.argmax(1)[rows] == heard.ids[rows]).mean())


def gain_interval(pairs, resamples: int = 1000) -> tuple[float, float, float]:
    """Mean over corpora of UAR(after) − UAR(before), and its interval. `pairs`: (before, after) counts by corpus."""
    generator = np.random.default_rng(0)
    drawn = np.zeros(resamples)
    for before, after in pairs:
        weights = generator.multinomial(len(before), np.full(len(before), 1 / len(before)), resamples)
        resampled = [np.tensordot(weights, counts, 1) for counts in (before, after)]
        drawn += 100 * (uar_of(resampled[1]) - uar_of(resampled[0])) / len(pairs)
    mean = np.mean([100 * (uar_of(after.sum(0)) - uar_of(before.sum(0))) for before, after in pairs])
    return float(mean), *(float(value) for value in np.percentile(drawn, (2.5, 97.5)))


def draws(heard: Heard, count: int | None):
    """Rows of some drawings of so many recordings; None: all of them, once."""
    if count is None or count >= len(heard.ids):
        yield np.arange(len(heard.ids))
        return
    for seed in range(DRAWS):
        yield np.random.default_rng(seed).choice(len(heard.ids), count, replace=False)


def examples(heard: Heard, count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate(
        [generator.choice(np.flatnonzero(heard.ids == one), count, replace=False) for one in np.unique(heard.ids)]
    )


def skewed(heard: Heard, emotion: int, share: float, seed: int) -> np.ndarray:
    """Rows of a set in which one emotion has this share."""
    generator = np.random.default_rng(seed)
    own, other = np.flatnonzero(heard.ids == emotion), np.flatnonzero(heard.ids != emotion)
    size = min(SKEWED_SET, int(len(own) / share))
    n_own = round(size * share)
    return np.concatenate([generator.choice(own, n_own, False), generator.choice(other, size - n_own, False)])


# --- the tables ---


def choose(study: Study) -> dict[str, SimpleNamespace]:
    """By test corpus: priors and strengths by the training corpora."""
    found = {}
    for test, heard in study.tests().items():
        config = heard.model.config

        def biases(inner, option, config=config):
            settings = settings_of(config, adaptation_prior=option[0], balanced_strength=option[1])
            scores = [uar(inner, inner.adapted(rows, settings)) for n in (4, 32, None) for rows in draws(inner, n)]
            return np.mean(scores)

        def by_speaker(inner, option, config=config, chosen=None):
            settings = settings_of(config, speaker_prior=option, **chosen)
            few = one_in(inner.speakers, 2)
            kept = [uar(inner, inner.adapted(rows, settings, by_speaker=True), rows) for rows in (every(inner), few)]
            return np.mean(kept)

        def by_labels(inner, option, config=config, chosen=None):
            settings = settings_of(config, label_ridge=option, **chosen)
            return np.mean([labeled(inner, n, seed, settings)[1] for n in (2, 8) for seed in range(3)])

        prior, strength = study.chosen(test, [(p, s) for p in PRIORS for s in STRENGTHS], biases)
        chosen = {"adaptation_prior": prior, "balanced_strength": strength}
        chosen["speaker_prior"] = study.chosen(test, SPEAKER_PRIORS, partial(by_speaker, chosen=dict(chosen)))
        chosen["label_ridge"] = study.chosen(test, RIDGES, partial(by_labels, chosen=dict(chosen)))
        found[test] = settings_of(config, **chosen)
    return found


def every(heard: Heard) -> np.ndarray:
    return np.arange(len(heard.ids))


def one_in(speakers: np.ndarray, count: int) -> np.ndarray:
    """Rows of at most so many recordings of each speaker."""
    generator = np.random.default_rng(0)
    found = []
    for name in np.unique(speakers):
        rows = np.flatnonzero(speakers == name)
        found.append(generator.choice(rows, min(count, len(rows)), replace=False))
    return np.concatenate(found)


def table_of_settings(chosen) -> list[list]:
    names = ("adaptation_prior", "balanced_strength", "speaker_prior", "label_ridge")
    return [["left out", *names], *([test, *(getattr(one, name) for name in names)] for test, one in chosen.items())]


def table_of_counts(study: Study, chosen) -> tuple[list[list], dict]:
    """Gain by the number of unlabeled recordings."""
    rows, curves = [["recordings", "clean", "noise at 0 dB"]], {"clean": [], "noise at 0 dB": []}
    tests = {"clean": study.tests(), "noise at 0 dB": study.tests(study.noise)}
    plain = {name: np.mean([uar(one, one.logits) for one in heard.values()]) for name, heard in tests.items()}
    rows.append(["none", *(f"{value:.1f}" for value in plain.values())])
    for count in (*COUNTS, None):
        cells = []
        for name, heard in tests.items():
            pairs = [(confusions(one, one.logits), averaged(one, count, chosen[test])) for test, one in heard.items()]
            mean, low, high = gain_interval(pairs)
            curves[name].append((count, mean, low, high))
            cells.append(f"{mean:+.1f} ({low:+.1f}…{high:+.1f})")
        rows.append([count or "all", *cells])
    for title, subset in (
        ("all, by speaker", every),
        ("two a speaker, by speaker", lambda one: one_in(one.speakers, 2)),
    ):
        cells = []
        for heard in tests.values():
            pairs = []
            for test, one in heard.items():
                adapted = one.adapted(subset(one), chosen[test], by_speaker=True)
                pairs.append((confusions(one, one.logits), confusions(one, adapted)))
            cells.append("{:+.1f} ({:+.1f}…{:+.1f})".format(*gain_interval(pairs)))
        rows.append([title, *cells])
    return rows, curves


def averaged(heard: Heard, count: int | None, settings) -> np.ndarray:
    found = [confusions(heard, heard.adapted(rows, settings)) for rows in draws(heard, count)]
    return np.mean(found, axis=0)


def table_of_harm(study: Study, chosen) -> list[list]:
    """Sets that are not what was expected: change of UAR and accuracy on the very set adapted to."""
    ways = ("balanced", "true mix", "open")
    rows = [["set", "as it is, UAR / accuracy", *(f"{way}, UAR / accuracy" for way in ways)]]
    for share in SKEWS:
        scores = {way: [] for way in ("plain", *ways)}
        for test, heard in study.tests().items():
            for emotion in np.unique(heard.ids):
                for seed in range(DRAWS // 2):
                    part = skewed(heard, emotion, share, seed)
                    for way, logits in answers(heard, part, chosen[test]).items():
                        scores[way].append((uar(heard, logits, part), accuracy(heard, logits, part)))
        rows.append([f"{share:.0%} one emotion", *harm_cells(scores)])
    for count in (1, 2, 4, 8):
        scores = {way: [] for way in ("plain", *ways)}
        for test, heard in study.tests().items():
            for part in draws(heard, count):
                for way, logits in answers(heard, part, chosen[test], mix_of=every(heard)).items():
                    scores[way].append((uar(heard, logits), accuracy(heard, logits, every(heard))))
        rows.append([f"{count} recordings, tested on all", *harm_cells(scores)])
    return rows


def answers(heard: Heard, part: np.ndarray, settings, mix_of: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Logits by what is expected. The true mix is that of `part`, or of other rows that it was drawn from."""
    labels, ids = heard.model.config.labels, heard.ids[part if mix_of is None else mix_of]
    true = dict(zip(labels, np.bincount(ids, minlength=len(labels)) / len(ids), strict=True))
    ways = {"balanced": "balanced", "true mix": true, "open": None}
    return {"plain": heard.logits} | {way: heard.adapted(part, settings, mix) for way, mix in ways.items()}


def harm_cells(scores) -> list[str]:
    means = {way: np.mean(found, axis=0) for way, found in scores.items()}
    plain = means.pop("plain")
    return ["{:.1f} / {:.1f}".format(*plain), *("{:+.1f} / {:+.1f}".format(*(one - plain)) for one in means.values())]


def table_of_methods(study: Study, chosen) -> list[list]:
    """Published methods, tuned by the same rule, on all recordings of each test, clean and in noise."""
    rows = [["method", "clean", "noise at 0 dB", "settings chosen"]]
    tests = study.tests(), study.tests(study.noise)
    for name, (act, options) in METHODS.items():
        settings = {
            test: study.chosen(
                test,
                options,
                lambda heard, option, act=act: uar(heard, act(heard.model, heard.statistics, option).numpy()),
            )
            for test in study.corpora
        }
        cells = []
        for heard in tests:
            pairs = []
            for test, one in heard.items():
                after = act(one.model, one.statistics, settings[test]).numpy()
                pairs.append((confusions(one, one.logits), confusions(one, after)))
            cells.append("{:+.1f} ({:+.1f}…{:+.1f})".format(*gain_interval(pairs)))
        rows.append([name, *cells, ", ".join(map(str, settings.values()))])
    cells = []
    for heard in tests:
        pairs = [
            (confusions(one, one.logits), confusions(one, one.adapted(every(one), chosen[test])))
            for test, one in heard.items()
        ]
        cells.append("{:+.1f} ({:+.1f}…{:+.1f})".format(*gain_interval(pairs)))
    rows.append(["**class biases (ours)**", *cells, "as above"])
    return rows


def labeled(heard: Heard, count: int, seed: int, settings, blocks=None, knows=True) -> tuple[float, float]:
    """UAR before and after so many labeled recordings an emotion, on the others. `blocks`: another embedding to learn
    on; `knows` False: from the examples alone."""
    part = examples(heard, count, seed)
    rest = np.setdiff1d(every(heard), part)
    own = heard.evidence
    changed = Evidence(
        own.logits if knows else np.zeros_like(own.logits), blocks or own.blocks, own.weights, own.labels
    )
    labels = [heard.model.config.labels[one] for one in heard.ids[part]]
    after = replace(heard, evidence=changed).adapted(part, settings, labels=labels)
    return uar(heard, heard.logits, rest), uar(heard, after, rest)


def table_of_labels(study: Study, chosen) -> list[list]:
    rows = [
        [
            "labeled recordings an emotion",
            "as it is",
            "adapted",
            "from the examples alone: EDRL + MEA",
            "speech embedding",
        ]
    ]
    speech = {}
    for test, heard in study.tests().items():
        with torch.no_grad():
            speech[test] = [heard.model.edrl_mea.speech_embedding(heard.statistics).double().numpy()]
    for count in EXAMPLES:
        found = []
        for test, heard in study.tests().items():
            for seed in range(DRAWS):
                before, after = labeled(heard, count, seed, chosen[test])
                alone = [labeled(heard, count, seed, chosen[test], blocks, False)[1] for blocks in (None, speech[test])]
                found.append((before, after, *alone))
        rows.append([count, *(f"{value:.1f}" for value in np.mean(found, axis=0))])
    return rows


def table_of_new_label(study: Study, chosen) -> list[list]:
    """A label that no model was trained on, from four recordings; old emotions with and without four of each."""
    rows = [["given", f"recall of {LEARNED_LATER}", "UAR of the others, as it is", "with the new label"]]
    ways = {
        "4 of the new label": (0, 0),
        "4 of the new label, 32 without labels": (0, 32),
        "4 of every label": (4, 0),
        "4 of every label, 32 without labels": (4, 32),
    }
    for title, (old, unlabeled) in ways.items():
        found = []
        for test, heard in study.tests().items():
            name = f"{test} {LEARNED_LATER}"
            if name not in study.later:
                continue
            new = study.hear(frozenset(study.corpora) - {test}, name)
            found += [new_label(heard, new, old, unlabeled, seed, chosen[test]) for seed in range(DRAWS)]
        if found:
            rows.append([title, *(f"{value:.1f}" for value in np.mean(found, axis=0))])
    return rows


def new_label(heard: Heard, new: Heard, old: int, unlabeled: int, seed: int, settings) -> tuple[float, float, float]:
    generator = np.random.default_rng(seed)
    shown = generator.choice(len(new.ids), 4, replace=False)
    part = examples(heard, old, seed) if old else np.zeros(0, int)
    rest = generator.permutation(np.setdiff1d(every(heard), part))
    pool, tested = rest[:unlabeled], rest[unlabeled:]
    labels = [LEARNED_LATER] * 4 + [heard.model.config.labels[one] for one in heard.ids[part]] + [None] * unlabeled
    pieces = new.rows(shown), heard.rows(np.concatenate([part, pool]).astype(int))
    blocks = [np.concatenate(both) for both in zip(*(piece.blocks for piece in pieces), strict=True)]
    logits = np.concatenate([piece.logits for piece in pieces])
    evidence = Evidence(logits, blocks, np.ones(len(logits)), labels)
    found = correct(evidence, settings, "balanced" if unlabeled else None)
    others = np.setdiff1d(np.arange(len(new.ids)), shown)
    says_new = found.apply(new.logits, new.evidence.embedding).argmax(1) == len(found.labels) - 1
    after = found.apply(heard.logits, heard.evidence.embedding)
    return 100 * says_new[others].mean(), uar(heard, heard.logits, tested), uar(heard, after, tested)


# --- the report ---


def markdown(rows: list[list]) -> str:
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def plot(curves: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        places = range(len(points))
        _, mean, low, high = (list(part) for part in zip(*points, strict=True))
        axes.plot(places, mean, "o-", label=name)
        axes.fill_between(places, low, high, alpha=0.2)
    axes.set_xticks(list(places), [str(count or "all") for count, *_ in points])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="recordings without labels", ylabel="gain in UAR, points")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def read(options):
    from train.benchmark.contenders import BenchmarkData
    from train.benchmark.protocols import capped
    from train.benchmark.recipes import Recipe
    from train.data.corpora import load_corpus
    from train.degradation.augmentation import Augmentation
    from train.degradation.corruptions import corruptions

    corpora, later = {}, {}
    for source in options.corpus:
        dataset = load_corpus(source, label_scheme="four_emotions")
        name = dataset["corpus"][0]
        corpora[name] = capped(dataset, options.max_recordings)
        native = load_corpus(source)
        if LEARNED_LATER in native.features["label"].names:
            place = native.features["label"].names.index(LEARNED_LATER)
            rows = [row for row, label in enumerate(native["label"]) if label == place]
            later[f"{name} {LEARNED_LATER}"] = capped(native.select(rows), options.max_recordings // 5)
    if len(corpora) < 4:
        raise ValueError("Give at least four corpora: one is tested, one chooses settings, two are trained on.")
    classes = next(iter(corpora.values())).features["label"].names
    cache = options.cache or options.output / "cache"
    recipe = Recipe("recipe", options.recipe, classes, "four_emotions", cache / "embeddings")
    augmentation = Augmentation(options.noise, None, seed=0) if recipe.noisy_copies else None
    data = BenchmarkData({**corpora, **later}, recipe.cache, augmentation)
    noises = [one for one in corruptions(options.noise, None, levels=(3,)) if one.name.startswith("noise_")]
    noise = min(noises, key=lambda one: "esc" not in one.name)
    return Study(corpora, later, recipe, data, noise)


def argument_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpus", action="append", required=True, help="as train/run.py's --dataset_name; four or more"
    )
    parser.add_argument("--noise", required=True, help="folder of noise recordings; of several sources ESC's")
    parser.add_argument(
        "--recipe", default="train/configs/compact.yaml", help="YAML file with settings of train/run.py"
    )
    parser.add_argument("--max_recordings", type=int, default=500, help="at most so many a corpus")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of embeddings; default: OUTPUT/cache")
    return parser


def main(argv=None, study: Study | None = None) -> dict:
    options = argument_parser(__doc__).parse_args(argv)
    study = study or read(options)
    options.output.mkdir(parents=True, exist_ok=True)
    chosen, sections = choose(study), {}

    def show(title: str, rows: list[list]) -> None:
        sections[title] = rows
        print(f"\n{title}\n\n{markdown(rows)}", flush=True)

    show("Settings that the training corpora chose", table_of_settings(chosen))
    rows, curves = table_of_counts(study, chosen)
    show("Gain by the number of recordings without labels", rows)
    plot(curves, options.output / "adaptation.png")
    show("Harm", table_of_harm(study, chosen))
    show("Against published methods, all recordings of the test", table_of_methods(study, chosen))
    show("Labeled recordings", table_of_labels(study, chosen))
    show(f"A new label, {LEARNED_LATER}, from four recordings", table_of_new_label(study, chosen))
    text = "\n\n".join(f"### {title}\n\n{markdown(rows)}" for title, rows in sections.items())
    (options.output / "adaptation.md").write_text(text + "\n", encoding="utf-8")
    report = {"tables": sections, "curves": curves}
    (options.output / "adaptation.json").write_text(json.dumps(report, default=str, indent=1), encoding="utf-8")
    return report


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
