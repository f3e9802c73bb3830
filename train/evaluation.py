"""How a model does on clean, noisy and other corpora's speech."""

import numpy as np
import torch

from modeling_edrl_mea import EdrlMeaForAudioClassification

from .embeddings import Embeddings
from .metrics import bootstrap_interval, confusion_by_speaker, scores
from .stages import ROWS


@torch.no_grad()
def predict(model: EdrlMeaForAudioClassification, data: Embeddings) -> np.ndarray:
    """Probabilities (N, C)."""
    model.eval()
    parts = [model(layer_statistics=part.to(model.device)).logits for part in data.layer_statistics.split(ROWS)]
    return torch.cat(parts).float().softmax(-1).cpu().numpy()


def evaluate(model: EdrlMeaForAudioClassification, data: Embeddings) -> dict:
    """UAR, WA, macro-F1, recall per emotion and calibration error; UAR with a 95% interval from resampling speakers."""
    probabilities, references = predict(model, data), data.labels.numpy()
    found = scores(references, probabilities, model.config.labels)
    confusion, speakers = confusion_by_speaker(
        references, probabilities.argmax(1), np.array(data.speakers), model.config.num_labels
    )
    if len(speakers) > 1:
        interval = bootstrap_interval("uar", confusion)
        found["uar_interval"] = [interval.low, interval.high]
    found["n_recordings"], found["n_speakers"] = len(data), len(speakers)
    found["confusion"] = confusion.sum(0).tolist()
    return found


def as_table(results: dict[str, dict]) -> str:
    """Results by condition as a Markdown table, in percent."""
    lines = [
        "| tested on | recordings | speakers | UAR | 95% | WA | macro-F1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for condition, found in results.items():
        low, high = found.get("uar_interval", (float("nan"), float("nan")))
        figures = " | ".join(f"{100 * found[name]:.1f}" for name in ("wa", "macro_f1"))
        lines.append(
            f"| {condition} | {found['n_recordings']} | {found['n_speakers']} | {100 * found['uar']:.1f} "
            f"| {100 * low:.1f}–{100 * high:.1f} | {figures} |"
        )
    return "\n".join(lines)
