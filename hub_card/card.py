"""The model card: what a report tells of a model, as metadata that the Hub reads and a page that people read."""

import re
from functools import cache
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .licences import backbone_licence, strictest
from .report import ModelReport, PublishError
from .wording import (
    AsIs,
    as_code,
    as_plain_text,
    condition_and_setting,
    condition_name,
    figures_explained,
    number,
    percent,
    setting_name,
)

TEMPLATE = Path(__file__).parent / "card.md.jinja"
PAPER = "https://arxiv.org/abs/2510.09072"
# What the Hub's other emotion recognizers (superb/*-superb-er) let people try.
EXAMPLES = [
    {"example_title": f"A {emotion} recording", "src": f"https://cdn-media.huggingface.co/speech_samples/{clip}.wav"}
    for emotion, clip in (("happy", "IEMOCAP_Ses01F_impro03_F013"), ("neutral", "IEMOCAP_Ses01F_impro04_F000"))
]
TAGS = ["speech-emotion-recognition", "emotion-recognition", "edrl-mea", "noise-robustness", "speech"]
ENCODERS = {"wavlm": "WavLM", "whisper": "Whisper", "wav2vec2": "wav2vec 2.0", "hubert": "HuBERT"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ATTRIBUTE_METRICS = {"ccc": ("ccc", "CCC"), "pearson": ("pearsonr", "Pearson"), "rmse": ("rmse", "RMSE")}
METRICS = {  # name in the report: (Hub's identifier, name on the page); UAR is what scikit-learn calls macro recall
    "uar": ("recall", "UAR"),
    "wa": ("accuracy", "WA"),
    "macro_f1": ("f1", "macro-F1"),
    "ece": ("ece", "ECE"),
    "ece_calibrated": ("ece", "ECE, calibrated"),
}
PLOTS = {
    "uar_against_snr": "UAR against the level of noise",
    "cross_corpus": "Trained on one corpus, tested on another",
    "confusion": "What is taken for what",
    "reliability": "How far confidence can be believed",
    "embedding_map": "Embeddings of test recordings",
    "training": "Losses and validation UAR over training",
}


def build_card(report: ModelReport, config: dict, repo_id: str, plots: dict | None = None) -> str:
    """The card of the model at `repo_id`, in Markdown below metadata.

    Args:
        config: the model's config.json.
        plots: where the upload has each plot, by title.

    Raises:
        PublishError: metadata that huggingface_hub refuses.
    """
    labels, attributes = emotions_of(config), config.get("attribute_names") or []
    metadata = card_metadata(report, config, repo_id)
    page = _template().render(
        metadata=AsIs(metadata.to_yaml()),
        repo_id=repo_id,
        name=repo_id.split("/")[-1],
        labels=labels,
        attributes={name: (config.get("attribute_ranges") or {}).get(name, [-1, 1]) for name in attributes},
        config=config,
        report=report.document,
        model=report.model,
        training=report.training,
        corpora=report.corpora,
        shared_speakers=shared_speakers(report.training.get("splits") or {}),
        base_model=metadata.base_model or _backbone_name(config),
        metadata_base_model=metadata.base_model,
        base_licence=backbone_licence(metadata.base_model or _backbone_name(config)),
        encoder=ENCODERS.get(encoder_type(config), encoder_type(config)),
        licence=metadata.license,
        plain=[row for row in report.results if row["protocol"] != "corruption"],
        rated=[row for row in report.results if row.get("attributes")],
        corrupted=by_condition(report.results),
        comparisons=report.comparisons,
        corruption_errors=report.corruption_errors,
        plots={PLOTS.get(title, title.replace("_", " ")): place for title, place in (plots or {}).items()},
        figures=figures_explained(report.results),
        paper=PAPER,
    )
    return validated(page)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        undefined=jinja2.StrictUndefined,  # a misspelled field must not vanish from the page
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=as_plain_text,  # whatever a label or a title holds, it is text in its place
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "setting": setting_name,
        "condition": condition_name,
        "code": as_code,
    }
    return environment.get_template(TEMPLATE.name)


def validated(page: str) -> str:
    """The page, once huggingface_hub has read its metadata back as they were meant. Raises PublishError."""
    try:
        card = ModelCard(page)
    except ValueError as error:
        raise PublishError(f"huggingface_hub refuses the card's metadata: {error}") from error
    if not card.data.eval_results or not card.data.license:
        raise PublishError("The card's metadata have no results or no licence after huggingface_hub has read them.")
    return page


def labels_of(config: dict) -> list[str]:
    """Emotions in id order."""
    names = config.get("id2label") or {}
    try:
        labels = [names[key] for key in sorted(names, key=int)]
    except (TypeError, ValueError) as error:
        raise PublishError(f"config.json has the labels {names!r:.200}; they must be names by their ids.") from error
    if not labels or not all(isinstance(label, str) for label in labels):
        raise PublishError(f"config.json has the labels {names!r:.200}; they must be names.")
    return labels


