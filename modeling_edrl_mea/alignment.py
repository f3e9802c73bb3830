"""MEA, multiblock embedding alignment: a solved multiblock PLS as a module of the model.

At inference the alignment is one affine map of the concatenated blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import initialization as init

from .exact_buffers import ExactBuffers

STARTS_AT_ONE = ("scales", "target_scale", "score_scales")  # buffers that divide; the others start at zero


class EmbeddingAlignment(ExactBuffers):
    """Projects blocks of embeddings into the aligned space, and says what each block did.

    Everything learned is a buffer of fixed size, kept in float32 at least: PLS rotations do not survive
    bfloat16, so `model.half()` and the like move them without rounding.

    Args:
        block_sizes: (p_1, ..., p_B) widths of the blocks; P is their sum.
        target_size: q, columns of what the blocks are aligned to.
        n_components: k, width of the aligned embedding.

    Buffers, of which columns for components that were not found are zero:
        means, scales: (P,), block scaling included in the scales.
        rotations, loadings: (P, k). y_loadings: (q, k). target_mean, target_scale: (q,).
        super_weights: (B, k) share of each block in each component.
        explained_variance_x, explained_variance_y: (k,) share of variance.
        score_scales: (k,) standard deviation of each score in training, by which the embedding is divided.
    """

    def __init__(self, block_sizes: Sequence[int], target_size: int, n_components: int):
        super().__init__()
        self.block_sizes, self.target_size = tuple(block_sizes), target_size
        self.n_components = n_components
        width, k = sum(self.block_sizes), n_components
        shapes = {
            "means": (width,),
            "scales": (width,),
            "rotations": (width, k),
            "loadings": (width, k),
            "y_loadings": (target_size, k),
            "target_mean": (target_size,),
            "target_scale": (target_size,),
            "super_weights": (len(self.block_sizes), k),
            "explained_variance_x": (k,),
            "explained_variance_y": (k,),
            "score_scales": (k,),
        }
        for name, shape in shapes.items():
            fill = torch.ones if name in STARTS_AT_ONE else torch.zeros
            self.register_buffer(name, fill(shape, dtype=torch.float32))
        self._is_fitted = False
        self.register_load_state_dict_post_hook(_refresh_after_loading)

    @property
    def is_fitted(self) -> bool:
        """Whether a solution is loaded. A plain bool, so that `forward` never waits for the device."""
        return self._is_fitted

    def refresh(self) -> bool:
        """Look again whether the buffers hold a solution; needed where they were set other than by
        `load_solution` or `load_state_dict`, as `from_pretrained` does."""
        self._is_fitted = not self.rotations.is_meta and bool(self.rotations.any())
        for buffer in self.buffers():
            buffer._is_hf_initialized = False  # loading is over: `reset` may act again
        return self._is_fitted

    def reset(self) -> None:
        """Return to the unfitted state. Serves in `_init_weights` too: while transformers loads a checkpoint,
        buffers that came from it are left alone."""
        for name, buffer in self.named_buffers(recurse=False):
            (init.ones_ if name in STARTS_AT_ONE else init.zeros_)(buffer)
        self._is_fitted = not self.rotations.is_meta and bool(self.rotations.any())

    @torch.no_grad()
    def load_solution(self, pls) -> None:
        """Copy a solved `MultiblockPLS` into the buffers.

        Raises:
            ValueError: its blocks, target or number of components do not fit this module.
        """
        if (pls.block_sizes_, len(pls.y_mean_)) != (self.block_sizes, self.target_size):
            raise ValueError(
                f"The solution is for blocks {pls.block_sizes_} and a target of {len(pls.y_mean_)}; "
                f"this alignment has blocks {self.block_sizes} and a target of {self.target_size}."
            )
        if pls.n_components_ > self.n_components:
            raise ValueError(f"{pls.n_components_} components do not fit into {self.n_components}.")
        learned = {
            "means": pls.x_mean_,
            "scales": pls.x_scale_,
            "rotations": pls.rotations_,
            "loadings": pls.loadings_,
            "y_loadings": pls.y_loadings_,
            "target_mean": pls.y_mean_,
            "target_scale": pls.y_scale_,
            "super_weights": pls.super_weights_,
            "explained_variance_x": pls.explained_variance_x_,
            "explained_variance_y": pls.explained_variance_y_,
            "score_scales": pls.score_scales_,
        }
        for name, values in learned.items():
            buffer = getattr(self, name).fill_(1 if name in STARTS_AT_ONE else 0)
            buffer[..., : values.shape[-1]] = values.to(buffer)
        self.refresh()

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Align blocks (batch, p_1) ... (batch, p_B).

        Returns:
            (batch, k) float32 aligned embedding, whatever the dtype of the blocks or of autocast; of unit
            variance on the training data, zero for components that were not found.
        """
        with torch.autocast(self.means.device.type, enabled=False):
            embeddings = torch.cat([block.to(self.means.dtype) for block in blocks], dim=-1)
            return (embeddings - self.means) @ self._directions()

    def contributions(self, blocks: Sequence[Tensor]) -> Tensor:
        """How far each block moved each component from where the average recording lies.

        Returns:
            (batch, B, k); summed over the blocks it is the aligned embedding.
        """
        with torch.autocast(self.means.device.type, enabled=False):
            means = self.means.split(self.block_sizes)
            directions = self._directions().split(self.block_sizes)
            parts = zip(blocks, means, directions, strict=True)
            return torch.stack([(block.to(mean) - mean) @ way for block, mean, way in parts], dim=-2)

    def plot(self, block_names: Sequence[str] | None = None):
        """What the alignment learned: each block's share of each component, and the variance explained so far.

        Args:
            block_names: (B,) names, such as `model.config.block_names`; numbers where absent.

        Returns:
            a matplotlib figure: `model.alignment.plot(model.config.block_names).savefig("alignment.png")`.

        Raises:
            ValueError: nothing was fitted yet, or the names do not fit the blocks.
            ImportError: matplotlib is not installed.
        """
        names = list(block_names or [f"block {index}" for index in range(len(self.block_sizes))])
        if len(names) != len(self.block_sizes):
            raise ValueError(f"{len(names)} names for {len(self.block_sizes)} blocks: {names}.")
        if not self.refresh():
            raise ValueError("The alignment is not fitted yet: there is nothing to plot.")
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        shares, explained = figure.subplots(1, 2)
        self._draw_super_weights(shares, names)
        self._draw_explained_variance(explained)
        return figure

    def _found(self) -> list[int]:
        return self.rotations.any(dim=0).nonzero().flatten().tolist()

    def _draw_super_weights(self, axes, names: Sequence[str]) -> None:
        found = self._found()
        percent = 100 * self.super_weights[:, found].cpu()
        bottom = torch.zeros(len(found))
        for name, share in zip(names, percent, strict=True):
            axes.bar([component + 1 for component in found], share, bottom=bottom, label=name)
            bottom = bottom + share
        axes.set(xlabel="component", ylabel="super weight, %", title="Share of each block", ylim=(0, 100))
        axes.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = axes.get_legend_handles_labels()  # reversed: in the order in which the bars are stacked
        axes.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    def _draw_explained_variance(self, axes) -> None:
        components = range(len(self._found()) + 1)
        for name, shares in (("target", self.explained_variance_y), ("blocks", self.explained_variance_x)):
            total = 100 * shares[self._found()].cpu().cumsum(0)
            axes.plot(components, [0, *total.tolist()], "o-", label=name, clip_on=False)
        axes.set(xlabel="components", ylabel="explained variance, %", title="Variance explained", ylim=(0, 100))
        axes.set_xlim(0, components[-1])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)

    def _directions(self) -> Tensor:
        return self.rotations / self.scales[:, None] / self.score_scales

    def extra_repr(self) -> str:
        blocks, target, components = self.block_sizes, self.target_size, self.n_components
        return f"block_sizes={blocks}, target_size={target}, n_components={components}"


def _refresh_after_loading(module: EmbeddingAlignment, incompatible_keys) -> None:
    module.refresh()
