"""All contenders through all protocols: what scripts/benchmark_robustness.py runs.

Slow work is stored piece by piece and addressed by content: embeddings and scores by the cache, each recipe's answers
in each trial by `AnswerStore`. So a run that was killed goes on where it was, and another run that shares a part with
it starts from there. What fails is listed, and everything else stands.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from train.data.files import atomic_write
from train.evaluation.predictions import SUFFIXES, AdaptationMode, Predictions

from .hub_models import HubModel
from .protocols import Trial, recording_names
from .recipes import BenchmarkData, Recipe, TrialPredictions, condition_key, method_fingerprint

logger = logging.getLogger(__name__)


@dataclass
class Cell:
    """One model's answers on one corpus in one condition: what becomes a row of the report."""

    model: str
    protocol: str
    train: tuple[str, ...]
    test: str
    condition: str
    level: int | None
    setting: dict | None
    answers: Predictions
    temperatures: np.ndarray | None  # (N,) each fitted on other speakers
    folds: dict | None = None


@dataclass
class Benchmark:
    """The contenders, corpora and conditions of one run; `run` gives its cells, and `errors` what failed.

    `conditions`: corruptions of train/degradation/corruptions.py; clean speech is always measured. `adapt`: further
    modes of prediction, each a row more for each contender that can adapt.
    """

    corpora: Mapping  # datasets by name
    trials: Sequence[Trial]
    conditions: Sequence
    folder: Path  # of the stored answers
    augmentation: object = None
    adapt: Sequence[AdaptationMode] = ()
    n_processes: int = 1  # that train at once
    test_rows: Mapping = field(default_factory=dict)  # what finished models are given of a corpus; default: all
    errors: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.names = {name: np.array(recording_names(dataset)) for name, dataset in self.corpora.items()}
        self.columns = {
            name: (np.array(dataset["label"]), np.array(dataset["speaker"])) for name, dataset in self.corpora.items()
        }
        self.failed: set[tuple[str, str]] = set()  # (corpus, condition) that no backbone could be given

    def run(self, contenders: Sequence) -> list[Cell]:
        recipes = [contender for contender in contenders if isinstance(contender, Recipe)]
        data = self.embed([contender for contender in contenders if contender not in recipes], recipes)
        # Recipe after recipe in each trial: what the trial is trained and tested on is read once.
        jobs = [
            (recipe, trial, data[id(recipe)])
            for trial in self.trials
            for recipe in recipes
            if trial.protocol == "folds" or not recipe.hears_tests  # elsewhere tests are clean: nothing to hear
        ]
        done = {}
        finished = tqdm(self.trained(jobs), desc="training", unit="trial", total=len(jobs), disable=not jobs)
        for (recipe, trial, _), answers, error in finished:
            if error is None:
                done[recipe.name, id(trial)] = answers
            else:
                self.fail(recipe.name, f"{trial.title}: {error}", trial)
        cells = []
        for contender in contenders:
            if isinstance(contender, Recipe):
                cells += self.recipe_cells(contender, done)
            else:
                cells += self.pretrained_cells(contender)
        return cells

    def trained(self, jobs: Sequence) -> Iterator:
        """(job, its answers, None), or (job, None, what went wrong), in any order, by `n_processes` at once."""
        if self.n_processes == 1 or len(jobs) < 2:
            yield from (self.attempt(job) for job in jobs)
            return
        # Forked, processes share the recipes and the statistics that are in memory.
        with ProcessPoolExecutor(self.n_processes, get_context("fork"), torch.set_num_threads, (1,)) as pool:
            global _running
            _running = self, jobs
            for future in as_completed([pool.submit(_attempt_numbered, number) for number in range(len(jobs))]):
                number, answers, error = future.result()
                yield jobs[number], answers, error

    def attempt(self, job) -> tuple:
        recipe, trial, data = job
        try:
            return job, self.evaluate(recipe, trial, data), None
        except Exception as error:  # one failure must not cost the others' results
            logger.debug("%s, %s", recipe.name, trial.title, exc_info=True)
            return job, None, f"{type(error).__name__}: {error}"

    def fail(self, model: str, error, trial: Trial | None = None, **where) -> None:
        if trial is not None:
            protocol = "clean" if trial.protocol == "folds" else trial.protocol
            where |= {
                "protocol": protocol,
                "train": list(trial.train),
                "test": "+".join(trial.tests),
                "fold": trial.fold,
            }
        self.errors.append({"model": model, "error": str(error), **where})
        logger.error("%s: %s", model, error)

    # --- embeddings -----------------------------------------------------------------------------------

    def embed(self, pretrained: Sequence[HubModel], recipes: Sequence[Recipe]) -> dict:
        """Everything slow, before anything is trained: each backbone once over each corpus and condition."""
        caches: dict[Path, BenchmarkData] = {}
        data = {}
        for recipe in recipes:
            held = BenchmarkData(self.corpora, recipe.cache, self.augmentation)
            data[id(recipe)] = caches.setdefault(recipe.cache.folder, held)
        tested = {name for trial in self.trials for name in trial.tests}
        in_folds = {name for trial in self.trials if trial.protocol == "folds" for name in trial.tests}
        jobs = [(held.statistics, name, None) for held in caches.values() for name in self.corpora]
        jobs += [
            (held.statistics, name, condition)
            for held in caches.values()
            for name in self.corpora
            if name in tested & in_folds
            for condition in self.conditions
        ]
        jobs += [
            (contender.prepare, name, condition)
            for contender in pretrained
            for name in self.corpora
            for condition in (None, *self.conditions)
        ]
        copies = max((recipe.noisy_copies for recipe in recipes), default=0)
        for act, name, condition in tqdm(jobs, desc="corpora in conditions", unit="condition", disable=not jobs):
            title = f"{name}, {condition.name} {condition.level}" if condition is not None else name
            try:
                act(name if act.__name__ == "statistics" else list(self.corpora[name]["audio"]), condition, title=title)
            except (ValueError, OSError, RuntimeError) as error:
                if (name, condition_key(condition)) not in self.failed:
                    self.fail("all", f"{title}: {error}", test=name)
                self.failed.add((name, condition_key(condition)))
        for held in caches.values():
            for name in self.corpora:
                for number in range(copies if (name, "clean") not in self.failed else 0):
                    held.noisy_copy(name, number, f"{name}, noisy copy {number + 1} of {copies}")
        return data

    def usable(self, corpus: str) -> list:
        """Conditions of a corpus that could be made: None for clean speech, then corruptions."""
        return [c for c in (None, *self.conditions) if (corpus, condition_key(c)) not in self.failed]

    # --- recipes --------------------------------------------------------------------------------------

    def evaluate(self, recipe: Recipe, trial: Trial, data: BenchmarkData) -> TrialPredictions:
        """From the store, or trained now and stored."""
        unusable = [name for name in (*trial.train, *trial.tests) if (name, "clean") in self.failed]
        if unusable:
            raise ValueError(f"{', '.join(unusable)} could not be read")
        conditions = self.usable(next(iter(trial.tests))) if trial.protocol == "folds" else [None]
        address = self.folder / "answers" / f"{self.address(recipe, trial, conditions)}.npz"
        if not address.is_file():
            store_answers(address, recipe.run(trial, data, conditions))
        return read_answers(address)

    def address(self, recipe: Recipe, trial: Trial, conditions: Sequence) -> str:
        def rows(by_corpus):
            return {name: self.content(name, picked) for name, picked in by_corpus.items()}

        settings = {
            "method": method_fingerprint(),
            "recipe": recipe.settings,
            "augmentation": self.augmentation.fingerprint if recipe.noisy_copies else None,
            "train": rows(trial.train),
            "validation": rows(trial.validation),
            "tests": rows(trial.tests),
            "conditions": [condition_key(condition) for condition in conditions],
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:24]

    def content(self, corpus: str, rows: np.ndarray) -> str:
        labels, speakers = self.columns[corpus]
        audio = self.corpora[corpus]["audio"]
        sizes = [os.stat(audio[row]).st_size if isinstance(audio[row], str) else 0 for row in rows.tolist()]
        text = "\n".join(map(str, zip(self.names[corpus][rows], labels[rows], speakers[rows], sizes, strict=True)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def recipe_cells(self, recipe: Recipe, done: Mapping) -> list[Cell]:
        groups: dict[tuple, list[Trial]] = {}
        for trial in self.trials:
            for test in trial.tests:
                groups.setdefault((trial.protocol, tuple(trial.train), test), []).append(trial)
        cells = []
        for (protocol, train, test), trials in groups.items():
            if all((recipe.name, id(trial)) in done for trial in trials):  # a fold that failed takes its corpus's row
                parts = [(trial, done[recipe.name, id(trial)]) for trial in trials]
                for way in ("plain", *self.adapt):
                    cells += self.joined_cells(recipe.name, way, protocol, train, test, parts)
        return cells

    def joined_cells(self, name, way: AdaptationMode, protocol, train, test, parts) -> list[Cell]:
        """The folds of one corpus as one cell a condition."""
        cells = []
        for condition in self.usable(test) if protocol == "folds" else [None]:
            answers, temperatures = [], []
            for trial, found in parts:
                said = found.probabilities[way, test, condition_key(condition)]
                answers.append(self.as_answers(test, trial.tests[test], said))
                temperatures.append(np.full(len(said), np.nan if found.temperature is None else found.temperature))
            joined = np.concatenate(temperatures)
            row, folds = name + SUFFIXES[way], parts[0][0].folds
            cells.append(self.cell(row, protocol, train, test, condition, Predictions.joined(answers), folds))
            cells[-1].temperatures = None if np.isnan(joined).any() else joined
        return cells

    def cell(self, name, protocol, train, test, condition, answers: Predictions, folds=None) -> Cell:
        if protocol == "folds":
            protocol = "clean" if condition is None else "corruption"
        label, level, setting = "clean", None, None
        if condition is not None:
            label, level, setting = condition.name, condition.level, condition.setting
        return Cell(name, protocol, tuple(train), test, label, level, setting, answers, None, folds)

    def as_answers(self, corpus: str, rows: np.ndarray, probabilities: np.ndarray) -> Predictions:
        labels, speakers = self.columns[corpus]
        return Predictions(labels[rows], probabilities, speakers[rows], self.names[corpus][rows])

    # --- finished models ------------------------------------------------------------------------------

    def pretrained_cells(self, contender: HubModel) -> list[Cell]:
        cells = []
        ways = ("plain", *(self.adapt if contender.is_edrl_mea else ()))
        for corpus, dataset in self.corpora.items():
            rows = self.test_rows.get(corpus, np.arange(len(dataset)))
            rows = rows[~np.isin(self.columns[corpus][1][rows], list(contender.trained_speakers))]
            if not len(rows):
                self.fail(contender.name, f"{contender.name} was trained on every speaker of {corpus}", test=corpus)
                continue
            speakers = self.columns[corpus][1][rows]
            for way in ways:
                row, temperatures = contender.name + SUFFIXES[way], None
                for condition in self.usable(corpus):
                    said = contender.probabilities(list(dataset["audio"]), condition, rows, way, speakers)
                    answers = self.as_answers(corpus, rows, said)
                    if condition is None:
                        temperatures = contender.temperatures(answers)
                    cells.append(self.cell(row, "folds", contender.trained_on, corpus, condition, answers))
                    cells[-1].temperatures = temperatures
        return cells


_running: tuple = ()  # the benchmark and its jobs, for the processes forked from this one


def _attempt_numbered(number: int) -> tuple:
    benchmark, jobs = _running
    _, answers, error = benchmark.attempt(jobs[number])
    return number, answers, error


# --- stored answers -----------------------------------------------------------------------------------


def store_answers(path: Path, answers: TrialPredictions) -> None:
    """One file a trial, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"|".join(place): said for place, said in answers.probabilities.items()}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, temperature=np.float64(answers.temperature or np.nan), **arrays)


def read_answers(path: Path) -> TrialPredictions:
    with np.load(path) as stored:
        parts = {name: stored[name] for name in stored.files}
    temperature = float(parts.pop("temperature"))
    probabilities = {tuple(name.split("|")): said for name, said in parts.items()}
    return TrialPredictions(probabilities, None if np.isnan(temperature) else temperature)
