"""Hidden states and attention weights of long recordings, put together from their windows."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .frames import BackboneOutput


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
