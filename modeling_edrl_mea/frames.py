"""Frames: which samples a backbone makes them of, its outputs for them, and windows for long recordings.

Everything follows from a backbone's own config: the convolutions of its feature encoder, or the steps of its log-mel
spectrogram.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

# (samples or frames that one frame is made of, step) where there are no learned convolutions over the waveform.
# Whisper: a frame of its spectrogram every 160 samples, halved by a convolution. Wav2Vec2-BERT: windows of 400, two of
# them side by side.
LOG_MEL_STEPS = {"whisper": [(160, 160), (2, 2)], "wav2vec2-bert": [(400, 160), (2, 2)]}
CONVOLUTIONAL_TYPES = (
    *("wavlm", "wav2vec2", "wav2vec2-conformer"),
    *("hubert", "data2vec-audio", "unispeech", "unispeech-sat"),
)
BACKBONE_TYPES = (*CONVOLUTIONAL_TYPES, *LOG_MEL_STEPS)  # `model_type` of each encoder that can be a backbone
WHISPER_SILENCE = 8_000  # samples: half a second behind a recording, where Whisper was trained with up to 30 s


@dataclass
class BackboneOutput(ModelOutput):
    """A backbone's outputs for a batch.

    hidden_states: L+1 tensors (batch, frames, hidden): the input of the first layer, then each layer's
        output. Where the encoder ends in a layer norm the last one is after it, so it always equals the
        `last_hidden_state` of transformers. Frames outside `frame_mask` hold no meaning.
    frame_mask: (batch, frames) bool, True where a frame lies within its recording.
    attentions: L tensors (batch, heads, frames, frames), each head's own weights; None unless asked for. In Whisper
        they sum to less than one: the rest goes to the silence behind.
    """

    hidden_states: tuple[Tensor, ...] | None = None
    frame_mask: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None


def frame_steps(config: PreTrainedConfig) -> list[tuple[int, int]]:
    """(kernel, stride) of each step from samples to frames."""
    if config.model_type in LOG_MEL_STEPS:
        return LOG_MEL_STEPS[config.model_type]
    return list(zip(config.conv_kernel, config.conv_stride, strict=True))


def frame_lengths(config: PreTrainedConfig, sample_lengths: Tensor | int, n_layers: int | None = None):
    """Number of frames that recordings of so many samples give, 0 for those shorter than one frame.

    Takes an int or an integer tensor and returns the same; `n_layers` stops after that many convolutions.
    """
    for kernel, stride in frame_steps(config)[:n_layers]:
        sample_lengths = (sample_lengths - kernel) // stride + 1
    if isinstance(sample_lengths, Tensor):
        return sample_lengths.clamp(min=0)
    return max(sample_lengths, 0)


def samples_per_frame(config: PreTrainedConfig) -> int:
    """Samples from one frame to the next (320 in WavLM and most others: 20 ms at 16 kHz)."""
    hop = 1
    for _, stride in frame_steps(config):
        hop *= stride
    return hop


def receptive_field(config: PreTrainedConfig) -> int:
    """Samples that one frame sees, hence the shortest recording that gives a frame (400 in WavLM: 25 ms)."""
    field, hop = 1, 1
    for kernel, stride in frame_steps(config):
        field += (kernel - 1) * hop
        hop *= stride
    return field


def longest_input(config: PreTrainedConfig) -> int | None:
    """Samples that the backbone takes at once; None: any number."""
    if config.model_type != "whisper":
        return None
    return config.max_source_positions * samples_per_frame(config) - WHISPER_SILENCE


def valid_frames(config: PreTrainedConfig, waveforms: Tensor, sample_lengths: Tensor | None = None) -> Tensor:
    """(batch, frames) bool: frames within recordings of so many samples, all of them where nothing is padded."""
    n_frames = frame_lengths(config, waveforms.shape[1])
    if sample_lengths is None:
        return torch.ones(len(waveforms), n_frames, dtype=torch.bool, device=waveforms.device)
    return torch.arange(n_frames, device=waveforms.device) < frame_lengths(config, sample_lengths)[:, None]


def own_samples(config: PreTrainedConfig, input_values: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Samples in each recording (batch,), or None where nothing is padded.

    Raises ValueError where a recording is shorter than one frame or padded anywhere but on the right.
    """
    shortest = receptive_field(config)
    if input_values.shape[1] < shortest:
        raise ValueError(f"{input_values.shape[1]} samples are less than one frame; pad to {shortest} or more")
    if attention_mask is None:
        return None
    if attention_mask.shape != input_values.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)} and input_values "
            f"{tuple(input_values.shape)}; they must be equal"
        )
    attention_mask = attention_mask.bool()
    sample_lengths = attention_mask.sum(1)
    if torch.compiler.is_compiling():
        return sample_lengths
    if attention_mask.all():
        return None
    if sample_lengths.min() < shortest:
        raise ValueError(
            f"recording {int(sample_lengths.argmin())} of the batch has {int(sample_lengths.min())} "
            f"samples, less than one frame; pad it to {shortest} or more and say so in attention_mask"
        )
    if (attention_mask[:, 1:] & ~attention_mask[:, :-1]).any():
        raise ValueError("attention_mask must be 1 within a recording and 0 after its end (right padding)")
    return sample_lengths


