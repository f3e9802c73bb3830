"""The metric in which MEA compares speech embeddings: directions that noise moves count less.

Noisy copies differ from their clean originals by D = u_noisy − u_clean. A direction in which these differences vary by
n is shrunk by √(1 + s·n/n̄), where s is `noise_shrinkage` and n̄ = tr(N²)/tr(N) the variance of a typical large one,
N = E[D D']. As nuisance directions are in speaker verification (within-class covariance normalisation, Hatch,
Kajarekar & Stolcke 2006); nothing of it remains at inference, where MEA is one affine map all the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from modeling_edrl_mea import EdrlMeaForAudioClassification, MultiblockPLS

from .embeddings import Embeddings

ROWS = 512  # recordings per pass


class NoiseMetric:
    """Maps u (n, S) to coordinates whose Euclidean distance is the metric, and a solution of MEA there back to u.

    The coordinates are L⁻¹u with LL' = I + (s/n̄)N, the Cholesky factor: what follows does not see rotations.
    """

    def __init__(self, noise_scatter: Tensor, shrinkage: float):
        """`noise_scatter`: N (S, S); zero where there are no noisy copies, and the metric is then Euclidean."""
        typical = float(noise_scatter.square().sum() / noise_scatter.trace().clamp_min(1e-30))
        shrunk = noise_scatter * (shrinkage / typical) if typical > 0 else noise_scatter
        self.factor = torch.linalg.cholesky(torch.eye(len(shrunk), dtype=shrunk.dtype) + shrunk)

    def apply(self, u: Tensor) -> Tensor:
        return solve_triangular(self.factor, u.to(self.factor).T, upper=False).T

    def undo(self, pls: MultiblockPLS, targets: Sequence[str]) -> None:
        """Rewrites a solution found in these coordinates as one for u itself, in place.

        `targets`: the config's `alignment_target`, all of which but "labels" are speech embeddings.
        """
        factor, size = self.factor, len(self.factor)
        pls.rotations_ = solve_triangular(factor.T, pls.rotations_ / pls.x_scale_[:, None], upper=True)
        pls.loadings_ = factor @ (pls.loadings_ * pls.x_scale_[:, None])
        pls.x_mean_, pls.x_scale_ = factor @ pls.x_mean_, torch.ones_like(pls.x_scale_)
        n_labels = len(pls.y_mean_) - size * sum(target != "labels" for target in targets)
        start = 0
        for target in targets:
            columns = slice(start, start + (n_labels if target == "labels" else size))
            if target != "labels":
                pls.y_mean_[columns] = factor @ pls.y_mean_[columns]
                pls.y_loadings_[columns] = factor @ pls.y_loadings_[columns]
            start = columns.stop


@torch.no_grad()
def fit_noise_metric(model: EdrlMeaForAudioClassification, data: Embeddings, accelerator=None) -> NoiseMetric:
    """The metric by the noisy copies among these recordings, shared among processes."""
    size = model.config.speech_embedding_size
    scatter, n_copies = torch.zeros(size, size, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    rank, n_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    copies = (data.clean_rows != torch.arange(len(data))).nonzero()[:, 0]
    for rows in copies[rank::n_processes].split(ROWS):
        own, clean = (
            model.edrl_mea.speech_embedding(data.layer_statistics[part].to(model.device)).double().cpu()
            for part in (rows, data.clean_rows[rows])
        )
        scatter += (own - clean).T @ (own - clean)
        n_copies += len(rows)
    if n_processes > 1:
        scatter, n_copies = (
            accelerator.reduce(part.to(accelerator.device), reduction="sum").cpu() for part in (scatter, n_copies)
        )
    return NoiseMetric(scatter / n_copies.clamp_min(1), model.config.noise_shrinkage)
