"""Linear layers and convolutions whose weights are packed once for the CPU's matrix kernels, at inference.

PyTorch hands oneDNN a plain weight matrix, which has to be rearranged in every call, and under autocast also
cast. Here it is arranged and cast once, and GELU is applied while the result is still in the cache. Gradients,
other devices, compilation and anything but plain `nn.Linear` and `nn.Conv1d` take the usual way.
"""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

# Module → (fingerprint, packed weight, bias). Not kept on the module: packed weights cannot be copied or pickled.
_PACKED: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()

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
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.device.type == module.weight.device.type == "cpu"
        and type(module) in (nn.Linear, nn.Conv1d)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and type(module.weight) in (nn.Parameter, Tensor)
        and x.numel() > 0
        and has_kernels(dtype)
    )


def has_kernels(dtype: torch.dtype) -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if "AVX" not in torch.backends.cpu.get_cpu_capability() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def packed(module: nn.Linear | nn.Conv1d, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, ready for the kernel. Packed again whenever the weights have changed."""
    now = fingerprint(module, dtype)
    known = _PACKED.get(module)
    if known is None or known[0] != now:
        weight = filters(module) if isinstance(module, nn.Conv1d) else module.weight
        weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), None)
        bias = None if module.bias is None else module.bias.detach().to(dtype, copy=True)
        _PACKED[module] = known = (now, weight, bias)
    return known[1:]


def fingerprint(module: nn.Module, dtype: torch.dtype) -> tuple:
    """Differs once weights have changed. Version counters miss changes by way of `.data`, and addresses come
    back, so some of the values are compared as well."""
    values = []
    for tensor in (module.weight, module.bias):
        if tensor is not None:
            flat = tensor.detach().view(-1)
            version = -1 if tensor.is_inference() else tensor._version
            values += [version, *flat[:: max(1, flat.numel() // FINGERPRINT_ELEMENTS)].tolist()]
    return dtype, module.weight.dtype, module.weight.data_ptr(), *values
