"""What a saved model must be before its weights are believed: files that fit one another, and finite numbers."""

import json
import os
import re
from pathlib import Path

import torch
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .configuration_edrl_mea import EdrlMeaConfig

SIZES = ("num_labels", "block_size", "n_components", "standardization_clip")  # of a config; all of a backbone's count
HARMLESS = 1_000_000  # no one size below it makes building hang, however few the weights
LAYER = re.compile(r"backbone\..*\blayers\.(\d+)\.")
SHOWN = 3  # names in an error
LFS_POINTER = b"version https://git-lfs"  # what a clone without Git LFS has for a file


def check_checkpoint(checkpoint: str | os.PathLike, where: dict) -> None:
    """Refuse, before anything is built, a directory or Hub repository that cannot hold a model of this kind.

    Args:
        where: `revision`, `subfolder` and the like, as `from_pretrained` takes them.

    Raises:
        ValueError: another architecture; a config that is damaged or asks for more than the weights can fill; a
            preprocessor that hears at another sampling rate.
    """
    raw = _raw_config(checkpoint, where)
    _refuse_other_models(checkpoint, raw.get("model_type", EdrlMeaConfig.model_type))
    files = _weight_files(checkpoint, where)
    if files:
        _check_sizes(checkpoint, raw, max(HARMLESS, sum(os.path.getsize(file) for file in files)))
    config = _read_config(checkpoint, raw)
    _check_shapes(checkpoint, config, {name: shape for file in files for name, shape in _shapes(file).items()})
    _check_preprocessor(checkpoint, config, where)


def check_loaded(checkpoint: str | os.PathLike, model: torch.nn.Module, missing: list[str]) -> None:
    """Refuse a model that was loaded with tensors `missing`, or with numbers that are none.

    Raises ValueError, naming the tensors.
    """
    if missing:
        raise ValueError(
            f"{checkpoint} lacks {_named(missing)} of this model, so that it would answer by chance. Download or save "
            "it again. To put new heads on it on purpose, give ignore_mismatched_sizes=True."
        )
    broken = not_finite(model)
    if broken:
        raise ValueError(
            f"{checkpoint} has NaN or infinite numbers in {_named(broken)}: its file is damaged, or its training had "
            "failed. Download it again, or take an earlier checkpoint."
        )


