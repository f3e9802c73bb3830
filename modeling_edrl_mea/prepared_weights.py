"""Linear layers and convolutions whose weights are prepared once for the CPU's matrix kernels, at inference.

PyTorch hands oneDNN a plain weight matrix, which has to be rearranged in every call, and under autocast also
cast. Here it is arranged and cast once, layers of one input are one product, and GELU is applied while the result is
still in the cache. With gradients, on other devices, under compilation, for layers other than plain `nn.Linear` and
`nn.Conv1d` (LoRA, quantization), and where hooks or offloading wait for the call, the usual way is taken: the module
is called.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers.activations import GELUActivation

# Sums in a digest, of words of 8 bytes: enough to read weights as fast as the memory gives them, and a prime, so that
# rows of a matrix that change places seldom leave all of them as they were.
SUMS = 1021

# oneDNN compiles a kernel for every number of rows and keeps 1,024 of them: recordings of distinct lengths would
# compile for ever. So rows are padded to a multiple; bfloat16's tiles round up anyway, float32 would lose by it.
ROW_MULTIPLES = {torch.bfloat16: 32}


def project(module: nn.Linear | nn.Conv1d, x: Tensor, activation: nn.Module | None = None) -> Tensor:
    """activation(module(x)), x (..., features); of a convolution the features are one window, (taps · in)."""
    dtype = compute_dtype(x)
    if not (can_prepare(module, x) and has_kernels(dtype)):
        y = F.linear(x, filters(module, x), module.bias) if type(module) is nn.Conv1d else module(x)
        return y if activation is None else activation(y)
    is_gelu = isinstance(activation, nn.GELU | GELUActivation) and is_exact(activation) and not is_watched(activation)
    y = _multiply(x, *packed([module], dtype), is_gelu)
    return y if activation is None or is_gelu else activation(y)


def project_all(modules: Sequence[nn.Linear], x: Tensor) -> list[Tensor]:
    """[module(x) for each module], x (..., features), as one product."""
    dtype = compute_dtype(x)
    if not (all(can_prepare(module, x) for module in modules) and has_kernels(dtype)):
        return [project(module, x) for module in modules]
    y = _multiply(x, *packed(modules, dtype))
    return list(y.split([module.out_features for module in modules], dim=-1))


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, with_gelu: bool = False) -> Tensor:
    n_rows = x.shape[:-1].numel()
    excess = -n_rows % ROW_MULTIPLES.get(weight.dtype, 1)
    if excess:  # F.pad would write all of it twice
        rows = x.new_empty(n_rows + excess, x.shape[-1], dtype=weight.dtype)
        rows[:n_rows].unflatten(0, x.shape[:-1]).copy_(x)
        rows[n_rows:].zero_()
    else:
        rows = x.to(weight.dtype).flatten(0, -2)
    name, algorithm = ("gelu", "none") if with_gelu else ("none", "")
    y = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, name, [], algorithm)
    return y[:n_rows].unflatten(0, x.shape[:-1])


def filters(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Weights (out, in, taps) of a convolution that is applied to x as a matrix (out, taps · in)."""
    if can_prepare(conv, x):
        return prepared([conv], "matrix", lambda: _as_matrix(conv).detach())
    return _as_matrix(conv)


def _as_matrix(conv: nn.Conv1d) -> Tensor:
    return conv.weight.transpose(1, 2).flatten(1)


def compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def is_exact(activation: nn.Module) -> bool:
    """Whether a GELU is the one by the error function, not its tanh approximation."""
    return getattr(activation, "approximate", "none") == "none"


def can_prepare(module: nn.Module, x: Tensor) -> bool:
    return (
        is_plain_inference(x)
        and type(module) in (nn.Linear, nn.Conv1d)
        and module.weight.device.type == "cpu"
        and not is_watched(module)
        and type(module.weight) in (nn.Parameter, Tensor)
        and x.numel() > 0
    )


