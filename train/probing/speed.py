"""What a forward pass of each backbone costs, beside WavLM-base."""

import time

import numpy as np
import torch
from transformers import WavLMConfig, WavLMModel

from modeling_edrl_mea.recordings import SAMPLING_RATE

from .features import BackboneFeatures


def measure_speed(kinds: dict) -> dict[str, float]:
    """Seconds for 5 s of audio by each backbone, and by transformers' WavLM-base (random weights cost the same)."""
    backbones = {name: kind.model for name, kind in kinds.items() if isinstance(kind, BackboneFeatures)}
    return _seconds_of({"WavLM-base": WavLMModel(WavLMConfig()).eval()} | backbones)


@torch.inference_mode()
def _seconds_of(models: dict[str, torch.nn.Module], duration: float = 5.0, repeats: int = 7) -> dict[str, float]:
    """Median processor time of one forward pass over `duration` seconds of audio; the models take turns."""
    signal = torch.randn(1, int(duration * SAMPLING_RATE))
    times = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            started = time.process_time()
            model(signal)
            times[name].append(time.process_time() - started)
    return {name: float(np.median(taken[1:])) for name, taken in times.items()}  # the first warms up