def encode_apart(
    encode: Callable[[Tensor], BackboneOutput], config: PreTrainedConfig, waveforms: Tensor, sample_lengths: Tensor
) -> BackboneOutput:
    """A padded batch without its padding: rows of equal length go through `encode` together, and what comes out is
    padded with zeros. Exact, whatever an encoder makes of padding; and a few cores gain nothing from a batch."""
    lengths = sample_lengths.tolist()
    groups = {n: [row for row, length in enumerate(lengths) if length == n] for n in dict.fromkeys(lengths)}
    outputs = [encode(waveforms[rows, :n]) for n, rows in groups.items()]
    places = torch.tensor([row for rows in groups.values() for row in rows], device=waveforms.device).argsort()
    n_frames = frame_lengths(config, waveforms.shape[1])
    missing = [n_frames - output.frame_mask.shape[1] for output in outputs]

    def joined(parts, padding: Callable[[int], tuple]) -> Tensor:
        return torch.cat([F.pad(part, padding(n)) for part, n in zip(parts, missing, strict=True)])[places]

    hidden_states = zip(*(output.hidden_states for output in outputs), strict=True)
    attentions = zip(*(output.attentions or () for output in outputs), strict=True)
    return BackboneOutput(
        hidden_states=tuple(joined(layer, lambda n: (0, 0, 0, n)) for layer in hidden_states),
        frame_mask=joined([output.frame_mask for output in outputs], lambda n: (0, n)),
        attentions=tuple(joined(layer, lambda n: (0, n, 0, n)) for layer in attentions) or None,
    )


def iter_windows(
    config: PreTrainedConfig, n_samples: int, max_window_samples: int, overlap_samples: int
) -> Iterator[tuple[int, int, int, int]]:
    """Cuts a long recording into overlapping windows, so that each of its frames is taken from one of them.

    Yields (sample_start, sample_end, first_frame, last_frame): run the backbone on
    `waveform[sample_start:sample_end]` and keep its frames `first_frame:last_frame`; joined, they are the
    frames of the whole recording, in order. Neighboring windows share about `overlap_samples`, half of it
    context for either. Windows start at whole frames and hold at most `max_window_samples`.

    Raises ValueError where the recording is shorter than one frame, or a window has no room for new frames.
    """
    hop, n_frames = samples_per_frame(config), frame_lengths(config, n_samples)
    window_frames = frame_lengths(config, max_window_samples)
    context = -(-overlap_samples // (2 * hop))  # frames on either side of a seam
    if n_frames < 1:
        raise ValueError(f"{n_samples} samples are shorter than one frame ({receptive_field(config)} samples)")
    if n_samples <= max_window_samples:
        yield 0, n_samples, 0, n_frames
        return
    if window_frames <= 2 * context:
        raise ValueError(f"windows of {max_window_samples} samples must exceed the overlap, {overlap_samples}")
    taken = 0
    while taken < n_frames:
        # The last window is moved back to full length: frames at its start see more context, not less.
        start = min(max(taken - context, 0), n_frames - window_frames)
        is_last = start + window_frames >= n_frames
        end = n_frames if is_last else start + window_frames - context
        stop = n_samples if is_last else (start + window_frames - 1) * hop + receptive_field(config)
        yield start * hop, min(stop, start * hop + max_window_samples), taken - start, end - start
        taken = end
