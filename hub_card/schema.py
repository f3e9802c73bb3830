"""The fields of a report (JSON Schema, draft 2020-12), and the check that a report has them."""

SCHEMA = "edrl-mea-report/1"  # the number rises when a reader of older reports would misread newer ones


class ReportError(ValueError):
    """A report that does not fit REPORT_SCHEMA; the message names the field."""


def _object(required: dict, optional: dict | None = None, description: str = "") -> dict:
    """An object that must have `required` and may have `optional` and anything else beside them."""
    return {
        "type": "object",
        "description": description,
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def _list(items: dict, description: str = "") -> dict:
    return {"type": "array", "items": items, "description": description}


def _text(description: str = "") -> dict:
    return {"type": "string", "description": description}


def _maybe(kind: str, description: str = "") -> dict:
    return {"type": [kind, "null"], "description": description}


def _mapping(values: dict, description: str = "") -> dict:
    return {"type": "object", "additionalProperties": values, "description": description}


COUNT = {"type": "integer", "minimum": 0}
PROPORTION = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
DIFFERENCE = {"type": ["number", "null"], "minimum": -1, "maximum": 1}
# 95%, percentiles over 1000 resamples of the speakers; null where there is one speaker.
INTERVAL = _object({"value": PROPORTION, "low": PROPORTION, "high": PROPORTION})
DIFFERENCE_INTERVAL = _object({"value": DIFFERENCE, "low": DIFFERENCE, "high": DIFFERENCE})

NUMBER = {"type": ["number", "null"]}
ATTRIBUTE = _object(
    {
        "ccc": DIFFERENCE_INTERVAL,
        "pearson": DIFFERENCE_INTERVAL,
        "rmse": _object({"value": NUMBER, "low": NUMBER, "high": NUMBER}, None, "on the scale"),
        "n_recordings": COUNT,
        "n_speakers": COUNT,
        "scale": _list({"type": "number"}, "the ends of it"),
    }
)

MODEL = _object(
    {
        "name": _text("what the other entries call it"),
        "fingerprint": _maybe("string", "hub_card.fingerprint of its folder; null for a recipe"),
        "source": _text("folder, Hub id, or a recipe's file"),
        "labels": _list(_text(), "emotions in the order of confusion matrices; none: it rates attributes alone"),
        "parameters": _maybe("integer", "of backbone and heads"),
        "calibration": {
            "oneOf": [
                {"type": "null"},
                _object({"temperature": {"type": "number", "exclusiveMinimum": 0}, "fitted_on": _text()}),
            ],
            "description": "what divides the logits in ece_calibrated; the geometric mean where trained several times",
        },
    },
    {
        "adapted": {"type": "boolean", "description": "adapted to each test's own recordings without their labels"},
        "settings": _mapping({}, "a recipe's settings that differ from the defaults"),
    },
)

CORPUS = _object(
    {
        "name": _text(),
        "title": _text("as its authors write it"),
        "language": _maybe("string", "ISO 639-1"),
        "licence": _maybe("string", "the Hub's identifier"),
        "home_page": _maybe("string"),
        "recordings": COUNT,
        "speakers": COUNT,
    }
)

DATA = _object({"parts": _mapping({"type": "object"}), "notes": _list(_text())}, None, "train/data/summary.py")

TRAINING = _object(
    {
        "corpora": _list(CORPUS),
        "label_scheme": _text("native, four_emotions, arousal or valence"),
        "augmentation": _maybe("object", "Augmentation.describe(); null: trained on clean speech"),
        "config": _mapping({}),
        "splits": _mapping(_list(_text()), "speakers by train, validation and test"),
    },
    {
        "data": DATA,
        "heard": _list(_text(), "hashes of a few recordings of each speaker trained on, by which tests avoid them"),
    },
)

RESULT = _object(
    {
        "model": _text(),
        "protocol": {"enum": ["clean", "corruption", "cross_corpus", "leave_one_corpus_out"]},
        "train": _list(_text(), "corpora trained on; empty where that is not known"),
        "test": _text("corpus tested on"),
        "condition": _text('"clean", or a corruption of train/degradation/corruptions.py: noise_<source>, room, mp3 …'),
        "level": {"enum": [None, 1, 2, 3], "description": "of the corruption, 1 mild to 3 hard"},
        "setting": _maybe("object", "what the level means: snr_db, rt60_s, kbits …"),
        "n_recordings": COUNT,
        "n_speakers": COUNT,
        "metrics": _object(
            {"uar": INTERVAL, "wa": INTERVAL, "macro_f1": INTERVAL},
            {"ece": INTERVAL, "ece_calibrated": INTERVAL},
            "null where no recording has an emotion; ece: expected calibration error, 15 bins; ece_calibrated: at a "
            "temperature fitted on other speakers",
        ),
        "recall": _mapping(PROPORTION, "by emotion; null where the test has none"),
        "confusion": _list(_list(COUNT), "recordings; rows are references, columns predictions"),
    },
    {
        "folds": _maybe("object", "how many, from where, and how many speakers given folds share"),
        "n_labeled": {**COUNT, "description": "recordings that have an emotion, where not all do"},
        "attributes": _mapping(ATTRIBUTE, "by attribute that is rated"),
    },
)

CORRUPTION_ERROR = _object(
    {
        "model": _text(),
        "baseline": _text(),
        "condition": _text(),
        "ce": _maybe("number", "percent: 100 × Σ levels (1 − WA) of the model / the same of the baseline"),
        "relative_ce": _maybe("number", "the same, each error less the error on clean speech"),
    },
    {
        "ce_uar": _maybe("number", "ce of 1 − UAR"),
        "relative_ce_uar": _maybe("number"),
        "tests": _list(_text(), "corpora, over which errors are averaged first"),
    },
)

COMPARISON = _object(
    {
        "model": _text(),
        "baseline": _text(),
        "over": _text('what was averaged: "noise at 10 and 0 dB", "leave-one-corpus-out: emodb" …'),
        "metric": _text(),
        "difference": {
            **DIFFERENCE_INTERVAL,
            "description": "model less baseline on the same recordings; speakers resampled for both at once",
        },
    },
    {"n_cells": COUNT, "n_speakers": COUNT},
)

SUMMARY = _object(
    {"model": _text(), "over": _text(), "metric": _text(), "mean": INTERVAL}, {"n_cells": COUNT, "n_speakers": COUNT}
)

ERROR = _object(
    {"model": _text(), "error": _text()},
    {"protocol": _maybe("string"), "train": _list(_text()), "test": _maybe("string"), "fold": _maybe("integer")},
    "what could not be measured, and why; its rows are absent, all others stand",
)

REPORT_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_object(
        {
            "schema": {"const": SCHEMA},
            "command": _text("what printed these figures"),
            "created": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"},
            "duration_seconds": _maybe("number", "of this command; what was cached took less"),
            "versions": _mapping(_text()),
            "seed": {"type": "integer"},
            "models": _list(MODEL),
            "training": {"oneOf": [{"type": "null"}, TRAINING], "description": "null for a benchmark of several rows"},
            "results": _list(RESULT),
            "corruption_errors": _list(CORRUPTION_ERROR),
            "comparisons": _list(COMPARISON),
            "plots": _mapping(_text("path, relative to the report's folder")),
        },
        {
            "corpora": _list(CORPUS, "what was tested on"),
            "data": DATA,
            "summaries": _list(SUMMARY, "means over several results"),
            "errors": _list(ERROR),
            "noise": _maybe("object", "recordings and rooms, in training and in testing: they share none"),
        },
    ),
}