def is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says: hooks, or a forward replaced by offloading."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, _global_forward_hooks, _global_forward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def is_plain_inference(x: Tensor) -> bool:
    """On the CPU, with no gradient, and not under compilation or export."""
    return not (
        torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu"
    )


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN is the fastest. Up to AVX2 PyTorch's usual kernels are, and plain weights need no check."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if "AVX512" not in torch.backends.cpu.get_cpu_capability() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(modules: Sequence[nn.Linear | nn.Conv1d], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weights and biases one under another, ready for the kernel."""

    def pack():
        weights = [_as_matrix(module) if isinstance(module, nn.Conv1d) else module.weight for module in modules]
        weight = torch.cat([weight.detach().to(dtype) for weight in weights])
        return torch.ops.mkldnn._reorder_linear_weight(weight, None), _joined_biases(modules, dtype)

    return prepared(modules, dtype, pack)


def _joined_biases(modules: Sequence[nn.Linear | nn.Conv1d], dtype: torch.dtype) -> Tensor | None:
    if all(module.bias is None for module in modules):
        return None
    biases = (module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias for module in modules)
    return torch.cat([bias.detach().to(dtype) for bias in biases])


@dataclass
class _Prepared:
    """What was made of some modules' weights, and what these were like then."""

    made: object
    kind: str | torch.dtype
    modules: list[ReferenceType]  # weak: they are keys of `_PREPARED`
    versions: list[tuple]
    digests: list[np.ndarray]

    def is_current(self) -> bool:
        """Version counters miss what is written by way of `.data` or a NumPy view (pruning, merged adapters), so all
        values are read."""
        modules = [module() for module in self.modules]
        if None in modules or self.versions != _versions(modules):
            return False
        return all(map(np.array_equal, self.digests, _digests(modules)))


# First of the modules → what was made of their weights. Kept here: packed weights cannot be copied or pickled.
_PREPARED: WeakKeyDictionary[nn.Module, _Prepared] = WeakKeyDictionary()


def prepared(modules: Sequence[nn.Module], kind: str | torch.dtype, prepare: Callable):
    """What `prepare` makes of the modules' weights; made again where another `kind` or other modules are wanted, and
    once `forget_changed_weights` has found them changed."""
    known, references = _PREPARED.get(modules[0]), [ref(module) for module in modules]
    if known is None or (known.kind, known.modules) != (kind, references):
        known = _Prepared(prepare(), kind, references, _versions(modules), list(_digests(modules)))
        _PREPARED[modules[0]] = known
    return known.made


def forget_changed_weights(root: nn.Module) -> None:
    """Drop what was made of weights below `root` that have changed since; once in every pass."""
    for module in root.modules():
        known = _PREPARED.get(module)
        if known is not None and not known.is_current():
            _PREPARED.pop(module, None)  # another thread may have been first


def _weights(modules: Sequence[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        if type(module) in (nn.Linear, nn.Conv1d):  # a parametrized one would compute its weight
            yield from (weight for weight in (module.weight, module.bias) if weight is not None)
        else:
            yield from module.parameters()


def _versions(modules: Sequence[nn.Module]) -> list[tuple]:
    return [
        (weight.dtype, weight.device, weight.data_ptr(), None if weight.is_inference() else weight._version)
        for weight in _weights(modules)
    ]


def _digests(modules: Sequence[nn.Module]) -> Iterator[np.ndarray]:
    """Sums, modulo 2⁶⁴, of every `SUMS`th word of the weights' bits, where one changed bit changes one; what is left at
    the end as it is."""
    for weight in _weights(modules):
        flat = weight.detach().contiguous().view(-1)
        is_aligned = flat.storage_offset() * flat.element_size() % 8 == 0  # else it cannot be looked at as words
        bits = (flat if is_aligned else flat.clone()).view(torch.uint8).numpy()
        n = len(bits) // (8 * SUMS) * 8 * SUMS
        if n > 0:
            yield np.add.reduce(bits[:n].view(np.int64).reshape(-1, SUMS), axis=0)
        if n < len(bits):
            yield bits[n:].copy()
