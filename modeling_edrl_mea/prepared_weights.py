"""Linear layers and convolutions whose weights are prepared once for the CPU's matrix kernels, at inference.

PyTorch hands oneDNN a plain weight matrix, which has to be rearranged in every call, and under autocast also
cast. Here it is arranged and cast once, and GELU is applied while the result is still in the cache. With
gradients, on other devices, under compilation, for layers other than plain `nn.Linear` and `nn.Conv1d` (LoRA,
quantization), and where hooks or offloading wait for the call, the usual way is taken: the module is called.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers.activations import GELUActivation

# Module → (versions and digest of its weights, what was made of them). Kept here: packed weights cannot be copied or
# pickled.
_PREPARED: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()

WORDS = 32  # of 8 bytes, in one sum of a digest: it reads the weights as fast as the memory gives them


def project(module: nn.Linear | nn.Conv1d, x: Tensor, activation: nn.Module | None = None) -> Tensor:
    """activation(module(x)), x (..., features); of a convolution the features are one window, (taps · in)."""
    dtype = compute_dtype(x)
    if not can_pack(module, x, dtype):
        y = F.linear(x, filters(module), module.bias) if type(module) is nn.Conv1d else module(x)
        return y if activation is None else activation(y)
    weight, bias = packed(module, dtype)
    is_gelu = isinstance(activation, nn.GELU | GELUActivation) and is_exact(activation) and not is_watched(activation)
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
        and type(module) in (nn.Linear, nn.Conv1d)
        and module.weight.device.type == "cpu"
        and not is_watched(module)
        and type(module.weight) in (nn.Parameter, Tensor)
        and x.numel() > 0
        and has_kernels(dtype)
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

    return prepared(module, dtype, pack)


def prepared(module: nn.Module, dtype: torch.dtype, prepare: Callable):
    """What `prepare` makes of a module's weights; made again once they have changed."""
    now = dtype, *(_version(weight) for weight in _weights(module))
    known = _PREPARED.get(module)
    if known is None or known[0] != now:
        _PREPARED[module] = known = (now, _digests(module), prepare())
    return known[2]


def forget_changed_weights(root: nn.Module) -> None:
    """Drop what was made of weights below `root` whose values have changed since; once in every pass.

    Version counters miss what is written by way of `.data` or a NumPy view (pruning, merged adapters), so all values
    are read, once a backbone call.
    """
    for module in root.modules():
        known = _PREPARED.get(module)
        if known is None:
            continue
        is_offloaded = any(weight.is_meta for weight in _weights(module))
        if is_offloaded or not all(map(torch.equal, known[1], _digests(module))):
            _PREPARED.pop(module, None)


def _weights(module: nn.Module) -> list[Tensor]:
    if isinstance(module, (nn.Linear, nn.Conv1d)):
        return [weight for weight in (module.weight, module.bias) if weight is not None]
    return list(module.parameters())


def _version(weight: Tensor) -> tuple:
    return weight.dtype, weight.data_ptr(), None if weight.is_inference() else weight._version


def _digests(module: nn.Module) -> list[Tensor]:
    """Sums, modulo 2⁶⁴, of every `WORDS` words of the weights' bits: one changed bit changes one."""
    digests = []
    for weight in _weights(module):
        flat = weight.detach().contiguous().view(-1)
        is_aligned = flat.storage_offset() * flat.element_size() % 8 == 0  # else it cannot be looked at as words
        bits = (flat if is_aligned else flat.clone()).view(torch.uint8)
        n = len(bits) // (8 * WORDS) * 8 * WORDS
        digests += [bits[:n].view(torch.int64).view(-1, WORDS).sum(1), bits[n:].clone()]
    return digests