def emotions_of(config: dict) -> list[str]:
    """Emotions in id order; none of a model that rates attributes alone."""
    return [] if config.get("problem_type") == "regression" else labels_of(config)


def card_metadata(report: ModelReport, config: dict, repo_id: str) -> ModelCardData:
    corpora = report.corpora
    licence = strictest(inherited_licences(report, config))
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        license=licence,
        license_name="see-training-data" if licence == "other" else None,
        language=sorted({corpus["language"] for corpus in corpora if corpus.get("language")}) or None,
        library_name="transformers",
        pipeline_tag="audio-classification",
        base_model=base_model(report, config),
        datasets=[corpus["name"] for corpus in corpora] or None,
        metrics=metrics_of(config),
        tags=[*TAGS, encoder_type(config)],
        widget=EXAMPLES,
        eval_results=eval_results(report, repo_id),
    )


def metrics_of(config: dict) -> list[str]:
    """The Hub's identifiers of what the model is measured by."""
    found = ["recall", "accuracy", "f1"] if emotions_of(config) else []
    return found + [metric for metric, _ in ATTRIBUTE_METRICS.values() if config.get("attribute_names")]


def figures_of(row: dict) -> list[tuple[str, str, dict]]:
    """(the Hub's identifier, name on the page, interval) of each figure that a result knows."""
    found = [(*METRICS[name], interval) for name, interval in row["metrics"].items() if name in METRICS]
    for attribute, figures in row.get("attributes", {}).items():
        found += [
            (metric, f"{title}, {attribute}", figures[name]) for name, (metric, title) in ATTRIBUTE_METRICS.items()
        ]
    return [figure for figure in found if figure[2]["value"] is not None]


def eval_results(report: ModelReport, repo_id: str) -> list[EvalResult]:
    """Every figure of the report on this model, with its interval, its condition and the command that made it."""
    titles = {corpus["name"]: corpus["title"] for corpus in report.corpora}
    titles |= {corpus["name"]: corpus["title"] for corpus in report.document.get("corpora") or []}
    found = []
    for row in report.results:
        condition = "-".join(str(part) for part in (row["condition"], row["level"]) if part is not None)
        for identifier, title, interval in figures_of(row):
            bounds = {"low": interval["low"], "high": interval["high"], "interval": "95%, speakers resampled"}
            found.append(
                EvalResult(
                    task_type="audio-classification",
                    task_name="Speech emotion recognition",
                    dataset_type=row["test"],
                    dataset_name=f"{titles.get(row['test'], row['test'])} ({condition_and_setting(row)})",
                    dataset_config=f"{row['protocol']}-{condition}",
                    dataset_split=f"{row['n_recordings']} recordings, speakers: {row['n_speakers']}",
                    dataset_args={"trained_on": row["train"], **(row["setting"] or {})},
                    metric_type=identifier,
                    metric_name=title,
                    metric_value=interval["value"],
                    metric_args=bounds if interval["low"] is not None else None,
                    source_name=report.document["command"],
                    source_url=f"https://huggingface.co/{repo_id}/blob/main/report.json",
                )
            )
    return found


def base_model(report: ModelReport, config: dict) -> str | None:
    """Hub id of what training started from; None where it was a directory, which the Hub knows nothing of."""
    started_from = (report.training.get("config") or {}).get("model_name_or_path") or _backbone_name(config)
    local = started_from.split("/")[0] in ("checkpoints", "outputs", ".", "..")
    return started_from if HUB_ID.fullmatch(started_from) and not local else None


def inherited_licences(report: ModelReport, config: dict) -> list[str | None]:
    """Of the corpora, the backbone, and what training started from; None where nobody knows."""
    corpora = [corpus.get("licence") for corpus in report.corpora]
    declared = (report.training.get("backbone") or {}).get("licence")
    started_from = (report.training.get("config") or {}).get("model_name_or_path")
    names = {name for name in (started_from, _backbone_name(config)) if name}
    return corpora + ([declared] if declared else [backbone_licence(name) for name in sorted(names)])


def encoder_type(config: dict) -> str:
    """transformers' name for the backbone's architecture."""
    return (config.get("backbone_config") or {}).get("model_type", "wavlm")


def _backbone_name(config: dict) -> str:
    return (config.get("backbone_config") or {}).get("_name_or_path") or ""


def shared_speakers(splits: dict[str, list[str]]) -> set[str]:
    """Speakers on more than one side of training, validation and test."""
    sides = list(splits.values())
    return {speaker for i, side in enumerate(sides) for other in sides[i + 1 :] for speaker in set(side) & set(other)}


def by_condition(results: list[dict]) -> list[dict]:
    """Rows of the table of corruptions: {"train", "test", "condition", "levels": {level: result}}."""
    rows = {}
    for result in results:
        if result["protocol"] == "corruption":
            key = (tuple(result["train"]), result["test"], result["condition"])
            row = rows.setdefault(key, dict(zip(("train", "test", "condition"), key, strict=True)) | {"levels": {}})
            row["levels"][result["level"]] = result
    return list(rows.values())
