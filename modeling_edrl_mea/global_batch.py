"""One batch out of the parts that several processes hold, so that losses over a batch do not depend on their number."""

import torch
import torch.distributed as dist


class GlobalBatch:
    """This process's share of a batch, and the whole of it.

    EDRL's losses compare the recordings of a batch with each other (correlations, class means), so computing them
    share by share would be another loss. The heads are cheap: every process computes them for the whole batch, and
    only the backbone's work is divided. With one process nothing happens.
    """

    def __init__(self, n_own: int, device: torch.device):
        self.sizes = [n_own]
        if _n_processes() > 1:
            sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(_n_processes())]
            dist.all_gather(sizes, torch.tensor([n_own], device=device))
            self.sizes = [int(size) for size in sizes]

    def gather(self, own: torch.Tensor | None) -> torch.Tensor | None:
        """(n_own, …) of every process → (n, …), in the order of the processes; gradients flow back to each."""
        if own is None or len(self.sizes) == 1:
            return own
        if not own.shape[-1]:  # no columns: nothing to send
            return own.new_zeros(sum(self.sizes), 0)
        return _Gather.apply(own, self.sizes)

    def own(self, whole: torch.Tensor | None) -> torch.Tensor | None:
        """This process's rows of (n, …)."""
        if whole is None or len(self.sizes) == 1:
            return whole
        return whole.split(self.sizes)[dist.get_rank()]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        # Every process computes the loss of the whole batch, and DistributedDataParallel takes the mean over processes:
        # the sum here makes that mean the gradient of one process with the whole batch.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.sizes)[dist.get_rank()], None


def _n_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
