"""Training recipes in the benchmark: the settings of train/run.py, trained anew in each trial on cached embeddings."""

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml
from transformers import PrinterCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from modeling_edrl_mea import EdrlMeaForAudioClassification
from train.arguments import parse_arguments, resolved
from train.data.embeddings import EmbeddingCache, fingerprint_of
from train.data.files import fingerprint_of_code
from train.evaluation.calibration import fit_temperature
from train.evaluation.predictions import SUFFIXES, predict, probabilities_of
from train.model_setup import build_model
from train.trainer import EdrlMeaTrainer

from .contenders import BenchmarkData, TrialPredictions, condition_key
from .protocols import Trial

# What the benchmark sets in a recipe's place; the backbone is known by its weights, not by where they lie.
NOT_SETTINGS = {"dataset_name", "noise_dir", "rir_dir", "model_name_or_path", "label_scheme", "output_dir"}
QUIET = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": "True"}


class RecipeError(ValueError):
    """A recipe that cannot take part; the message tells why."""


class Recipe:
    """A recipe: a YAML file with settings of train/run.py, of which the corpora and folders are the benchmark's.

    `changed`: settings that replace those of the file.

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
        scales: Mapping[str, Sequence[float]] | None = None,
        changed: Mapping[str, str] | None = None,
    ):
        self.name, self.source, self.classes = name, str(file), list(classes)
        ours = QUIET | {"output_dir": str(Path(cache) / "unused"), "use_cpu": str(device == "cpu")} | (changed or {})
        self.arguments = parse_arguments(
            [str(file), *(part for key, value in ours.items() for part in (f"--{key}", value))]
        )
        self.model_args, self.data_args, config_args, self.training_args = self.arguments
        if self.data_args.label_scheme not in ("native", scheme):
            raise RecipeError(
                f"{file} has label_scheme {self.data_args.label_scheme}, and the benchmark {scheme}: leave it out of "
                f"the recipe, or run the benchmark with --label_scheme {self.data_args.label_scheme}."
            )
        set_seed(self.training_args.seed)
        ranges = {attribute: list(ends) for attribute, ends in (scales or {}).items()}
        self.template = build_model(self.model_args.model_name_or_path, self.classes, config_args, ranges).to(device)
        if not self.model_args.freeze_backbone or self.model_args.keep_last_n_layers:
            raise RecipeError(f"{file} trains the backbone; the benchmark's recipes share one that is frozen.")
        self.cache = EmbeddingCache(self.template, cache)

    trained_on, folder, modes = (), None, tuple(SUFFIXES)
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
        """Everything that changes the predictions but the recordings; JSON-able."""
        return {
            "code": fingerprint_of_code(__name__),
            **{name: value for name, value in resolved(self.arguments).items() if name not in NOT_SETTINGS},
            "config": json.loads(self.template.config.to_json_string(use_diff=False)),
            "backbone": fingerprint_of(self.template),
        }

    @property
    def given_settings(self) -> dict:
        """What its file sets, for reports."""
        given = yaml.safe_load(Path(self.source).read_text(encoding="utf-8")) or {}
        if "model_name_or_path" in given:
            given["model_name_or_path"] = Path(given["model_name_or_path"]).name
        return {name: value for name, value in given.items() if name not in ("dataset_name", "noise_dir", "rir_dir")}

    def trials(self, planned: Sequence[Trial], corpora: Mapping, test_rows: Mapping) -> Sequence[Trial]:
        return planned

    def notes(self, corpora: Mapping) -> list[str]:
        return []

    def run(self, trial: Trial, data: BenchmarkData, conditions: Sequence) -> TrialPredictions:
        """Trains on the trial's training rows, and predicts each of its tests in each condition."""
        validation = data.embeddings(trial.validation) if trial.validation else None
        return self._predictions(self.train(trial, data, validation), trial, data, conditions, validation)

    def train(self, trial: Trial, data: BenchmarkData, validation=None) -> EdrlMeaForAudioClassification:
        """The model of a trial, which stops early by the embeddings `validation`."""
        set_seed(self.training_args.seed)
        # The frozen backbone is shared, not copied: only the heads learn.
        model = copy.deepcopy(self.template, {id(self.template.backbone): self.template.backbone})
        train = data.embeddings(trial.train, self.noisy_copies)
        arguments = copy.deepcopy(self.training_args)
        if validation is None:
            arguments.eval_strategy = IntervalStrategy.NO
        trainer = EdrlMeaTrainer(model, arguments, train, validation, patience=self.model_args.patience)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.model

    def _predictions(self, model, trial: Trial, data: BenchmarkData, conditions, validation) -> TrialPredictions:
        found = TrialPredictions()
        if validation is not None:
            predicted = predict(model, validation)
            temperature = fit_temperature(validation.labels.numpy(), predicted, validation.speakers)
        for corpus, rows in trial.tests.items():
            speakers = np.array(data.corpora[corpus]["speaker"])[rows]
            for condition in conditions:
                statistics = data.statistics(corpus, condition)[rows]
                found.rate(model, statistics, corpus, condition)
                for mode in self.modes:
                    probabilities = probabilities_of(model, statistics, mode, speakers)
                    found.probabilities[mode, corpus, condition_key(condition)] = probabilities
                    if validation is not None:
                        found.temperatures[mode, corpus] = np.full(len(rows), temperature)
        return found
