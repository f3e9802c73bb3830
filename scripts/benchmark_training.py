#!/usr/bin/env python
"""What training costs, against what a user would do instead, in one run on one machine.

    python scripts/benchmark_training.py --corpus emodb=DIR

Over folds of speakers, so that every recording is tested once:

1. Both stages above a frozen backbone, against the stock `Trainer` fine-tuning `WavLMForSequenceClassification` on the
   same frozen backbone, recordings, batches and epochs; with an empty cache of embeddings and with a full one.
2. Stage 2 against scikit-learn's logistic regression on the same cached embeddings, C chosen by the same folds.
3. On a GPU also: memory and speed of a training step in bf16 with the whole backbone learning, at the shapes of
   WavLM-base and WavLM-large, against the stock model; and a two-stage training in bf16 with the backbone learning.
   The steps need no recordings: without --corpus they are all that is measured, and `datasets` need not be installed.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from tqdm.auto import tqdm
from transformers import (
    AutoFeatureExtractor,
    Trainer,
    TrainingArguments,
    WavLMConfig,
    WavLMForSequenceClassification,
    set_seed,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from modeling_edrl_mea import EdrlMeaForAudioClassification, linear_heads, load_recording  # noqa: E402
from modeling_edrl_mea.recordings import SAMPLING_RATE  # noqa: E402
from train.data.dataset import SpeechDataset  # noqa: E402
from train.data.files import write_json  # noqa: E402
from train.evaluation.markdown import markdown_table  # noqa: E402
from train.evaluation.metrics import bootstrap_interval, paired_bootstrap_difference, uar  # noqa: E402
from train.evaluation.predictions import evaluate  # noqa: E402
from train.evaluation.report import Predictions  # noqa: E402
from train.trainer import EdrlMeaTrainer  # noqa: E402

LEARNING_RATE = 1e-3  # of the stock model's head
BATCH = 16
LARGE = dict(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_bias=True,
)
SHAPES = {"WavLM-base": {}, "WavLM-large": LARGE}


def main() -> None:
    options = parse_arguments()
    on_gpu = torch.cuda.is_available()
    if options.corpus:
        corpus, folds = read(options)
        print(
            f"{len(corpus)} recordings, {options.folds} folds of speakers, {options.epochs} epochs; seconds of all "
            "folds, UAR over all recordings, each tested by a model that was not trained on its speaker\n"
        )
        on_waveforms, on_embeddings = {}, {}
        for train, test in tqdm(folds, desc="folds"):
            with tempfile.TemporaryDirectory() as folder:
                fold = options, corpus.select(train), corpus.select(test), corpus.features["label"].names, Path(folder)
                for title, *found in [*train_ours(*fold), train_stock(*fold)]:
                    on_waveforms.setdefault(title, []).append(found)
                for title, *found in against_regression(*fold):
                    on_embeddings.setdefault(title, []).append(found)
        tables = {
            "frozen backbone, all epochs": table_of(on_waveforms),
            "on cached embeddings": table_of(on_embeddings),
        }
        for title, (head, *rows) in tables.items():
            print(markdown_table([title, *head[1:]], rows), "\n")
        if options.report:
            write_json(options.report, {"tables": tables})
        if on_gpu:
            with tempfile.TemporaryDirectory() as folder:
                train, test = (corpus.select(rows) for rows in folds[0])
                print(two_stages_in_bf16(options, train, test, corpus.features["label"].names, Path(folder)), "\n")
    if on_gpu:
        print(learning_backbones(SHAPES))
    else:
        print("No GPU: memory and speed at the shapes of WavLM-base and WavLM-large were not measured.")


def read(options) -> tuple:
    """(the corpus, [(rows for training, rows of other speakers for testing)] by fold)"""
    from train.data.corpora import load_corpus
    from train.data.splits import fold_indices

    corpus = load_corpus(options.corpus, label_scheme=options.label_scheme)
    return corpus, fold_indices(corpus, options.folds)


def table_of(found: dict[str, list]) -> list[list]:
    """`found`: seconds and predictions of each fold by row, of which the last is what the others are compared to."""
    seconds = {name: sum(fold[0] for fold in folds) for name, folds in found.items()}
    predictions = {name: Predictions.joined([fold[1] for fold in folds]) for name, folds in found.items()}
    *_, reference = found
    lines = []
    for name, own in predictions.items():
        counts, theirs = own.confusion()[0], predictions[reference].confusion()[0]
        reached, gain = bootstrap_interval("uar", counts), paired_bootstrap_difference("uar", counts, theirs)
        shown = "" if name == reference else f"{signed(gain.estimate)} ({signed(gain.low)} to {signed(gain.high)})"
        ratio = f"{seconds[reference] / seconds[name]:.1f} ×"
        lines.append([name, f"{seconds[name]:.2f}", ratio, f"{100 * reached.estimate:.1f}", shown])
    return [["", "seconds", "faster by", "UAR %", "less the last row's (95%)"], *lines]


def signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="as train/run.py's --dataset_name")
    parser.add_argument("--label_scheme", default="four_emotions")
    parser.add_argument("--backbone", default=str(ROOT / "checkpoints" / "wavlm-compact"))
    parser.add_argument("--arrangement", default=None, help="default: the config's own")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folds", type=int, default=4, help="of speakers; every recording is tested once")
    parser.add_argument("--report", type=Path, help="write the tables here as JSON")
    return parser.parse_args()


def arguments(folder: Path, **settings) -> TrainingArguments:
    quiet = dict(report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0)
    return TrainingArguments(str(folder), use_cpu=not torch.cuda.is_available(), **(quiet | settings))


def timed(function, *args, **kwargs):
    """(result, seconds), on a CPU those in which this process computed: other work on the machine does not count."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    result = function(*args, **kwargs)
    return result, clock() - started


