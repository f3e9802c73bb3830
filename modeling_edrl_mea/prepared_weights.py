"""Linear layers and convolutions whose weights are prepared once for the CPU's matrix kernels, at inference.

PyTorch hands oneDNN a plain weight matrix, which has to be rearranged in every call, and under autocast also
cast. Here it is arranged and cast once, and GELU is applied while the result is still in the cache. With
gradients, on other devices, under compilation, and for layers other than plain `nn.Linear` and `nn.Conv1d`,
the usual way is taken.
"""

from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

# Module → (fingerprint, what was made of its weights). Kept here: packed weights cannot be copied or pickled.
_PREPARED: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()

FINGERPRINT_ELEMENTS = 256  # weights compared before a packed copy is reused; some 10 microseconds a layer


def project(module: nn.Linear | nn.Conv1d, x: Tensor, activation: nn.Module | None = None) -> Tensor:
    """activation(module(x)), x (..., features); of a convolution the features are one window, (taps · in)."""
    dtype = compute_dtype(x)
    if not can_pack(module, x, dtype):
        y = module(x) if isinstance(module, nn.Linear) else F.linear(x, filters(module), module.bias)
        return y if activation is None else activation(y)
    weight, bias = packed(module, dtype)
    is_gelu = isinstance(activation, nn.GELU | GELUActivation) and is_exact(activation)
    name, algorithm = ("gelu", "none") if is_gelu else ("none", "")
    y = torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, name, [], algorithm)
    return y if activation is None or is_gelu else activation(y)


def filters(conv: nn.Conv1d) -> Tensor:
    """Weights (out, in, taps) of a convolution as a matrix (out, taps · in)."""
    return conv.weight.transpose(1, 2).flatten(1)


def compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def is_exact(activation: nn.Module) -> bool:
    """Whether a GELU is the one by the error function, not its tanh approximation."""
    return getattr(activation, "approximate", "none") == "none"


def can_pack(module: nn.Module, x: Tensor, dtype: torch.dtype) -> bool:
    return (
        is_plain_inference(x)
        and module.weight.device.type == "cpu"
        and type(module) in (nn.Linear, nn.Conv1d)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and type(module.weight) in (nn.Parameter, Tensor)
        and x.numel() > 0
        and has_kernels(dtype)
    )


def is_plain_inference(x: Tensor) -> bool:
    """On the CPU, with no gradient, and not under compilation or export."""
    return not (
        torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu"
    )


def has_kernels(dtype: torch.dtype) -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if "AVX" not in torch.backends.cpu.get_cpu_capability() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(module: nn.Linear | nn.Conv1d, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, ready for the kernel."""

    def pack():
        weight = filters(module) if isinstance(module, nn.Conv1d) else module.weight
        weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), None)
        return weight, None if module.bias is None else module.bias.detach().to(dtype, copy=True)

    return prepared(module, (module.weight, module.bias), dtype, pack)


def prepared(module: nn.Module, weights: Iterable[Tensor | None], dtype: torch.dtype, prepare: Callable):
    """What `prepare` makes of a module's weights; made again once they have changed."""
    now = (dtype, *(fingerprint(weight) for weight in weights if weight is not None))
    known = _PREPARED.get(module)
    if known is None or known[0] != now:
        _PREPARED[module] = known = (now, prepare())
    return known[1]


def fingerprint(weight: Tensor) -> tuple:
    """Differs once a weight has changed. Version counters miss changes by way of `.data`, and addresses come
    back, so some of the values are compared as well."""
    flat = weight.detach().view(-1)
    version = None if weight.is_inference() else weight._version
    values = flat[:: max(1, flat.numel() // FINGERPRINT_ELEMENTS)].tolist()
    return weight.dtype, weight.data_ptr(), version, *values
