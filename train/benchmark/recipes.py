"""Training recipes in the benchmark: the settings of train/run.py, trained anew in each trial on cached embeddings."""

import ast
import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import PrinterCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from train.arguments import parse_arguments, resolved
from train.data.embeddings import EmbeddingCache, Embeddings, fingerprint_of
from train.evaluation.calibration import fit_temperature
from train.evaluation.predictions import SUFFIXES, AdaptationMode, predict, probabilities_of
from train.model_setup import build_model
from train.trainer import EdrlMeaTrainer

from .protocols import Trial, recording_names

# What the benchmark says in a recipe's place; the backbone is known by its weights, not by where they lie.
NOT_SETTINGS = {"dataset_name", "noise_dir", "rir_dir", "model_name_or_path", "label_scheme", "output_dir"}
QUIET = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": "True"}
# The rooms whose code decides what is predicted: with other code a prediction needs another address.
METHOD = ("modeling_edrl_mea", "train/data", "train/evaluation", "train/closed_form.py", "train/trainer.py")
WAY_OF_RUNNING = 2  # rises when Recipe.run predicts otherwise
HEARD_TESTS = " + the tests' corruptions"  # what the name of a row that heard them in training ends with
HELD_IN_MEMORY = 4 * 2**30  # bytes of statistics; reading them back from a thousand files takes a second a trial


class RecipeError(ValueError):
    """A recipe that cannot take part; the message says why."""


@dataclass
class TrialPredictions:
    """What a recipe trained in one trial said: probabilities (n, C) by way of answering, corpus, and condition's
    fingerprint or "clean"."""

    probabilities: dict[tuple[AdaptationMode, str, str], np.ndarray]
    temperature: float | None  # fitted on the trial's validation speakers


class Recipe:
    """A recipe: a YAML file with settings of train/run.py, of which the corpora and folders are the benchmark's.

    With `hears_tests` it trains on the corruptions that it is tested with too, on other speakers: no row to compare
    models by, but what knowing them would gain.

    Raises:
        RecipeError: a label_scheme other than the benchmark's. SystemExit: unknown settings, naming the nearest.
    """

    def __init__(
        self,
        name: str,
        file: str | Path,
        classes: Sequence[str],
        scheme: str,
        cache: str | Path = "cache",
        device: str = "cpu",
        hears_tests: bool = False,
    ):
        self.name, self.source, self.classes = name + HEARD_TESTS * hears_tests, str(file), list(classes)
        self.hears_tests = hears_tests
        ours = QUIET | {"output_dir": str(Path(cache) / "unused"), "use_cpu": str(device == "cpu")}
        self.arguments = parse_arguments(
            [str(file), *(part for key, said in ours.items() for part in (f"--{key}", said))]
        )
        self.model_args, self.data_args, config_args, self.training_args = self.arguments
        if self.data_args.label_scheme not in ("native", scheme):
            raise RecipeError(
                f"{file} has label_scheme {self.data_args.label_scheme}, and the benchmark {scheme}: leave it out of "
                f"the recipe, or run the benchmark with --label_scheme {self.data_args.label_scheme}."
            )
        set_seed(self.training_args.seed)
        self.template = build_model(self.model_args.model_name_or_path, self.classes, config_args).to(device)
        if not self.model_args.freeze_backbone or self.model_args.keep_last_n_layers:
            raise RecipeError(f"{file} trains the backbone; the benchmark's recipes share one that is frozen.")
        self.cache = EmbeddingCache(self.template, cache)

    temperature_fitted_on = "validation speakers of each training set, which are neither trained on nor tested"
    embedding_name = "speech embedding: mean and deviation of every layer of the backbone"

    @property
    def noisy_copies(self) -> int:
        return self.data_args.noisy_copies

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.template.parameters())

    @cached_property
    def settings(self) -> dict:
        """Everything that changes the answers, but for the recordings; JSON-able."""
        return {
            **{name: value for name, value in resolved(self.arguments).items() if name not in NOT_SETTINGS},
            "config": json.loads(self.template.config.to_json_string(use_diff=False)),
            "backbone": fingerprint_of(self.template),
            **({"hears_tests": True} if self.hears_tests else {}),
        }

    @property
    def given_settings(self) -> dict:
        """What its file says, for reports."""
        given = yaml.safe_load(Path(self.source).read_text(encoding="utf-8")) or {}
        if "model_name_or_path" in given:
            given["model_name_or_path"] = Path(given["model_name_or_path"]).name
        return {name: value for name, value in given.items() if name not in ("dataset_name", "noise_dir", "rir_dir")}

    def prepare(self, audio: Sequence, condition=None, title: str = "") -> torch.Tensor:
        return self.cache.embed(audio, condition, title=title)

    def run(self, trial: Trial, data: "BenchmarkData", conditions: Sequence) -> TrialPredictions:
        """Trains on the trial's training rows, and answers for each of its tests in each condition."""
        set_seed(self.training_args.seed)
        # The frozen backbone is shared, not copied: only the heads learn.
        model = copy.deepcopy(self.template, {id(self.template.backbone): self.template.backbone})
        heard = [condition for condition in conditions if condition is not None] if self.hears_tests else []
        train = data.embeddings(trial.train, self.noisy_copies, heard)
        validation = data.embeddings(trial.validation) if trial.validation else None
        arguments = copy.deepcopy(self.training_args)
        if validation is None:
            arguments.eval_strategy = IntervalStrategy.NO
        trainer = EdrlMeaTrainer(model, arguments, train, validation, patience=self.model_args.patience)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model = trainer.model
        temperature = None
        if validation is not None:
            temperature = fit_temperature(validation.labels.numpy(), predict(model, validation))
        answers = TrialPredictions({}, temperature)
        for corpus, rows in trial.tests.items():
            speakers = np.array(data.corpora[corpus]["speaker"])[rows]
            for condition in conditions:
                statistics = data.statistics(corpus, condition)[rows]
                for way in SUFFIXES:
                    said = probabilities_of(model, statistics, way, speakers)
                    answers.probabilities[way, corpus, condition_key(condition)] = said
        return answers


