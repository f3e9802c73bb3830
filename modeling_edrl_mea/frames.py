"""Which samples WavLM's frames are made of: lengths, hop, and windows for long recordings."""

from collections.abc import Iterator

from torch import Tensor
from transformers import WavLMConfig


def frame_lengths(config: WavLMConfig, sample_lengths: Tensor | int, n_layers: int | None = None):
    """Number of frames that recordings of so many samples give, 0 for those shorter than one frame.

    Takes an int or an integer tensor and returns the same; `n_layers` stops after that many convolutions.
    """
    for kernel, stride in list(zip(config.conv_kernel, config.conv_stride, strict=True))[:n_layers]:
        sample_lengths = (sample_lengths - kernel) // stride + 1
    if isinstance(sample_lengths, Tensor):
        return sample_lengths.clamp(min=0)
    return max(sample_lengths, 0)


def samples_per_frame(config: WavLMConfig) -> int:
    """Samples from one frame to the next (320 in WavLM: 20 ms at 16 kHz)."""
    hop = 1
    for stride in config.conv_stride:
        hop *= stride
    return hop


def receptive_field(config: WavLMConfig) -> int:
    """Samples that one frame sees, hence the shortest recording that gives a frame (400 in WavLM: 25 ms)."""
    field, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return field


def iter_windows(
    config: WavLMConfig, n_samples: int, max_window_samples: int, overlap_samples: int
) -> Iterator[tuple[int, int, int, int]]:
    """Cuts a long recording into overlapping windows, so that each of its frames is taken from one of them.

    Yields (sample_start, sample_end, first_frame, last_frame): run the backbone on
    `waveform[sample_start:sample_end]` and keep its frames `first_frame:last_frame`; joined, they are the
    frames of the whole recording, in order. Neighbouring windows share about `overlap_samples`, half of it
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