def validate(report: dict) -> None:
    """Raises ReportError, naming the first field that does not fit, or a row that belongs to no model."""
    import jsonschema  # here, so that what only measures can do without

    errors = jsonschema.Draft202012Validator(REPORT_SCHEMA).iter_errors(report)
    worst = jsonschema.exceptions.best_match(errors)
    if worst is not None:
        raise ReportError(f"report field {_path(worst)}: {worst.message[:300]}")
    labels = {model["name"]: model["labels"] for model in report["models"]}
    if len(labels) < len(report["models"]):
        raise ReportError(f"report field models: names must differ, got {[m['name'] for m in report['models']]}")
    for place, row in enumerate(report["results"]):
        if row["model"] not in labels:
            raise ReportError(f"report field results[{place}].model: {row['model']!r} is not among the models")
        size = len(labels[row["model"]])
        if len(row["confusion"]) != size or any(len(line) != size for line in row["confusion"]):
            raise ReportError(f"report field results[{place}].confusion: must be {size} × {size}, one row a label")
        if sum(map(sum, row["confusion"])) != row.get("n_labeled", row["n_recordings"]):
            raise ReportError(f"report field results[{place}].confusion: does not add up to n_recordings")


def _path(error) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path]
    return "".join(parts).lstrip(".") or "(the whole)"
