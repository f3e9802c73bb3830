"""Encoders of a log-mel spectrogram: Whisper's, and Wav2Vec2-BERT. The spectrogram is part of the model, so
that waveforms go in as everywhere.

What is linear in a frame's samples (offset removed, pre-emphasis, window, Fourier transform) is one matrix, applied as
a strided convolution.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.audio_utils import mel_filter_bank, window_function
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .frames import WHISPER_SILENCE, BackboneOutput, encode_apart, longest_input, own_samples, valid_frames
from .prepared_weights import is_plain_inference
from .stock_encoders import StockEncoder, eager_attention

RATE = 16_000  # Hz of all published checkpoints of both
FRAME, STEP = 400, 160  # samples: 25 ms every 10 ms
WHISPER_FLOOR, WHISPER_RANGE = 1e-10, 8.0  # least power, and decades under the loudest that are kept
KALDI_FLOOR = float(np.finfo(np.float32).eps)
KALDI_SCALE = 2**15  # Kaldi takes samples as 16-bit integers


def fourier_filters(frame: np.ndarray, n_fft: int) -> np.ndarray:
    """(2·frequencies, 1, samples): real and imaginary parts of the Fourier transform of a frame, after what `frame`
    (impulses, samples) makes of each unit impulse in it."""
    spectrum = np.fft.rfft(frame, n_fft)  # (impulses, frequencies)
    return np.concatenate([spectrum.real, spectrum.imag], 1).T[:, None].astype(np.float32)


@lru_cache
def whisper_filters(n_mels: int) -> tuple[np.ndarray, np.ndarray]:
    """Fourier filters and mel filters (mels, frequencies) of `WhisperFeatureExtractor`."""
    window = window_function(FRAME, "hann")
    mels = mel_filter_bank(1 + FRAME // 2, n_mels, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    return fourier_filters(np.diag(window), FRAME), mels.T.astype(np.float32)


@lru_cache
def kaldi_filters(n_mels: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of `SeamlessM4TFeatureExtractor`, which follows Kaldi."""
    frame = np.eye(FRAME) - 1 / FRAME
    delayed = np.concatenate([frame[:, :1], frame[:, :-1]], 1)
    frame = KALDI_SCALE * (frame - 0.97 * delayed) * window_function(FRAME, "povey", periodic=False)
    mels = mel_filter_bank(257, n_mels, 20, RATE / 2, RATE, mel_scale="kaldi", triangularize_in_mel_space=True)
    return fourier_filters(frame, 512), mels.T.astype(np.float32)


def mel_power(waveforms: Tensor, filters: tuple[np.ndarray, np.ndarray], floor: float) -> Tensor:
    """(batch, samples) → (batch, mels, frames) float32, at least `floor`."""
    transform, mels = (torch.from_numpy(part).to(waveforms.device) for part in filters)
    with torch.autocast(waveforms.device.type, enabled=False):
        real, imaginary = F.conv1d(waveforms.float()[:, None], transform, stride=STEP).chunk(2, dim=1)
        return (mels @ (real.square() + imaginary.square())).clamp_min(floor)


