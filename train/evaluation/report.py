"""The report: what a model was measured to do, as JSON. It is the only thing that `hub_card` reads.

`REPORT_SCHEMA` describes each field; `write_report` refuses a report that does not fit it. A report is
built of three kinds of parts:

    predictions = Predictions(references, probabilities, speakers)       # of some recordings
    row = result_row("my-model", labels, predictions, test="emodb", train=["emodb"], temperature=1.3)
    model = model_entry("my-model", labels, source="outputs/my-model", folder="outputs/my-model",
                        parameters=4_512_345, temperature=1.3, fitted_on="validation speakers of emodb")
    report = new_report(command, seed=0, models=[model], results=[row],
                        training=training_entry([train_set], "four_emotions", augmentation, config, splits))
    write_report(report, "outputs/my-model")                         # report.json and report.md

All proportions are in 0…1. JSON has no NaN: what is not known (an interval over one speaker) is null.
"""

import copy
import datetime
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from hub_card.fingerprint import weights_fingerprint
from hub_card.schema import SCHEMA, validate
from train.data.catalogue import CORPORA
from train.data.files import atomic_write

from .markdown import as_markdown
from .metrics import bootstrap_interval, calibration_by_speaker, moments_by_speaker, recalls_of
from .predictions import Predictions

ATTRIBUTE_METRICS = ("ccc", "pearson", "rmse")
PACKAGES = ("torch", "transformers", "datasets", "numpy", "scikit-learn", "audiomentations", "pyroomacoustics")


# --- the parts ----------------------------------------------------------------------------------------


def result_row(
    model: str,
    labels: Sequence[str],
    predictions: Predictions,
    *,
    test: str,
    train: Sequence[str] = (),
    protocol: str = "clean",
    condition: str = "clean",
    level: int | None = None,
    setting: Mapping | None = None,
    temperature: float | np.ndarray | None = None,
    scales: Mapping[str, Sequence[float]] | None = None,
    resamples: int = 1000,
    **more,
) -> dict:
    """One entry of `results`: how a model did on one corpus in one condition.

    `labels`: emotions in the order of the probabilities. `temperature`: one fitted on other speakers, or one for each
    recording (N,); it gives `ece_calibrated`. `scales`: the ends of each attribute's, in the predictions' order.
    Intervals resample speakers. `more` is added to the row as it is.
    """
    labeled = predictions.labeled()
    found = _of_emotions(labels, labeled, temperature, resamples) if len(labeled) else _of_no_emotions(labels)
    if len(labeled) < len(predictions):
        found["n_labeled"] = len(labeled)
    if scales and predictions.ratings is not None:
        found["attributes"] = attribute_entries(predictions, scales, resamples)
    return {
        "model": model,
        "protocol": protocol,
        "train": list(train),
        "test": test,
        "condition": condition,
        "level": level,
        "setting": dict(setting) if setting else None,
        "n_recordings": len(predictions),
        "n_speakers": len(set(predictions.speakers.tolist())),
        **found,
        **more,
    }


def _of_emotions(labels: Sequence[str], predictions: Predictions, temperature, resamples: int) -> dict:
    confusion, _ = predictions.confusion()
    reliability, _ = calibration_by_speaker(predictions.references, predictions.probabilities, predictions.speakers)
    metrics = {name: interval_entry(name, confusion, resamples) for name in ("uar", "wa", "macro_f1")}
    metrics["ece"] = interval_entry("ece", reliability, resamples)
    if temperature is not None:
        calibrated = predictions.calibrated(temperature)
        reliability, _ = calibration_by_speaker(calibrated.references, calibrated.probabilities, calibrated.speakers)
        metrics["ece_calibrated"] = interval_entry("ece", reliability, resamples)
    total = confusion.sum(0)
    recalls = {label: _number(recall) for label, recall in zip(labels, recalls_of(total), strict=True)}
    return {"metrics": metrics, "recall": recalls, "confusion": total.tolist()}


def _of_no_emotions(labels: Sequence[str]) -> dict:
    """The same where no recording has an emotion."""
    unknown = dict.fromkeys(("value", "low", "high"))
    return {
        "metrics": {name: dict(unknown) for name in ("uar", "wa", "macro_f1")},
        "recall": dict.fromkeys(labels),
        "confusion": [[0] * len(labels) for _ in labels],
    }