# --- 1 ------------------------------------------------------------------------------------------------------


def new_model(options, labels: list[str]) -> EdrlMeaForAudioClassification:
    set_seed(0)
    settings = {} if options.arrangement is None else {"arrangement": options.arrangement}
    model = EdrlMeaForAudioClassification.from_backbone(options.backbone, id2label=dict(enumerate(labels)), **settings)
    model.freeze_backbone()
    return model


def train_ours(options, train, test, labels, folder: Path) -> list[tuple]:
    rows = []
    for state in ("empty", "full"):
        model = new_model(options, labels)

        def both_stages(model=model):
            settings = dict(num_train_epochs=options.epochs, per_device_train_batch_size=BATCH, learning_rate=1e-4)
            args = arguments(folder, **settings, weight_decay=0.1)  # train/run.py's defaults
            trainer = EdrlMeaTrainer(model, args, SpeechDataset(train, "training speech"))
            trainer.train()
            return trainer

        trainer, seconds = timed(both_stages)
        found = evaluate(trainer.model, SpeechDataset(test, "test speech").embed(trainer.cache()))
        rows.append((f"EdrlMeaTrainer, {state} cache", seconds, found))
    return rows


class Waveforms(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.audio, self.labels = list(dataset["audio"]), list(dataset["label"])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"waveform": load_recording(self.audio[row]), "labels": self.labels[row]}


class Collator:
    def __init__(self, extractor):
        self.extractor = extractor

    def __call__(self, rows):
        batch = self.extractor(
            [row["waveform"] for row in rows], sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt"
        )
        return dict(batch) | {"labels": torch.tensor([row["labels"] for row in rows])}


def train_stock(options, train, test, labels, folder: Path) -> tuple:
    set_seed(0)
    model = WavLMForSequenceClassification.from_pretrained(options.backbone, num_labels=len(labels))
    model.freeze_base_model()
    model.freeze_feature_encoder()  # or it would still ask for gradients, and all of the backbone be gone through twice
    collator = Collator(AutoFeatureExtractor.from_pretrained(options.backbone))
    args = arguments(
        folder,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        remove_unused_columns=False,
    )
    trainer = Trainer(model, args, train_dataset=Waveforms(train), data_collator=collator)
    _, seconds = timed(trainer.train)
    prediction = trainer.predict(Waveforms(test))
    found = Predictions(prediction.label_ids, prediction.predictions, np.array(test["speaker"]))
    return "Trainer, WavLMForSequenceClassification", seconds, found


# --- 2 ------------------------------------------------------------------------------------------------------


