"""The backbone over recordings of any length: long ones in windows, whose statistics, hidden states and attention
weights are put together."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .frames import BackboneOutput, iter_windows, own_samples, samples_per_frame
from .speech_embedding import frame_moments


def run_in_windows(
    backbone,
    config,
    input_values: Tensor,
    attention_mask: Tensor | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> tuple[Tensor, BackboneOutput]:
    """Waveforms (B, n) → pooled statistics (B, L+1, S') of every layer, and hidden states and attentions where asked
    for, without which memory is bounded by one window."""
    asked_for = output_hidden_states, output_attentions
    limit = int(config.max_window_seconds * config.sampling_rate)
    if input_values.shape[1] <= limit:
        frames = backbone(input_values, attention_mask, output_attentions=output_attentions)
        statistics = frame_moments(frames.hidden_states, frames.frame_mask).statistics()
        kept = frames.hidden_states if output_hidden_states else None
        return statistics, BackboneOutput(hidden_states=kept, attentions=frames.attentions)
    lengths = own_samples(config.backbone_config, input_values, attention_mask)
    lengths = [input_values.shape[1]] * len(input_values) if lengths is None else lengths.tolist()
    # Recording by recording: windows then depend on its own length only, not on the batch it is in.
    rows = [
        _in_windows(backbone, config, row[: int(n)], limit, *asked_for)
        for row, n in zip(input_values, lengths, strict=True)
    ]
    statistics = torch.cat([moments.statistics() for moments, _ in rows])
    return statistics, joined_recordings([windows for _, windows in rows]) if any(asked_for) else BackboneOutput()


def _in_windows(backbone, config, waveform: Tensor, limit: int, output_hidden_states, output_attentions):
    """Moments over all frames of a recording (n,), and its windows as far as asked for."""
    overlap = int(config.window_overlap_seconds * config.sampling_rate)
    windows, total = JoinedWindows(), None
    for start, end, first, last in iter_windows(config.backbone_config, len(waveform), limit, overlap):
        frames = backbone(waveform[None, start:end], output_attentions=output_attentions)
        kept = [layer[:, first:last] for layer in frames.hidden_states]
        moments = frame_moments(kept, frames.frame_mask[:, first:last])
        total = moments if total is None else total.merge(moments)
        if output_hidden_states:
            windows.hidden_states.append(kept)
        if output_attentions:
            rows = [None if layer is None else layer[:, :, first:last] for layer in frames.attentions]
            windows.attentions.append((start // samples_per_frame(config.backbone_config), rows))
    return total, windows


@dataclass
class JoinedWindows:
    """What the windows of one recording gave, in order, for the frames taken from each.

    hidden_states: for each window a list of layers (1, frames, hidden).
    attentions: for each window its first frame, and a list of layers (1, heads, frames, frames of the window).
    """

    hidden_states: list[list[Tensor]] = field(default_factory=list)
    attentions: list[tuple[int, list[Tensor | None]]] = field(default_factory=list)

    def whole_hidden_states(self) -> list[Tensor]:
        """Layers (1, T, hidden)."""
        return [torch.cat(parts, dim=1) for parts in zip(*self.hidden_states, strict=True)]

    def whole_attentions(self) -> list[Tensor]:
        """Layers (1, heads, T, T), zero outside the windows: quadratic in the recording's length."""
        starts, windows = zip(*self.attentions, strict=True) if self.attentions else ((), ())
        layers = list(zip(*windows, strict=True))
        return [_whole_rows(starts, rows) for rows in layers if rows[0] is not None]


def _whole_rows(starts: tuple[int, ...], rows: tuple[Tensor, ...]) -> Tensor:
    n_frames = sum(part.shape[2] for part in rows)
    padded = [F.pad(part, (start, n_frames - start - part.shape[3])) for start, part in zip(starts, rows, strict=True)]
    return torch.cat(padded, dim=2)


def joined_recordings(recordings: list[JoinedWindows]) -> BackboneOutput:
    """A batch of recordings, padded on the right with zeros; None for what no window holds."""
    hidden = [recording.whole_hidden_states() for recording in recordings]
    attentions = [recording.whole_attentions() for recording in recordings]
    return BackboneOutput(hidden_states=_batch(hidden, 1), attentions=_batch(attentions, 2))


def _batch(recordings: list[list[Tensor]], n_axes: int) -> tuple[Tensor, ...] | None:
    """Layers of each recording to layers of the batch; the `n_axes` axes that count frames are the last ones (before
    the width, where there is one)."""
    if not recordings[0]:
        return None
    axis = 1 if n_axes == 1 else 2
    longest = max(layers[0].shape[axis] for layers in recordings)

    def padded(layer: Tensor) -> Tensor:
        return F.pad(layer, (0, 0) * (n_axes == 1) + (0, longest - layer.shape[axis]) * n_axes)

    return tuple(torch.cat([padded(layer) for layer in rows]) for rows in zip(*recordings, strict=True))