def attribute_entries(predictions: Predictions, scales: Mapping[str, Sequence[float]], resamples: int = 1000) -> dict:
    """By attribute that has a rating: CCC, Pearson's correlation and RMSE with their intervals, and the scale."""
    entries, columns = {}, zip(predictions.ratings.T, predictions.attributes.T, strict=True)
    for (name, scale), (ratings, predicted) in zip(scales.items(), columns, strict=True):
        rated = np.isfinite(ratings)
        if rated.any():
            moments, speakers = moments_by_speaker(ratings, predicted, predictions.speakers)
            found = {statistic: interval_entry(statistic, moments, resamples) for statistic in ATTRIBUTE_METRICS}
            about = {"n_recordings": int(rated.sum()), "n_speakers": len(speakers), "scale": list(map(float, scale))}
            entries[name] = found | about
    return entries


def interval_entry(statistic, counts: np.ndarray, resamples: int = 1000, strata=None) -> dict:
    """{"value", "low", "high"} of a statistic of counts by speaker; low and high null where one speaker is all."""
    if len(counts) < 2:
        counts = np.concatenate([counts, np.zeros_like(counts)])  # which adds nothing, and spares the warning
        return {"value": float(bootstrap_interval(statistic, counts, None, 2).estimate), "low": None, "high": None}
    return dict(zip(("value", "low", "high"), bootstrap_interval(statistic, counts, strata, resamples), strict=True))


def model_entry(
    name: str,
    labels: Sequence[str],
    *,
    source: str,
    folder: str | Path | None = None,
    parameters: int | None = None,
    temperature: float | None = None,
    fitted_on: str = "validation speakers",
    **more,
) -> dict:
    """One entry of `models`. `folder`: where its weights lie, for the fingerprint; None for a recipe."""
    has_weights = folder is not None and any(Path(folder).glob("*.safetensors"))
    calibration = None if temperature is None else {"temperature": float(temperature), "fitted_on": fitted_on}
    return {
        "name": name,
        "fingerprint": weights_fingerprint(folder) if has_weights else None,
        "source": str(source),
        "labels": list(labels),
        "parameters": parameters,
        "calibration": calibration,
        **more,
    }


def training_entry(
    corpora, label_scheme: str, augmentation=None, config: Mapping | None = None, splits=None, heard: Sequence[str] = ()
) -> dict:
    """The entry `training`.

    `corpora`: datasets of `load_corpus`, united or apart; parts of one corpus are counted together.
    `augmentation`: what `Augmentation.describe()` gives.
    `splits`: speakers by "train", "validation" and "test". `heard`: see train/data/leaks.py.
    """
    return {
        "corpora": corpus_entries(*corpora),
        "label_scheme": label_scheme,
        "augmentation": augmentation,
        "config": dict(config or {}),
        "splits": {name: sorted(set(speakers)) for name, speakers in (splits or {}).items()},
        "heard": list(heard),
    }


def corpus_entries(*datasets) -> list[dict]:
    """What a report tells of each corpus in datasets with columns corpus, speaker and language."""
    names, speakers, languages = (
        np.array([value or "" for dataset in datasets for value in dataset[column]])
        for column in ("corpus", "speaker", "language")
    )
    entries = []
    for name in dict.fromkeys(names.tolist()):
        here, declared = names == name, CORPORA.get(name)
        spoken = sorted(set(languages[here].tolist()) - {""})
        entries.append(
            {
                "name": name,
                "title": declared.title if declared else name,
                "language": spoken[0] if len(spoken) == 1 else (declared.language if declared else None),
                "licence": declared.licence if declared else None,
                "home_page": declared.homepage if declared else None,
                "recordings": int(here.sum()),
                "speakers": len(set(speakers[here].tolist())),
            }
        )
    return entries


def new_report(
    command: str,
    *,
    seed: int,
    models: Sequence[dict],
    results: Sequence[dict],
    training: dict | None = None,
    duration_seconds: float | None = None,
    **more,
) -> dict:
    """A report with today's date and the versions used; `more` adds the other fields of `REPORT_SCHEMA`."""
    report = {
        "schema": SCHEMA,
        "command": command,
        "created": datetime.date.today().isoformat(),
        "duration_seconds": duration_seconds,
        "versions": {"python": platform.python_version(), **_versions()},
        "seed": seed,
        "models": list(models),
        "training": training,
        "results": list(results),
        "corruption_errors": [],
        "comparisons": [],
        "plots": {},
    }
    return report | more


# --- writing ------------------------------------------------------------------------------------------


def write_report(report: dict, folder: str | Path) -> Path:
    """Writes report.json, and report.md for people, each whole or not at all. ReportError names what does not fit."""
    report = _without_nan(copy.deepcopy(report))
    validate(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(as_markdown(report), encoding="utf-8")
    path = folder / "report.json"
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _number(value) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _without_nan(value):
    if isinstance(value, dict):
        return {str(key): _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    if isinstance(value, np.ndarray):
        return _without_nan(value.tolist())
    if isinstance(value, (float, np.floating)):
        return _number(float(value))
    if isinstance(value, np.integer):
        return int(value)
    return value
