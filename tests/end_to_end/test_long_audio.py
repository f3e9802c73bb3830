"""An hour of audio goes through `pipeline` and `predict_timeline` in bounded memory."""

import resource
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

HOUR = 3600 * 16_000  # samples
LIMIT_MIB = 2_000  # over the loaded model; the hour itself takes 220 of them

pytestmark = pytest.mark.slow


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mib(run) -> float:
    """What a call adds to this process's memory at its highest."""
    before = resident_mib()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    run()
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10 - before


def hour() -> np.ndarray:
    return np.tile(0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32), 3600)


@pytest.mark.parametrize("normalize_waveform", [True, False])
def test_an_hour_through_the_pipeline_takes_under_two_gigabytes(tiny_model, normalize_waveform):
    model = tiny_model("edrl_mea", normalize_waveform=normalize_waveform)
    classify = pipeline("audio-classification", model=model, feature_extractor=model.feature_extractor())
    classify(hour()[:16_000])
    peak = peak_mib(lambda: classify(hour()))
    print(f"\nan hour through pipeline: {peak:.0f} MiB over the loaded model")
    assert peak < LIMIT_MIB


def test_an_hours_timeline_takes_little_more_than_the_recording(tiny_model):
    model = tiny_model("edrl_mea", normalize_waveform=True)
    peak = peak_mib(lambda: model.predict_timeline(hour(), 16_000, window_s=10, hop_s=10))
    print(f"\nan hour's timeline: {peak:.0f} MiB over the loaded model")
    assert peak < 600
