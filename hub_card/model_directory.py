"""What of a model directory is published: weights, configurations, and the code that they need."""

import ast
import json
import os
from pathlib import Path

from .fingerprint import WEIGHTS
from .report import PublishError, is_inside, refuse_number

CONFIGURATIONS = ("config.json", "preprocessor_config.json")


def read_model_directory(folder: Path) -> tuple[dict[str, dict], list[Path]]:
    """(configurations by file name, paths of weights and code) of a directory that `save_pretrained` wrote.

    Raises:
        PublishError: no directory, no EDRL-MEA model, weights or code missing, or what `from_pretrained` would refuse.
    """
    if not folder.is_dir():
        raise PublishError(f"{folder}: no such directory.")
    configurations = {name: _json(folder, name) for name in CONFIGURATIONS}
    kind = configurations["config.json"].get("model_type")
    if kind != "edrl_mea":
        raise PublishError(f"{folder} holds a model of type {kind!r}; only EDRL-MEA models are published by this.")
    weights = sorted(folder.glob(WEIGHTS))
    if not weights:
        raise PublishError(f"{folder} holds no {WEIGHTS} file: save the model there with save_pretrained.")
    index = sorted(folder.glob("model.safetensors.index.json"))
    files = weights + index + _code(folder, configurations) + sorted(folder.glob("LICENSE"))
    for file in files:
        if not is_inside(file, folder):
            raise PublishError(f"{file} is a link to outside of {folder}, or no file: copy what it stands for.")
    _check_loads(folder)
    return configurations, files


def _check_loads(folder: Path) -> None:
    """Who downloads it would find out otherwise."""
    from modeling_edrl_mea.loading import check_checkpoint  # here: it takes seconds to import

    try:
        check_checkpoint(folder, {})
    except (ValueError, OSError) as error:
        raise PublishError(f"Nobody could load {folder}. {error}") from error


def _json(folder: Path, name: str) -> dict:
    path = folder / name
    if not path.is_file():
        raise PublishError(f"{folder} is no saved model: it has no {name}. Save one there with save_pretrained.")
    try:
        if not is_inside(path, folder):
            raise ValueError("a link to outside")
        return _with_own_code(json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_number))
    except (ValueError, AttributeError, TypeError, RecursionError, OSError) as error:
        raise PublishError(f"{path} is damaged ({error}). Save the model again.") from error


def _with_own_code(configuration: dict) -> dict:
    """`auto_map` without "org/other--" in front of modules: the code lies beside the weights."""
    places = configuration.get("auto_map")
    if not places:
        return configuration
    return configuration | {"auto_map": {name: place.split("--")[-1] for name, place in places.items()}}


def _code(folder: Path, configurations: dict[str, dict]) -> list[Path]:
    """Every module that loading the model imports. Raises PublishError where one is missing."""
    found, wanted = {}, set()
    for name, configuration in configurations.items():
        places = configuration.get("auto_map") or {}
        if not places:
            raise PublishError(f"{folder / name} names no code (auto_map): save the model again with this package.")
        wanted |= {(name, place.rpartition(".")[0]) for place in places.values()}
    while wanted:
        origin, module = wanted.pop()
        if module in found:
            continue
        if not module.isidentifier():
            raise PublishError(f"{folder / origin} names the module {module!r}: code must lie in the directory itself.")
        file = folder / f"{module}.py"
        if not os.path.isfile(file):  # False, too, where the name is too long for the system
            raise PublishError(
                f"{folder} lacks {file.name}, which {origin} needs: trust_remote_code would fail. Save the model again."
            )
        found[module] = file
        wanted |= {(file.name, needed) for needed in _relative_imports(file)}
    return sorted(found.values())


def _relative_imports(file: Path) -> set[str]:
    needed = set()
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PublishError(f"{file} is no Python code ({error}). Save the model again.") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            needed |= {node.module} if node.module else {alias.name for alias in node.names}
    return needed