def whisper_log_mel(waveforms: Tensor, n_mels: int) -> Tensor:
    """As `WhisperFeatureExtractor`, without padding to 30 s: (batch, samples) → (batch, mels, samples // 160). The
    level from which it counts down is each recording's own."""
    padded = F.pad(waveforms.float()[:, None], (FRAME // 2, FRAME // 2), mode="reflect")[:, 0]
    log_mel = mel_power(padded, whisper_filters(n_mels), WHISPER_FLOOR).log10()[..., : waveforms.shape[1] // STEP]
    loudest = log_mel.amax((1, 2), keepdim=True)
    return (torch.maximum(log_mel, loudest - WHISPER_RANGE) + 4) / 4


def kaldi_log_mel(waveforms: Tensor, n_mels: int) -> Tensor:
    """As `SeamlessM4TFeatureExtractor`: (batch, samples) → (batch, frames, 2·mels), each mel of zero mean and unit
    variance over the recording, neighboring frames side by side."""
    log_mel = mel_power(waveforms, kaldi_filters(n_mels), KALDI_FLOOR).log().transpose(1, 2)
    mean, variance = log_mel.mean(1, keepdim=True), log_mel.var(1, keepdim=True)
    log_mel = (log_mel - mean) / (variance + 1e-7).sqrt()
    n_pairs = log_mel.shape[1] // 2
    return log_mel[:, : 2 * n_pairs].unflatten(1, (n_pairs, 2)).flatten(2)


class Wav2Vec2BertBackbone(StockEncoder):
    """Wav2Vec2-BERT (Barrault et al. 2023, Seamless, arXiv 2312.05187)."""

    def features(self, waveforms: Tensor) -> Tensor:
        n_mels = self.config.feature_projection_input_dim // 2
        return kaldi_log_mel(waveforms, n_mels).to(self.model.dtype)

    def freeze_feature_encoder(self) -> None:
        self.model.feature_projection.requires_grad_(False)


class WhisperBackbone(nn.Module):
    """Whisper's encoder (Radford et al. 2022, arXiv 2212.04356) on recordings as long as they are.

    It was trained on windows of 30 s, padded with silence. Half a second of silence behind serves as well; positions
    are those from the start. A recording may last `max_source_positions` frames, that silence included: 29.5 s.
    """

    def __init__(self, config: WhisperConfig):
        super().__init__()
        self.config, self.encoder = config, WhisperEncoder(config)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
    ) -> BackboneOutput:
        """As [`LengthAwareWavLM.forward`]. Raises ValueError also where recordings are longer than the window."""
        sample_lengths = own_samples(self.config, input_values, attention_mask)
        if sample_lengths is not None and is_plain_inference(input_values):
            return encode_apart(
                lambda rows: self.forward(rows, None, output_attentions), self.config, input_values, sample_lengths
            )
        self.check_length(input_values)
        if sample_lengths is not None:
            input_values = input_values.masked_fill(~attention_mask.bool(), 0)
        frame_mask = valid_frames(self.config, input_values, sample_lengths)
        x, key_mask = self.embed(F.pad(input_values, (0, WHISPER_SILENCE)), sample_lengths)
        n_frames = frame_mask.shape[1]
        hidden_states, attentions = [x], []
        for layer in self.layers:
            if output_attentions:
                attentions.append(self.attention_weights(layer, x, key_mask)[..., :n_frames, :n_frames])
            x = layer(x, key_mask)
            hidden_states.append(x)
        hidden_states[-1] = self.encoder.layer_norm(x)
        return BackboneOutput(
            hidden_states=tuple(states[:, :n_frames] for states in hidden_states),
            frame_mask=frame_mask,
            attentions=tuple(attentions) or None,
        )

    def embed(self, waveforms: Tensor, sample_lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Input of the first layer (batch, frames, hidden), and what attention adds to keys (batch, 1, 1, frames)."""
        encoder, n_mels = self.encoder, self.config.num_mel_bins
        mel = whisper_log_mel(waveforms, n_mels).to(encoder.conv1.weight.dtype)
        padding = None
        if sample_lengths is not None:  # the convolutions find zeros behind a recording, as they do where it is alone
            padding = torch.arange(mel.shape[2], device=mel.device) >= mel_frames(sample_lengths)[:, None]
            mel = mel.masked_fill(padding[:, None], 0)
        x = F.gelu(encoder.conv1(mel))
        x = x if padding is None else x.masked_fill(padding[:, None], 0)
        x = F.gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        key_mask = None
        if padding is not None:
            key_mask = torch.zeros_like(x[:, None, None, :, 0]).masked_fill(padding[:, None, None, ::2], -torch.inf)
        return F.dropout(x, encoder.dropout, self.training), key_mask

    def attention_weights(self, layer: nn.Module, x: Tensor, key_mask: Tensor | None) -> Tensor:
        with eager_attention(self.encoder):
            return layer.self_attn(layer.self_attn_layer_norm(x), attention_mask=key_mask)[1]

    def check_length(self, waveforms: Tensor) -> None:
        longest = longest_input(self.config)
        if not torch.compiler.is_compiling() and waveforms.shape[1] > longest:
            raise ValueError(
                f"{waveforms.shape[1]} samples are more than this Whisper's window, {longest}; cut them, or let the "
                "model do so by max_window_seconds"
            )

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    def freeze_feature_encoder(self) -> None:
        for part in (self.encoder.conv1, self.encoder.conv2, self.encoder.embed_positions):
            part.requires_grad_(False)


def mel_frames(sample_lengths: Tensor) -> Tensor:
    """Frames of the spectrogram of recordings with silence behind."""
    return (sample_lengths + WHISPER_SILENCE) // STEP
