"""Who may import whom: a reader who follows a recording from its file to the report walks downhill."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_edrl_mea", "train", "hub_card")
# Rooms from the top down; one may import those below it. What is not listed is a room of its own name's folder.
FLOORS = (
    ("train.run", "train.benchmark", "train.probing"),
    (
        "train.trainer",
        "train.corpus_embedding",
        "train.pretraining",
        "train.model_setup",
        "train.arguments",
        "train.help",
        "train.training_log",
    ),
    ("train.run_folder", "train.failures", "train.evaluation"),
    ("train.data",),
    ("train.degradation",),
    ("hub_card",),
    ("modeling_edrl_mea",),
)
# At import; what else the model's package needs it imports where it is used, or does without.
LIBRARIES_OF_THE_MODEL = {"torch", "transformers", "numpy"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
SCRIPTS = {module_name(path): path for path in sorted((ROOT / "scripts").glob("*.py"))}


def imports(name: str, path: Path, at_import_only: bool = False) -> set[tuple[str, str | None]]:
    """(module, name in it or None) of each import, relative ones resolved."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), at_import_only):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (parent, node.module) if part)
            found |= {(module, alias.name) for alias in node.names}
    return found


def _nodes(tree: ast.AST, at_import_only: bool):
    """All nodes, or those that importing the module runs and that no `try` guards."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not (at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Try))):
            yield from _nodes(node, at_import_only)


def floor_of(module: str) -> int | None:
    for floor, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return floor
    return None


def room_of(module: str) -> str:
    return next(room for rooms in FLOORS for room in rooms if module == room or module.startswith(f"{room}."))


def imported_modules(name: str, path: Path) -> set[str]:
    """Modules of the project that a module imports: `from train import closed_form` is train.closed_form."""
    found = {f"{module}.{part}" if f"{module}.{part}" in MODULES else module for module, part in imports(name, path)}
    return {module for module in found if module.split(".")[0] in (*PACKAGES, "scripts", "tests")}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_room_and_from_those_below(name):
    if floor_of(name) is None:  # the folders' own __init__ files
        assert not imported_modules(name, MODULES[name])
        return
    for other in imported_modules(name, MODULES[name]):
        assert room_of(other) == room_of(name) or floor_of(other) >= floor_of(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", MODULES)
def test_no_package_imports_the_entry_a_script_or_a_test(name):
    assert not {other for other in imported_modules(name, MODULES[name]) if other.split(".")[0] in ("scripts", "tests")}
    assert "train.run" not in imported_modules(name, MODULES[name])


@pytest.mark.parametrize("name", MODULES | SCRIPTS)
def test_nobody_uses_a_private_name_of_another_module(name):
    path = (MODULES | SCRIPTS)[name]
    own = {(module, part) for module, part in imports(name, path) if module.split(".")[0] in PACKAGES}
    assert not {(module, part) for module, part in own if part and part.startswith("_") and not part.startswith("__")}
    modules = {part for module, part in own if part and f"{module}.{part}" in MODULES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert not node.attr.startswith("_"), f"{name} uses {node.value.id}.{node.attr}"


def test_the_card_knows_nothing_of_training_and_little_of_the_model():
    for name in (name for name in MODULES if name.startswith("hub_card") and "space" not in name):
        foreign = {other for other in imported_modules(name, MODULES[name]) if not other.startswith("hub_card")}
        assert foreign <= {"modeling_edrl_mea.loading"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("modeling_edrl_mea.")])
def test_importing_the_model_takes_torch_transformers_and_numpy_alone(name):
    import sys

    modules = {module.split(".")[0] for module, _ in imports(name, MODULES[name], at_import_only=True)}
    assert modules - LIBRARIES_OF_THE_MODEL - set(sys.stdlib_module_names) <= {"modeling_edrl_mea"}
