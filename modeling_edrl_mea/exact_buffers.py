"""Buffers that keep their precision whatever a model is cast to."""

from torch import nn


class ExactBuffers(nn.Module):
    """A module whose own buffers `half()`, `bfloat16()` and kin move, but never round: standardization, PLS rotations
    and class biases do not survive bfloat16."""

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer.dtype.itemsize < before[name].dtype.itemsize:
                self._buffers[name] = before[name].to(buffer.device)
        return self
