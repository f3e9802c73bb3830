"""`train/run.py --help`, read off the sources, so that it comes at once: importing torch takes seconds."""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "DataArguments": ("train/arguments.py", "Recordings"),
    "ModelArguments": ("train/arguments.py", "Backbone"),
    "EdrlMeaTrainingArguments": ("train/arguments.py", "Training, with our defaults"),
    "EdrlMeaConfig": ("modeling_edrl_mea/configuration_edrl_mea.py", "The model"),
}
HEAD = """usage: train/run.py [CONFIG.yaml] --dataset_name DIR [--output_dir OUT] [--setting value …]

Trains, tests and saves a model; the same command goes on where a killed run stopped. These are our own settings;
--help_all lists those of transformers' TrainingArguments too.
"""


def text() -> str:
    parts = [HEAD]
    for name, (file, title) in GROUPS.items():
        source = (ROOT / file).read_text(encoding="utf-8")
        body = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name)
        fields = [node for node in body.body if isinstance(node, ast.AnnAssign)]
        parts.append(f"{title}:\n" + "\n".join(_entry(node, source, ast.get_docstring(body) or "") for node in fields))
    return "\n\n".join(parts)


def _entry(node: ast.AnnAssign, source: str, docstring: str) -> str:
    settings = {key.arg: key.value for key in getattr(node.value, "keywords", [])}
    default = settings.get("default", settings.get("default_factory", node.value))
    why = ast.literal_eval(settings["help"]) if "help" in settings else ""
    why = why or _of_docstring(node.target.id, docstring) or _of_comments(node, source)
    line = f"{why} (default: {ast.unparse(default)})".strip()
    return f"  --{node.target.id}\n" + textwrap.fill(line, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _of_docstring(name: str, docstring: str) -> str:
    """What stands behind its name, and on the lines below that are indented further."""
    found = re.search(rf"^( *){name}: (.*(?:\n\1 +.*)*)", docstring, re.MULTILINE)
    return " ".join(found[2].split()) if found else ""


def _of_comments(node: ast.AnnAssign, source: str) -> str:
    lines = source.splitlines()
    beside = [line.partition("  # ")[2] for line in lines[node.lineno - 1 : node.end_lineno] if "  # " in line]
    above, at = [], node.lineno - 2
    while lines[at].strip().startswith("# "):
        above.insert(0, lines[at].strip()[2:])
        at -= 1
    return " ".join(beside or above)