def against_regression(options, train, test, labels, folder: Path) -> list[tuple]:
    model = new_model(options, labels)
    trainer = EdrlMeaTrainer(
        model, arguments(folder, num_train_epochs=options.epochs), SpeechDataset(train, "training speech")
    )
    trainer.train()
    data, held_out = trainer.training_embeddings(), SpeechDataset(test, "test speech").embed(trainer.cache())
    closed = [trainer.fit_alignment] if model.config.uses_alignment else []
    closed += [trainer.start_disentanglement] if model.config.starts_as_classifier else []
    closed += [trainer.train_classifier] if model.classifier is not None else []
    _, ours = timed(lambda: [step() for step in closed])
    found = evaluate(model, held_out)
    features = [part.layer_statistics.flatten(1).double().numpy() for part in (data, held_out)]
    mean, scale = features[0].mean(0), features[0].std(0) + 1e-6
    features = [(part - mean) / scale for part in features]
    folds = linear_heads.speaker_folds(data.labels.numpy(), data.speakers)
    search = GridSearchCV(
        LogisticRegression(class_weight="balanced", max_iter=5000), {"C": linear_heads.INVERSE_REGULARIZATION}, cv=folds
    )
    _, theirs = timed(search.fit, features[0], data.labels.numpy())
    regression = Predictions(found.references, search.predict_proba(features[1]), found.speakers)
    return [
        (f"stage 2: {', '.join(step.__name__ for step in closed)}", ours, found),
        ("scikit-learn LogisticRegression", theirs, regression),
    ]


# --- 3 ------------------------------------------------------------------------------------------------------


def learning_backbones(shapes: dict[str, dict], device: str = "cuda", **sizes_of_step) -> str:
    lines = []
    for name, sizes in shapes.items():
        stock = WavLMForSequenceClassification(WavLMConfig(**sizes, num_labels=4))
        costs = {"stock": step_cost(stock, device, **sizes_of_step)}
        labels = dict(enumerate("0123"))
        ours = EdrlMeaForAudioClassification.from_backbone(WavLMConfig(**sizes), id2label=labels, arrangement="edrl")
        costs["ours"] = step_cost(ours, device, **sizes_of_step)
        if device == "cuda":
            costs["ours, compiled"] = step_cost(torch.compile(ours), device, **sizes_of_step)
        ours.gradient_checkpointing_enable()
        costs["ours, activation checkpointing"] = step_cost(ours, device, **sizes_of_step)
        memory_of_stock, speed_of_stock = costs["stock"]
        for title, (memory, speed) in costs.items():
            share = f"{memory / memory_of_stock:.2f}" if memory_of_stock else ""
            relative = f"{speed / speed_of_stock:.2f} ×"
            lines.append([name, title, f"{memory / 2**30:.2f}", share, f"{speed:.1f}", relative])
    return markdown_table(["shape", "model", "peak GiB", "of stock", "recordings/s", "speed"], lines)


def step_cost(model, device: str, n: int = 16, seconds: float = 5.0, steps: int = 10) -> tuple[int, float]:
    """(peak bytes, which a CPU does not count: 0; recordings a second) of training steps in bf16."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    waveforms = torch.randn(n, int(seconds * SAMPLING_RATE), device=device)
    labels = torch.arange(n, device=device) % 4

    def take(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16):
                loss = model(input_values=waveforms, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    take(3)  # the first ones choose kernels, compile, make the optimizer's state
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    take(steps)
    speed = n * steps / (time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    model.cpu()
    torch.cuda.empty_cache()
    return memory, speed


def two_stages_in_bf16(options, train, test, labels, folder: Path) -> str:
    model = new_model(options, labels)
    model.requires_grad_(True)
    model.freeze_feature_encoder()
    args = arguments(
        folder,
        num_train_epochs=10,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        bf16=True,
        learning_rate=1e-3,
    )
    trainer = EdrlMeaTrainer(model, args, SpeechDataset(train, "training speech"), backbone_learning_rate=5e-5)
    _, seconds = timed(trainer.train)
    found = evaluate(trainer.model, SpeechDataset(test, "test speech").embed(trainer.cache()))
    reached = 100 * uar(found.references, found.probabilities.argmax(1))
    return f"Two stages in bf16, the backbone learning, 10 epochs: {seconds:.1f} s, UAR {reached:.1f}%"


if __name__ == "__main__":
    main()
