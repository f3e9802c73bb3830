"""Every corpus in turn left out of training, and what models of the rest make of it: what the studies of adaptation
(scripts/benchmark_adaptation.py), of rejection (scripts/benchmark_rejection.py) and of a recipe's settings
(scripts/choose_settings.py) begin with.

Settings are chosen by cross-validation over the training corpora alone: each is left out of a further training, and
never the corpus that is tested.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from modeling_edrl_mea import EdrlMeaConfig
from modeling_edrl_mea.adaptation import evidence_of, standardized
from modeling_edrl_mea.correction import Evidence, correct
from train.data.corpora import load_corpus
from train.degradation.augmentation import Augmentation
from train.degradation.corruptions import corruptions
from train.evaluation.markdown import markdown_table
from train.evaluation.metrics import confusion_by_speaker, paired_bootstrap_difference, uar

from .comparisons import mean_uar
from .contenders import BenchmarkData
from .protocols import capped, plan
from .recipes import Recipe

LEARNED_LATER = "fear"  # the label that the models never see in training
BIASES = ("adaptation_prior", "balanced_strength")
SETTINGS = (*BIASES, "standardization_prior", "self_training", "speaker_prior", "label_ridge")


@dataclass
class LeftOut:
    """A corpus as a model that was not trained on it sees it: N recordings with class ids (N,) and speakers (N,)."""

    model: object
    statistics: torch.Tensor
    evidence: Evidence
    ids: np.ndarray
    speakers: np.ndarray

    @property
    def logits(self) -> np.ndarray:
        return self.evidence.logits

    @property
    def every(self) -> np.ndarray:
        """The rows of all recordings."""
        return np.arange(len(self.ids))

    def rows(self, rows, evidence: Evidence | None = None) -> Evidence:
        whole = evidence or self.evidence
        blocks = [block[rows] for block in whole.blocks]
        return Evidence(whole.logits[rows], blocks, whole.speech[rows], np.ones(len(rows)), [None] * len(rows))

    def adapted(self, rows, settings, expected="balanced", by_speaker=False, labels=None) -> np.ndarray:
        """Logits of all recordings after adapting to some rows."""
        with standardized(self.model, self.statistics[rows], np.ones(len(rows)), expected, settings):
            evidence = evidence_of(self.model, self.statistics)
        part = self.rows(rows, evidence)
        if labels is not None:
            part.labels = labels
        if by_speaker:
            part.speakers = [str(name) for name in self.speakers[rows]]
        return correct(part, settings, expected).apply(evidence, self.speakers if by_speaker else None)

    def uar(self, logits: np.ndarray, rows=slice(None)) -> float:
        """In per cent; NaN of no recording."""
        ids = self.ids[rows]
        return 100 * uar(ids, logits.argmax(1)[rows]) if len(ids) else np.nan

    def confusion(self, logits: np.ndarray) -> np.ndarray:
        """(speakers, C, C) counts of predictions."""
        return confusion_by_speaker(self.ids, logits.argmax(1), self.speakers, logits.shape[1])[0]


def settings_of(config: EdrlMeaConfig, **chosen) -> SimpleNamespace:
    """What `correct` asks of a config: the defaults, or what was chosen."""
    own = {name: getattr(EdrlMeaConfig, name) for name in SETTINGS} | chosen
    return SimpleNamespace(labels=config.labels, n_trained_labels=config.n_trained_labels, **own)


class Study:
    """Models of a recipe for every set of training corpora, and each left-out corpus in two conditions.

    `options`: those of [`argument_parser`]. ValueError where there are fewer than four corpora.
    """

    def __init__(self, options):
        self.corpora, self.later = _read(options.corpus, options.max_recordings)
        classes = next(iter(self.corpora.values())).features["label"].names
        cache = options.cache or options.output / "cache"
        self._recipe = partial(Recipe, "recipe", options.recipe, classes, "four_emotions", cache / "embeddings")
        self.recipe = self._recipe()
        augmentation = Augmentation(options.noise, None, seed=0) if self.recipe.noisy_copies else None
        self.data = BenchmarkData({**self.corpora, **self.later}, self.recipe.cache, augmentation)
        noises = [one for one in corruptions(options.noise, None, levels=(3,)) if one.name.startswith("noise_")]
        self.noise = min(noises, key=lambda one: "esc" not in one.name)
        self.models, self.known = {}, {}

    def varied(self, **changed: str) -> "Study":
        """The same recordings by the recipe with some settings changed."""
        other = copy.copy(self)
        other.recipe, other.models, other.known = self._recipe(changed=changed), {}, {}
        return other

    def trial(self, names: frozenset):
        """The rows of these corpora to train and to validate on."""
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

    def left_out(self, trained: frozenset, corpus: str, condition=None) -> LeftOut:
        place = trained, corpus, condition is None
        if place not in self.known:
            model, statistics = self.model(trained), self.data.statistics(corpus, condition)
            ids, speakers = (np.array(self.data.corpora[corpus][column]) for column in ("label", "speaker"))
            self.known[place] = LeftOut(model, statistics, evidence_of(model, statistics), ids, speakers)
        return self.known[place]

    def others(self, test: str) -> frozenset:
        return frozenset(self.corpora) - {test}

    def tests(self, condition=None) -> dict[str, LeftOut]:
        return {name: self.left_out(self.others(name), name, condition) for name in self.corpora}

    def conditions(self) -> dict[str, dict[str, LeftOut]]:
        return {"clean": self.tests(), "noise at 0 dB": self.tests(self.noise)}

    def chosen(self, test: str, options: Sequence, score: Callable) -> object:
        """The option of the highest mean score (left_out, option) over the training corpora, as models that saw neither
        them nor the test see them."""
        training = self.others(test)
        inner = [self.left_out(training - {name}, name) for name in sorted(training)]
        means = [np.mean([score(left_out, option) for left_out in inner]) for option in options]
        return options[int(np.argmax(means))]


def _read(sources: Sequence[str], max_recordings: int) -> tuple[dict, dict]:
    """(corpora of four emotions by name, their recordings of the label that is learned later)."""
    corpora, later = {}, {}
    for source in sources:
        dataset = load_corpus(source, label_scheme="four_emotions")
        name = dataset["corpus"][0]
        corpora[name] = capped(dataset, max_recordings)
        native = load_corpus(source)
        labels = native.features["label"].names
        if LEARNED_LATER in labels:
            rows = np.flatnonzero(np.array(native["label"]) == labels.index(LEARNED_LATER))
            later[f"{name} {LEARNED_LATER}"] = capped(native.select(rows), max_recordings // 5)
    if len(corpora) < 4:
        raise ValueError("Give at least four corpora: one is tested, one chooses settings, two are trained on.")
    return corpora, later


def gain_interval(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """Mean over corpora of UAR(after) − UAR(before) in points, and its interval.

    `pairs`: (before, after) confusion matrices (speakers, C, C) by corpus.
    """
    corpus = np.repeat(range(len(pairs)), [len(before) for before, _ in pairs])
    before, after = np.zeros((2, len(corpus), len(pairs), *pairs[0][0].shape[1:]))
    for place, (own_before, own_after) in enumerate(pairs):
        before[corpus == place, place], after[corpus == place, place] = own_before, own_after
    return tuple(100 * value for value in paired_bootstrap_difference(mean_uar, after, before, corpus))


# --- what both scripts do around it ---


def argument_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus", action="append", required=True, help="as train/run.py's --dataset_name; four or more")
    add("--noise", required=True, help="folder of noise recordings; of several sources ESC's")
    add("--recipe", default="train/configs/compact.yaml", help="YAML file with settings of train/run.py")
    add("--max_recordings", type=int, default=500, help="at most so many a corpus")
    add("--output", type=Path, required=True)
    add("--cache", type=Path, help="folder of embeddings; default: OUTPUT/cache")
    return parser


def print_tables(tables: Iterable[tuple[str, list[list]]], path: Path) -> Mapping[str, list[list]]:
    """Each (title, rows) as soon as it is there, and all of them, once they are, as a Markdown file."""
    found, texts = {}, []
    for title, rows in tables:
        found[title] = rows
        text = markdown_table(rows[0], rows[1:])
        print(f"\n{title}\n\n{text}", flush=True)
        texts.append(f"### {title}\n\n{text}")
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return found
