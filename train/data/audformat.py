"""Databases in audformat, as audb downloads them: db.yaml, and a CSV or Parquet table for each of its tables."""

from pathlib import Path

import yaml

from .given_splits import role_of_split
from .recordings import CorpusError, read_table

HEADER = "db.yaml"
LABELS = ("emotion", "label", "emotions")


def read_database(folder: Path, label_column: str | None = None) -> list[dict]:
    """Rows of file, start, end, emotion, speaker, language, split, as far as the database's tables have them.

    Of the tables with the label column those named by splits are taken, else the first. What others say of a file
    (speaker, transcription) is added to its rows. Raises CorpusError.
    """
    header = yaml.safe_load((folder / HEADER).read_text(encoding="utf-8")) or {}
    wanted = (label_column,) if label_column else LABELS
    tables = {name: list(about.get("columns") or {}) for name, about in (header.get("tables") or {}).items()}
    labeled = {name: next((c for c in wanted if c in columns), None) for name, columns in tables.items()}
    labeled = {name: column for name, column in labeled.items() if column}
    if not labeled:
        raise CorpusError(f"no table of {str(folder / HEADER)!r} has a column {' or '.join(wanted)}: {tables}")
    chosen = {name: _split_in(name) for name in labeled if _split_in(name)} or {next(iter(labeled)): None}
    about = _about_files(folder, [name for name in tables if name not in labeled])
    languages = header.get("languages") or []
    rows = []
    for name, split in chosen.items():
        for row in _read(folder, name):
            more = {"split": split} if split else {}
            more |= {"language": languages[0]} if len(languages) == 1 else {}
            label = {wanted[0]: row.get(labeled[name])}
            rows.append(about.get(row["file"], {}) | row | label | more)
    return [row for row in rows if row[wanted[0]] not in (None, "")]


def _split_in(table: str) -> str | None:
    return next((part for part in table.split(".") if role_of_split(part)), None)


def _about_files(folder: Path, tables: list[str]) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for name in tables:
        for row in _read(folder, name):
            if "start" not in row and row.get("file"):
                found.setdefault(row["file"], {}).update(
                    {key: value for key, value in row.items() if key != "duration"}
                )
    return found


def _read(folder: Path, table: str) -> list[dict]:
    path = folder / f"db.{table}.csv"
    if path.is_file():
        return read_table(path)
    path = path.with_suffix(".parquet")
    if not path.is_file():
        raise CorpusError(f"{str(folder)!r} has neither db.{table}.csv nor db.{table}.parquet: download the tables too")
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()
