"""All contenders through all protocols: what scripts/benchmark_robustness.py runs.

Slow work is stored piece by piece and addressed by content: embeddings and scores by the cache, each contender's
predictions in each trial by `store_predictions`. So a run that was killed goes on where it was, and another run that
shares a part with it starts from there. What fails is listed, and everything else stands.
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from train.data.dataset import ratings_of
from train.data.files import atomic_write, checksum, content_hash, fingerprint
from train.data.recordings import recording_names
from train.evaluation.predictions import SUFFIXES, AdaptationMode, Predictions

from .contenders import BenchmarkData, Contender, TrialPredictions, condition_key
from .protocols import Trial

logger = logging.getLogger(__name__)


@dataclass
class Cell:
    """One model's predictions on one corpus in one condition: what becomes a row of the report."""

    model: str
    protocol: str
    train: tuple[str, ...]
    test: str
    condition: str
    level: int | None
    setting: dict | None
    predictions: Predictions
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
    folder: Path  # of the stored predictions
    augmentation: object = None
    adapt: Sequence[AdaptationMode] = ()
    n_processes: int = 1  # that train at once
    test_rows: Mapping = field(default_factory=dict)  # what finished models are given of a corpus; default: all
    errors: list[dict] = field(default_factory=list)
    data: dict = field(default_factory=lambda: {"parts": {}, "notes": []})  # what was read, for the report
    scales: Mapping = field(default_factory=dict)  # ends of the scale of each attribute that corpora have ratings of

    def __post_init__(self):
        self.names = {name: np.array(recording_names(dataset["audio"])) for name, dataset in self.corpora.items()}
        self.columns = {
            name: (np.array(dataset["label"]), np.array(dataset["speaker"])) for name, dataset in self.corpora.items()
        }
        self.ratings = {name: ratings_of(dataset) for name, dataset in self.corpora.items()}
        self.failed: set[tuple[str, str]] = set()  # (corpus, condition) that no backbone could be given

    def run(self, contenders: Sequence[Contender]) -> list[Cell]:
        trials = {
            contender.name: contender.trials(self.trials, self.corpora, self.test_rows) for contender in contenders
        }
        data = self.embed(contenders, trials)
        # Contender after contender in each trial: what the trial is trained and tested on is read once.
        jobs = [
            (contender, trial, data[contender.name]) for contender in contenders for trial in trials[contender.name]
        ]
        order = {id(trial): place for place, trial in enumerate(self.trials)}
        jobs.sort(key=lambda job: order.get(id(job[1]), -1))
        done = {}
        finished = tqdm(self.evaluated(jobs), desc="trials", unit="trial", total=len(jobs), disable=not jobs)
        for (contender, trial, _), predictions, error in finished:
            if error is None:
                done[contender.name, id(trial)] = predictions
            else:
                self.fail(contender.name, f"{trial.title}: {error}", trial)
        return [cell for contender in contenders for cell in self.cells(contender, trials[contender.name], done)]

    def evaluated(self, jobs: Sequence) -> Iterator:
        """(job, its predictions, None), or (job, None, what went wrong), in any order, by `n_processes` at once."""
        if self.n_processes == 1 or len(jobs) < 2:
            yield from map(self.attempt, jobs)
            return
        # Forked, processes share the contenders and the statistics that are in memory.
        with ProcessPoolExecutor(self.n_processes, get_context("fork"), torch.set_num_threads, (1,)) as pool:
            global _running
            _running = self, jobs
            for future in as_completed([pool.submit(_attempt_numbered, number) for number in range(len(jobs))]):
                number, predictions, error = future.result()
                yield jobs[number], predictions, error

    def attempt(self, job) -> tuple:
        contender, trial, data = job
        try:
            return job, self.evaluate(contender, trial, data), None
        except Exception as error:  # one failure must not cost the others' results
            logger.debug("%s, %s", contender.name, trial.title, exc_info=True)
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

    def embed(self, contenders: Sequence[Contender], trials: Mapping) -> dict[str, BenchmarkData]:
        """Everything slow, before anything is trained: each backbone once over each corpus and condition."""
        by_folder: dict[Path, BenchmarkData] = {}
        data, jobs, copies = {}, {}, {}
        for contender in contenders:
            fresh = BenchmarkData(self.corpora, contender.cache, self.augmentation)
            held = data[contender.name] = by_folder.setdefault(contender.cache.folder, fresh)
            in_conditions = {
                name for trial in trials[contender.name] if trial.protocol == "folds" for name in trial.tests
            }
            for name in self.corpora:
                for condition in (None, *self.conditions) if name in in_conditions else (None,):
                    jobs[id(held), name, condition_key(condition)] = held, name, condition
                for number in range(contender.noisy_copies):
                    copies[id(held), name, number] = held, name, number
        for held, name, condition in tqdm(jobs.values(), desc="corpora in conditions", unit="condition"):
            title = f"{name}, {condition.name} {condition.level}" if condition is not None else name
            try:
                held.statistics(name, condition, title=title)
            except (ValueError, OSError, RuntimeError) as error:
                if (name, condition_key(condition)) not in self.failed:
                    self.fail("all", f"{title}: {error}", test=name)
                self.failed.add((name, condition_key(condition)))
        for held, name, number in copies.values():
            if (name, "clean") not in self.failed:
                held.statistics(name, self.augmentation, number, f"{name}, noisy copy {number + 1}")
        return data

    def usable(self, corpus: str) -> list:
        """Conditions of a corpus that could be made: None for clean speech, then corruptions."""
        return [c for c in (None, *self.conditions) if (corpus, condition_key(c)) not in self.failed]

    # --- predictions ----------------------------------------------------------------------------------

    def evaluate(self, contender: Contender, trial: Trial, data: BenchmarkData) -> TrialPredictions:
        """From the store, or computed now and stored."""
        unusable = [name for name in (*trial.train, *trial.tests) if (name, "clean") in self.failed]
        if unusable:
            raise ValueError(f"{', '.join(unusable)} could not be read")
        conditions = self.usable(next(iter(trial.tests))) if trial.protocol == "folds" else [None]
        path = self.folder / "predictions" / f"{self.address(contender, trial, conditions)}.npz"
        found = read_predictions(path)
        if found is None:
            store_predictions(path, contender.run(trial, data, conditions))
            found = read_predictions(path)
        return found

    def address(self, contender: Contender, trial: Trial, conditions: Sequence) -> str:
        def rows(by_corpus):
            return {name: self.content(name, picked) for name, picked in by_corpus.items()}

        settings = {
            "contender": contender.settings,
            "augmentation": self.augmentation.fingerprint if contender.noisy_copies else None,
            "train": rows(trial.train),
            "validation": rows(trial.validation),
            "tests": rows(trial.tests),
            "conditions": [condition_key(condition) for condition in conditions],
        }
        return fingerprint(settings, 24)

    def content(self, corpus: str, rows: np.ndarray) -> str:
        """Changes with the recordings' bytes, names, labels and speakers."""
        labels, speakers = self.columns[corpus]
        audio = self.corpora[corpus]["audio"]
        hashes = [content_hash(audio[row]).hex() for row in rows.tolist()]
        known = [self.names[corpus][rows], labels[rows], speakers[rows], hashes]
        if self.ratings[corpus] is not None:
            known.append(self.ratings[corpus][rows].tolist())
        return fingerprint("\n".join(map(str, zip(*known, strict=True))))

    # --- cells ----------------------------------------------------------------------------------------

    def cells(self, contender: Contender, trials: Sequence[Trial], done: Mapping) -> list[Cell]:
        groups: dict[tuple, list[Trial]] = {}
        for trial in trials:
            for test in trial.tests:
                groups.setdefault((trial.protocol, contender.trained_on or tuple(trial.train), test), []).append(trial)
        cells = []
        for (protocol, train, test), parts in groups.items():
            if any((contender.name, id(trial)) not in done for trial in parts):
                continue  # a fold that failed takes its corpus's row
            predicted = [(trial, done[contender.name, id(trial)]) for trial in parts]
            for mode in ("plain", *self.adapt):
                if mode in contender.modes:
                    cells += self.joined_cells(contender.name, mode, protocol, train, test, predicted)
        return cells

    def joined_cells(self, name, mode: AdaptationMode, protocol, train, test, parts) -> list[Cell]:
        """The folds of one corpus as one cell a condition."""
        temperatures = None
        if all((mode, test) in found.temperatures for _, found in parts):
            temperatures = np.concatenate([found.temperatures[mode, test] for _, found in parts])
        cells = []
        for condition in self.usable(test) if protocol == "folds" else [None]:
            key = test, condition_key(condition)
            joined = [
                self.predictions(
                    test,
                    trial.tests[test],
                    found.probabilities[(mode, *key)],
                    found.probabilities.get(("attributes", *key)),
                )
                for trial, found in parts
            ]
            joined = Predictions.joined(joined)
            label, level, setting = "clean", None, None
            if condition is not None:
                label, level, setting = condition.name, condition.level, condition.setting
            shown = protocol if protocol != "folds" else "clean" if condition is None else "corruption"
            about = (label, level, setting, joined, temperatures, parts[0][0].folds)
            cells.append(Cell(name + SUFFIXES[mode], shown, train, test, *about))
        return cells

    def predictions(self, corpus: str, rows: np.ndarray, probabilities: np.ndarray, attributes=None) -> Predictions:
        labels, speakers = self.columns[corpus]
        ratings = None if attributes is None else self.ratings[corpus][rows].numpy()
        return Predictions(labels[rows], probabilities, speakers[rows], self.names[corpus][rows], ratings, attributes)


_running: tuple = ()  # the benchmark and its jobs, for the processes forked from this one


def _attempt_numbered(number: int) -> tuple:
    benchmark, jobs = _running
    _, predictions, error = benchmark.attempt(jobs[number])
    return number, predictions, error


# --- stored predictions -------------------------------------------------------------------------------


def store_predictions(path: Path, predictions: TrialPredictions) -> None:
    """One file a trial, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"|".join(place): found for place, found in predictions.probabilities.items()}
    arrays |= {"|".join(place): found for place, found in predictions.temperatures.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue() + checksum(path, [content.getbuffer()]))


def read_predictions(path: Path) -> TrialPredictions | None:
    """None where they are not there or damaged."""
    content = path.read_bytes() if path.is_file() else b""
    if len(content) < 5 or checksum(path, [content[:-4]]) != content[-4:]:
        if content:
            logger.warning("%s is damaged: its trial is run again.", path)
        return None
    with np.load(io.BytesIO(content[:-4])) as stored:
        arrays = {tuple(name.split("|")): stored[name] for name in stored.files}
    probabilities = {place: found for place, found in arrays.items() if len(place) == 3}
    return TrialPredictions(probabilities, {place: found for place, found in arrays.items() if len(place) == 2})
