"""The report of a benchmark, and the part of it that is about one model."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from .fingerprint import weights_fingerprint
from .machine_traces import without_machine_traces
from .schema import SCHEMA, ReportError, validate

IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")  # what PNG, JPEG and WebP files begin with
PLAIN_NAME = re.compile(r"[\w.-]+")


class PublishError(ValueError):
    """Why a model cannot be published, and what to do about it."""


@dataclass
class ModelReport:
    """A report as one model's card sees it.

    document: the whole report, its paths reduced to names. model: the model's entry in it. results, comparisons,
    corruption_errors: those of this model. plots: the pictures' files by title.
    """

    document: dict
    model: dict
    results: list[dict]
    comparisons: list[dict]
    corruption_errors: list[dict]
    plots: dict[str, Path]

    @property
    def training(self) -> dict:
        return self.document.get("training") or {}

    @property
    def corpora(self) -> list[dict]:
        """Those trained on; entries of one corpus, such as its training and its validation part, are added up."""
        added = {}
        for corpus in self.training.get("corpora") or []:
            sums = {key: corpus[key] + added.get(corpus["name"], {key: 0})[key] for key in ("recordings", "speakers")}
            added[corpus["name"]] = corpus | sums
        return list(added.values())


def read_report(path: str | Path, model_dir: str | Path, labels: list[str]) -> ModelReport:
    """The report at `path` on the model in `model_dir`, whose emotions are `labels` in id order.

    Raises:
        PublishError: no such file, no report, a report on other weights or labels, a missing plot.
    """
    path = Path(path)
    document = without_machine_traces(_load(path))
    fingerprint = weights_fingerprint(model_dir)
    model = _entry_of(document, fingerprint, path, model_dir)
    if not document.get("training"):
        document["training"] = _own_training(Path(model_dir), fingerprint)
    if model["labels"] != labels:
        raise PublishError(
            f"{path} reports on the labels {model['labels']}, but {model_dir} has {labels}, in id order. "
            "Run the benchmark again on this directory."
        )

    def of_model(key):
        return [row for row in document.get(key) or [] if row["model"] == model["name"]]

    results = of_model("results")
    if not results:
        raise PublishError(f"{path} has no result of the model {model['name']!r}. Run the benchmark to its end.")
    return ModelReport(
        document, model, results, of_model("comparisons"), of_model("corruption_errors"), _plots(document, path.parent)
    )


def _load(path: Path) -> dict:
    if not path.is_file():
        raise PublishError(
            f"{path}: no such report. scripts/benchmark_robustness.py and train/run.py write one as report.json."
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_number)
    except (ValueError, RecursionError, OSError) as error:
        raise PublishError(f"{path} is not JSON ({error}).") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise PublishError(f"{path} has the schema {schema!r}, and a card is made from {SCHEMA!r}. Make it anew.")
    missing = [key for key in ("command", "models", "results") if not document.get(key)]
    if missing:
        raise PublishError(f"{path} lacks {', '.join(missing)}: the run that wrote it did not finish.")
    try:
        validate(document)
        _check_finite(document)
    except (ReportError, RecursionError) as error:
        raise PublishError(f"{path} is damaged: {error}. Make it anew.") from error
    return document


def refuse_number(name: str):
    """For `json.loads`, which takes NaN for a number."""
    raise ValueError(f"{name} is no number")


def _check_finite(value) -> None:
    if isinstance(value, float) and not math.isfinite(value):  # 1e999 is infinite once it is read
        raise ReportError(f"it holds the number {value}")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_finite(part)


def _entry_of(document: dict, fingerprint: str, path: Path, model_dir) -> dict:
    for model in document["models"]:
        if model.get("fingerprint") == fingerprint:
            return model
    known = ", ".join(f"{model['name']} ({model.get('fingerprint') or 'not saved'})" for model in document["models"])
    raise PublishError(
        f"{path} is the report of another model: it is on {known}, while the weights in {model_dir} have the "
        f"fingerprint {fingerprint}. Run the benchmark on this directory."
    )


def _own_training(model_dir: Path, fingerprint: str) -> dict | None:
    """How the model was trained, which a benchmark of several models leaves to the report of the training run."""
    own = model_dir / "report.json"
    if not own.is_file():
        return None
    document = without_machine_traces(_load(own))
    if any(model.get("fingerprint") == fingerprint for model in document["models"]):
        return document.get("training")
    return None


def _plots(document: dict, folder: Path) -> dict[str, Path]:
    plots = {title: folder / name for title, name in (document.get("plots") or {}).items()}
    for title, file in plots.items():
        if not is_inside(file, folder):
            raise PublishError(f"{file}: the report's plot {title!r} is missing. Keep plots beside the report.")
        if not file.read_bytes().startswith(IMAGES):
            raise PublishError(f"{file}: the report's plot {title!r} is no PNG, JPEG or WebP picture. Take it out.")
        if not PLAIN_NAME.fullmatch(file.name):
            raise PublishError(f"{file}: rename the report's plot {title!r}, with letters, digits, '.', '_' and '-'.")
    if len({file.name for file in plots.values()}) < len(plots):
        raise PublishError(f"Plots of the report have one name: {sorted(map(str, plots.values()))}. Rename them.")
    return plots


def is_inside(file: Path, folder: Path) -> bool:
    """Whether a file is there and, links followed, lies within a folder."""
    try:
        return file.is_file() and file.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a name with a zero byte, links in a circle
        return False
