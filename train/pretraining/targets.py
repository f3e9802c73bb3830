"""What is to be predicted of clean speech: its sound at every frame, and openSMILE's functionals of the whole."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import WavLMConfig
from transformers.audio_utils import mel_filter_bank

from modeling_edrl_mea.frames import frame_lengths, receptive_field
from modeling_edrl_mea.recordings import SAMPLING_RATE

HOP = 320  # samples between frames: 20 ms, as every WavLM
WINDOW = 1024  # samples of a target frame: 64 ms, two periods of a 31 Hz voice
PITCH_HZ = (60.0, 500.0)  # range of speaking voices


class FrameTargets(nn.Module):
    """Batch of clean waveforms (batch, samples) -> targets (batch, frames, width), standardized and clipped at 5.

    Log-mels in 64 ms windows; the autocorrelation of the same window at log-spaced pitch lags, divided by
    that of the window function (Boersma 1993) and faded out where the frame is 30 dB below the recording; openSMILE's
    descriptors where the batch has them.
    """

    def __init__(self, config: WavLMConfig, mels: int = 80, lags: int = 48, descriptors: int = 0):
        super().__init__()
        self.config = config
        self.lead = (WINDOW - receptive_field(config)) // 2  # center each window on what the frame sees
        filters = mel_filter_bank(WINDOW // 2 + 1, mels, 50.0, 8000.0, SAMPLING_RATE, mel_scale="htk")
        window = torch.hann_window(WINDOW)
        positions = SAMPLING_RATE / torch.logspace(*(math.log10(hz) for hz in PITCH_HZ), lags).flip(0)
        register = lambda name, value: self.register_buffer(name, value, persistent=False)  # noqa: E731
        register("filters", torch.from_numpy(filters).float())
        register("window", window)
        register("window_correlation", self.autocorrelation(window))
        register("lower", positions.long())
        register("fraction", positions - positions.long())
        self.register_buffer("mean", torch.zeros(mels + lags + descriptors))
        self.register_buffer("scale", torch.ones(mels + lags + descriptors))

    @staticmethod
    def autocorrelation(frames: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(frames, 2 * WINDOW).abs().square()
        correlation = torch.fft.irfft(power)[..., :WINDOW]
        return correlation / (correlation[..., :1] + 1e-6)

    def forward(self, batch: dict) -> torch.Tensor:
        return ((self.measure(batch) - self.mean) / self.scale).clamp(-5, 5)

    def measure(self, batch: dict) -> torch.Tensor:
        """The targets in their own units."""
        clean = batch["clean"]
        count = frame_lengths(self.config, clean.shape[1])
        tail = max(0, (count - 1) * HOP + WINDOW - self.lead - clean.shape[1])
        frames = F.pad(clean, (self.lead, tail)).unfold(1, WINDOW, HOP)[:, :count]
        frames = (frames - frames.mean(-1, keepdim=True)) * self.window
        power = torch.fft.rfft(frames).abs().square()
        mels = torch.log(power @ self.filters + 1e-2)  # the signal has unit variance: a floor at about -50 dB
        correlation = self.autocorrelation(frames) / self.window_correlation.clamp(min=0.05)
        low, high = correlation[..., self.lower], correlation[..., self.lower + 1]
        energy = power.mean(-1, keepdim=True)
        loud = energy / (energy + 1e-3 * energy.mean(1, keepdim=True))
        pitch = torch.lerp(low, high, self.fraction) * loud
        return torch.cat([mels, pitch, *([batch["descriptors"]] if "descriptors" in batch else [])], -1)

    @torch.no_grad()
    def standardize(self, batches: list[dict]):
        """Set mean and scale from some batches."""
        values = torch.cat([self.measure(batch)[frame_mask(batch, self.config)] for batch in batches])
        self.mean.copy_(values.mean(0))
        self.scale.copy_(values.std(0).clamp(min=1e-6))


def frame_mask(batch: dict, config: WavLMConfig) -> torch.Tensor:
    """(batch, frames) bool: frames of the recording, not of its padding."""
    frames = torch.arange(batch["mask"].shape[1], device=batch["mask"].device)
    return frames < frame_lengths(config, batch["lengths"])[:, None]


def pool(hidden_states, valid: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation over valid frames of every layer: (batch, layers * 2 * hidden) float32."""
    states = torch.stack(tuple(hidden_states), 1).float()  # (batch, layers, frames, hidden)
    weight = valid[:, None, :, None] / valid.sum(1)[:, None, None, None]
    mean = (states * weight).sum(2)
    variance = ((states - mean[:, :, None]).square() * weight).sum(2)
    return torch.cat([mean, (variance + 1e-6).sqrt()], -1).flatten(1)


class PrincipalComponents:
    """Of values (recordings, n): standardized, clipped at 5, rotated to (recordings, components), half-whitened.

    Component k is divided by the square root of its standard deviation: more even than the raw scores, less noise than
    whitened ones; then all by one constant, so that their mean square is 1.
    """

    def __init__(self, values: torch.Tensor, components: int = 256):
        self.mean, self.scale = values.mean(0), values.std(0) + 1e-6
        values = ((values - self.mean) / self.scale).clamp(-5, 5)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, _, self.directions = torch.pca_lowrank(values, min(components, *values.shape), niter=4)
        self.center = values.mean(0) @ self.directions
        scores = values @ self.directions - self.center
        self.spread = scores.std(0).clamp(min=1e-6).sqrt()
        self.spread = self.spread * (scores / self.spread).square().mean().sqrt()

    def __len__(self) -> int:
        return len(self.spread)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        values = ((values - self.mean) / self.scale).clamp(-5, 5)
        return (values @ self.directions - self.center) / self.spread


def principal_functionals(functionals: np.ndarray) -> np.ndarray:
    """Principal components (files, 256) of functionals (files, 6373)."""
    values = torch.from_numpy(np.nan_to_num(np.asarray(functionals, np.float32)))
    return PrincipalComponents(values)(values).numpy()
