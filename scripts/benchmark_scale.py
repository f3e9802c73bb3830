"""Memory and time of training both stages on very many cached embeddings, which are synthetic.

    python scripts/benchmark_scale.py --rows 1000000 --layers 5 --width 512      # edrl-mea-compact's embeddings
    python scripts/benchmark_scale.py --rows 20000 --layers 25 --width 2048      # WavLM-large's

Only `--distinct` rows are on the disk, and are read again and again: what is held in memory does not depend on it, and
the times leave out a disk that is slower than memory. Needs Linux.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback, TrainingArguments, WavLMConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from modeling_edrl_mea import EdrlMeaForAudioClassification  # noqa: E402
from modeling_edrl_mea.embeddings import Embeddings  # noqa: E402
from train.data.embeddings import CHUNK, StoredStatistics  # noqa: E402
from train.data.files import write_json  # noqa: E402
from train.trainer import EdrlMeaTrainer  # noqa: E402

EMOTIONS = dict(enumerate(["anger", "happiness", "neutral", "sadness"]))


def stored_rows(folder: Path, args) -> Embeddings:
    """`args.rows` rows of noise, by fifty speakers."""
    rng = np.random.default_rng(0)
    chunks = [folder / f"{i}.npy" for i in range(max(1, args.distinct // CHUNK))]
    for chunk in chunks:
        np.save(chunk, rng.standard_normal((CHUNK, args.layers, args.width), dtype=np.float32))
    chunks = [chunks[i % len(chunks)] for i in range(-(-args.rows // CHUNK))]
    statistics = StoredStatistics(chunks)
    labels = torch.from_numpy(rng.integers(len(EMOTIONS), size=len(statistics)))
    speakers = [str(speaker) for speaker in rng.integers(50, size=len(statistics))]
    ratings = torch.from_numpy(rng.uniform(-1, 1, (len(statistics), args.attributes))) if args.attributes else None
    return Embeddings(statistics, labels, speakers, torch.arange(len(statistics)), attributes=ratings)


def new_model(args) -> EdrlMeaForAudioClassification:
    """Above a backbone that gives such embeddings; it is narrow where it can be, since it is not run."""
    backbone = WavLMConfig(
        num_hidden_layers=args.layers - 1, hidden_size=args.width // 2, num_attention_heads=16, intermediate_size=16
    )
    model = EdrlMeaForAudioClassification.from_backbone(
        backbone,
        id2label=EMOTIONS,
        arrangement=args.arrangement,
        n_components=args.components,
        classifier=args.classifier,
        attribute_names=[f"attribute {i}" for i in range(args.attributes)],
    )
    model.backbone.requires_grad_(False)
    return model


def memory_mb(field: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=5, help="the backbone's layers, and its input")
    parser.add_argument("--width", type=int, default=512, help="statistics of each: twice the backbone's width")
    parser.add_argument("--components", type=int, default=128)
    parser.add_argument("--arrangement", default="edrl")
    parser.add_argument("--classifier", default="discriminant", help="or regression")
    parser.add_argument("--attributes", type=int, default=0, help="rated beside the emotions")
    parser.add_argument("--distinct", type=int, default=6400, help="rows on the disk")
    parser.add_argument("--report", type=Path, help="write the figures here as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, model = stored_rows(Path(folder), args), new_model(args)
        settings = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=512,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer, before = EdrlMeaTrainer(model, settings, data), memory_mb("VmRSS")
        trainer.add_callback(Progress())
        Progress.line("the model and what is known of the rows")
        trainer.train()
        Progress.line("both stages")
    found = {
        "rows": len(data),
        "gigabytes": 4e-9 * data.layer_statistics.shape.numel(),
        "mb": memory_mb("VmHWM"),
        "mb_before_training": before,
        "seconds": time.process_time(),
    }
    print(
        f"{found['rows']:,} rows of {args.layers} x {args.width} ({found['gigabytes']:.1f} GB), {args.arrangement}: at "
        f"most {found['mb']:,.0f} MB in memory, {before:,.0f} of them before training"
    )
    if args.report:
        write_json(args.report, found)


class Progress(TrainerCallback):
    """Prints when stage 1 begins and ends."""

    def on_train_begin(self, *_, **__):
        self.line("all before stage 1")

    def on_train_end(self, *_, **__):
        self.line("stage 1")

    @staticmethod
    def line(done: str) -> None:
        print(
            f"{time.process_time():7.0f} s of processor time, {memory_mb('VmHWM'):7,.0f} MB at most: {done}", flush=True
        )


if __name__ == "__main__":
    main()