@torch.no_grad()
def not_finite(model: torch.nn.Module) -> list[str]:
    """Names of parameters and buffers that hold NaN or infinity, the scales of quantized ones among them. One sum of
    each, as fast as the memory gives them; only one that may have overflowed is looked at number by number."""
    tensors = {
        name: _plain(tensor)
        for name, tensor in (model.state_dict() | dict(model.named_buffers())).items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.is_meta
    }
    sums = [tensor.sum().float().cpu() for tensor in tensors.values()]
    suspects = [name for name, total in zip(tensors, sums, strict=True) if not total.isfinite()]
    return [name for name in suspects if not tensors[name].isfinite().all()]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """What a quantized tensor stands for, as one that can be added up."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(tensor, "dequantize"):
        return tensor.dequantize()
    return tensor.float() if tensor.element_size() == 1 else tensor


def _raw_config(checkpoint, where: dict) -> dict:
    try:
        raw = PreTrainedConfig.get_config_dict(checkpoint, **where)[0]
        if isinstance(raw, dict):
            return raw
    except (AttributeError, TypeError, RecursionError):  # from JSON that holds no names
        pass
    raise ValueError(f"{checkpoint}: config.json is damaged (it holds no names). Download or save it again.")


def _refuse_other_models(checkpoint, kind: str) -> None:
    """transformers would only warn, and fill the model with random weights."""
    if kind != EdrlMeaConfig.model_type:
        raise ValueError(
            f"{checkpoint} is a {kind} model, not an EDRL-MEA one. To put new heads on it: "
            f"EdrlMeaForAudioClassification.from_backbone({str(checkpoint)!r}, id2label=...)."
        )


def _weight_files(checkpoint, where: dict) -> list[str]:
    """Of safetensors; none where there are others, or where transformers will say what is missing."""
    file = _find(checkpoint, SAFE_WEIGHTS_NAME, where)
    if file is not None:
        return [file]
    index = _find(checkpoint, SAFE_WEIGHTS_INDEX_NAME, where)
    if index is None:
        return []
    shards = sorted(set(_read_json(index)["weight_map"].values()))
    return [file for shard in shards if (file := _find(checkpoint, shard, where)) is not None]


def _find(checkpoint, name: str, where: dict) -> str | None:
    quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(checkpoint, name, **where, **quietly)


def _read_json(path: str) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}). Download or save it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds no names). Download or save it again.")
    return content


def _check_sizes(checkpoint, raw: dict, most: int) -> None:
    """Every size of the config in bounds: a model has at least one number for each unit of any."""
    for name, size in _sizes(raw):
        if size > most:
            raise ValueError(
                f"{checkpoint}: config.json asks for {name}={size}, more than its weights can fill. It is damaged, or "
                "of another model: download or save it again."
            )


def _sizes(raw: dict):
    labels = raw.get("id2label")
    yield "labels", len(labels) if isinstance(labels, (dict, list)) else 0
    backbone = raw.get("backbone_config") or {}
    for name, value in (
        *((name, raw.get(name)) for name in SIZES),
        *(backbone.items() if isinstance(backbone, dict) else ()),
    ):
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, (int, float)):
                yield name, size


def _read_config(checkpoint, raw: dict) -> EdrlMeaConfig:
    try:
        return EdrlMeaConfig.from_dict(raw)
    except ValueError:
        raise
    except Exception as error:  # whatever damaged values lead to
        raise ValueError(
            f"{checkpoint}: config.json is damaged ({type(error).__name__}: {error}). Download or save it again."
        ) from error


def _check_shapes(checkpoint, config: EdrlMeaConfig, shapes: dict[str, list[int]]) -> None:
    """The counts that building takes time for are those of the weights; transformers checks the rest, once built."""
    layers = {int(found.group(1)) for name in shapes if (found := LAYER.search(name))}
    if layers and len(layers) != config.n_layers - 1:
        raise ValueError(
            f"{checkpoint}: config.json asks for {config.n_layers - 1} layers of the backbone, and the weights have "
            f"{len(layers)}. One of the files is damaged or of another model: download or save them again."
        )
    sizes = {size for shape in shapes.values() for size in shape}
    if layers and config.n_outputs not in sizes:
        raise ValueError(
            f"{checkpoint}: config.json asks for {config.n_outputs} labels, and the weights are for others. One of the "
            "files is damaged or of another model: download or save them again."
        )


def _shapes(file: str) -> dict[str, list[int]]:
    """By name, from a file's header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        with open(file, "rb") as content:
            is_pointer = content.read(len(LFS_POINTER)) == LFS_POINTER
        remedy = "It is a pointer of Git LFS: run `git lfs pull`." if is_pointer else "Download or save it again."
        raise ValueError(f"{file} is damaged ({error}). {remedy}") from error


def _check_preprocessor(checkpoint, config: EdrlMeaConfig, where: dict) -> None:
    """`pipeline` hears by this file, whatever the config says."""
    path = _find(checkpoint, "preprocessor_config.json", where)
    if path is None:
        return
    preprocessor = _read_json(path)
    for name, expected in (("sampling_rate", config.sampling_rate), ("do_normalize", config.normalize_waveform)):
        if preprocessor.get(name, expected) != expected:
            raise ValueError(
                f"{checkpoint}: preprocessor_config.json has {name}={preprocessor[name]!r}, and the model was trained "
                f"with {expected!r}: it would hear something else. Save the model again with save_pretrained."
            )


def _named(names: list[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
