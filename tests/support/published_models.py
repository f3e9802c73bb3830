"""Model directories with reports as a benchmark writes them, for the tests of what is published."""

import shutil
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from train.evaluation.predictions import Predictions
from train.evaluation.report import interval_entry, model_entry, new_report, result_row, write_report

CORPORA = [
    ("emodb", "EMO-DB", "de", "cc0-1.0", "http://emodb.bilderbar.info", 339, 10),
    ("ravdess", "RAVDESS", "en", "cc-by-nc-sa-4.0", "https://zenodo.org/records/1188976", 672, 24),
]
CALIBRATION = {"temperature": 1.31, "fitted_on": "emodb_09"}
FIELDS = ("name", "title", "language", "licence", "home_page", "recordings", "speakers")


def answers(labels: list[str], skill: float, seed: int, speakers: int = 4) -> Predictions:
    """What a model of some skill (0…1) might say of 60 recordings."""
    rng = np.random.default_rng(seed)
    references = rng.integers(len(labels), size=60)
    logits = rng.normal(size=(60, len(labels)))
    logits[np.arange(60), references] += 4 * skill
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(references, probabilities, np.arange(60) % speakers)


def write_model_report(folder: Path, model_dir: Path, labels: list[str], **changes) -> Path:
    """A report on the model in `model_dir`, in `folder`: clean, noisy, cross-corpus; with a baseline and plots.

    Its command and settings name places on this machine, as those of real runs do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, baseline = "edrl-mea-tiny", "linear probe"
    rows = [result_row(name, labels, answers(labels, 0.8, 1), test="emodb", train=["emodb"], temperature=1.31)]
    for level, snr_db in ((1, 20), (2, 10), (3, 0)):
        found = answers(labels, 0.8 - 0.2 * level, 10 + level)
        setting = {"snr_db": snr_db, "recordings": 16}
        place = {"test": "emodb", "train": ["emodb"], "protocol": "corruption", "condition": "noise_esc10"}
        rows.append(result_row(name, labels, found, level=level, setting=setting, **place))
    single = answers(labels, 0.3, 20, speakers=1)  # one speaker: no interval
    rows.append(result_row(name, labels, single, test="ravdess", train=["emodb"], protocol="cross_corpus"))
    rows.append(result_row(baseline, labels, answers(labels, 0.4, 30), test="emodb", train=["emodb"]))
    source = str(model_dir.resolve())
    report = new_report(
        f"python scripts/benchmark_robustness.py --model {source} --noise_dir {Path.home()}/corpora/noise",
        seed=0,
        duration_seconds=12.5,
        models=[
            model_entry(
                name,
                labels,
                source=source,
                folder=model_dir,
                parameters=104_233,
                temperature=1.31,
                fitted_on="emodb_09",
            ),
            model_entry(baseline, labels, source="recipe linear"),
        ],
        results=rows,
        training={
            "corpora": [dict(zip(FIELDS, corpus, strict=True)) for corpus in CORPORA],
            "label_scheme": "four_emotions",
            "augmentation": {"copies": 2, "noise": f"{Path.home()}/corpora/noise"},
            "config": {
                "model_name_or_path": "microsoft/wavlm-base-plus",
                "output_dir": source,
                "hub_token": "hf_" + "a" * 34,
                "learning_rate": 0.003,
            },
            "splits": {"train": ["emodb_09", "emodb_10"], "validation": ["emodb_11"], "test": ["emodb_03", "emodb_08"]},
        },
        corruption_errors=[
            {"model": name, "baseline": baseline, "condition": "noise_esc10", "ce": 91.2, "relative_ce": 104.7}
        ],
        comparisons=[
            {
                "model": name,
                "baseline": baseline,
                "over": "noise at 10 and 0 dB",
                "metric": "uar",
                "difference": {"value": -0.021, "low": -0.064, "high": 0.013},
            }
        ],
        plots={"uar_against_snr": "uar_against_snr.png"},
    )
    plot(folder / "uar_against_snr.png", interval_entry("uar", answers(labels, 0.8, 1).confusion()[0])["value"])
    return write_report(report | changes, folder)


def plot(path: Path, value: float) -> None:
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([20, 10, 0], [value, value / 2, value / 3])
    figure.savefig(path)


def saved_model(model, folder: Path) -> Path:
    """`model` as `train/run.py` leaves it: with what must not be published beside it."""
    model.save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"pickled settings")
    (folder / "steps.safetensors").write_bytes(b"a run's own state")
    (folder / "embeddings").mkdir()
    (folder / "notes.py").write_text("a script that the model does not need")
    return folder


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target