class BenchmarkData:
    """Statistics of every corpus in every condition, by the cache of one backbone."""

    def __init__(self, corpora: Mapping, cache, augmentation=None):
        self.corpora, self.cache, self.augmentation = corpora, cache, augmentation
        self._audio = {name: list(dataset["audio"]) for name, dataset in corpora.items()}
        self._held: dict[tuple, torch.Tensor] = {}  # least recently used first

    def statistics(self, corpus: str, condition=None, keys=None, title: str = "") -> torch.Tensor:
        """Layer statistics (N, L+1, S') of a whole corpus."""
        place = corpus, condition_key(condition), keys and keys[0]
        found = self._held.pop(place, None)
        if found is None:
            found = self.cache.embed(self._audio[corpus], condition, keys, title or corpus)
        self._held[place] = found
        while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > HELD_IN_MEMORY:
            self._held.pop(next(iter(self._held)))
        return found

    def noisy_copy(self, corpus: str, copy_number: int, title: str = "") -> torch.Tensor:
        names = recording_names(self.corpora[corpus])
        keys = [f"{corpus}/{name}#{copy_number}" for name in names]
        return self.statistics(corpus, self.augmentation, keys, title)

    def embeddings(
        self, rows: Mapping[str, np.ndarray], noisy_copies: int = 0, conditions: Sequence = ()
    ) -> Embeddings:
        """The recordings of some rows by corpus, with noisy copies of all of them, and a copy in each condition."""
        clean = torch.cat([self.statistics(name)[picked] for name, picked in rows.items()])
        labels = np.concatenate([np.array(self.corpora[name]["label"])[picked] for name, picked in rows.items()])
        speakers = np.concatenate([np.array(self.corpora[name]["speaker"])[picked] for name, picked in rows.items()])
        names = [name for name, picked in rows.items() for _ in picked]
        data = Embeddings(clean, torch.from_numpy(labels), speakers.tolist(), torch.arange(len(labels)), names)
        sources = [partial(self.noisy_copy, copy_number=number) for number in range(noisy_copies)]
        sources += [partial(self.statistics, condition=condition) for condition in conditions]
        copies = [torch.cat([source(name)[picked] for name, picked in rows.items()]) for source in sources]
        return data.with_copies(copies) if copies else data


def condition_key(condition) -> str:
    return "clean" if condition is None else condition.fingerprint


@cache
def method_fingerprint() -> str:
    """Changes with the code that trains, but not with its comments and docstrings."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256(str(WAY_OF_RUNNING).encode())
    files = (file for room in METHOD for file in sorted((root / room).glob("*.py")) or [root / room])
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body.pop(0)
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]
