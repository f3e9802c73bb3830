"""Anybody's recordings: class folders, metadata.csv, a CSV, TSV, JSON or JSONL manifest."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from modeling_edrl_mea.recordings import find_audio

from .emotions import canonical_emotion
from .recordings import CorpusError, Utterance, first_files, read_table

AUDIO_COLUMNS = ("file_name", "audio", "path", "file", "filename", "audio_path", "wav")
LABEL_COLUMNS = ("emotion", "label", "labels", "emotions", "major_emotion", "category", "class")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "spk", "spk_id", "speakers", "actor", "actor_id", "client_id")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence", "raw_text", "normalized_text")
METADATA_FILES = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.json")
SPLIT_FOLDERS = {"train", "training", "dev", "validation", "valid", "val", "test"}


def read_generic(
    source: str,
    audio_column: str = "audio",
    label_column: str | None = None,
    speaker_column: str | None = None,
    split: str | None = None,
) -> list[Utterance]:
    """The utterances of class folders, of a folder with metadata, or of a manifest file.

    Paths in a manifest are relative to its folder. Columns not named are found by their usual names.
    Raises CorpusError for a missing source, column, label or audio file.
    """
    columns = (audio_column, label_column, speaker_column)
    path = Path(source)
    if path.is_file():
        return _with_split(_read_manifest(path), path, columns, split)
    if not path.is_dir():
        raise CorpusError(f"{source!r} does not exist; give a folder, a manifest or the id of a Hub dataset")
    if split is not None and (path / split).is_dir():
        path, split = path / split, None
    for name in METADATA_FILES:
        if (path / name).is_file():
            return _with_split(_read_manifest(path / name), path / name, columns, split)
    if split is not None:
        raise CorpusError(f"split {split!r}: no folder of that name in {str(path)!r}; leave split out to read all")
    return _read_class_folders(path)


def _read_manifest(path: Path) -> list[dict]:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".json", ".jsonl"):
        raise CorpusError(f"{str(path)!r} is no manifest: use .csv, .tsv, .json (a list of rows) or .jsonl")
    try:
        if suffix in (".csv", ".tsv"):
            return read_table(path, delimiter="\t" if suffix == ".tsv" else ",")
        lines = path.read_text(encoding="utf-8-sig")
        rows = json.loads(lines) if suffix == ".json" else [json.loads(x) for x in lines.splitlines() if x.strip()]
    except (csv.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorpusError(f"{str(path)!r} cannot be read as {suffix[1:]}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CorpusError(f"{str(path)!r} must hold a list of rows, each an object such as {{'file_name': …}}")
    return rows


def _with_split(rows: list[dict], path: Path, columns: tuple, split: str | None) -> list[Utterance]:
    if split is not None:
        if not rows or "split" not in rows[0]:
            raise CorpusError(f"split {split!r}: {str(path)!r} has no column 'split'; leave split out to read all")
        rows = [row for row in rows if row["split"] == split]
    if not rows:
        raise CorpusError(f"{str(path)!r} lists no recording" + (f" in split {split!r}" if split else ""))
    audio, label, *others = find_columns(list(rows[0]), columns, str(path))
    found, missing = [], []
    for number, row in enumerate(rows, start=1):
        if row.get(audio) in (None, "") or row.get(label) in (None, ""):
            empty = audio if row.get(audio) in (None, "") else label
            raise CorpusError(f"row {number} of {str(path)!r} has no {empty}: {row}; fill it in or take the row out")
        recording = path.parent / str(row[audio])
        if not recording.is_file():
            missing.append(str(row[audio]))
        found.append(Utterance(str(recording), str(row[label]), *(text_of(row, column) for column in others)))
    if missing:
        raise CorpusError(
            f"{len(missing)} of {len(rows)} recordings in {str(path)!r} do not exist, "
            f"such as {missing[0]!r}; "
            f"paths are relative to {str(path.parent)!r}"
        )
    return found


def text_of(row: Mapping, column: str | None) -> str | None:
    value = row.get(column) if column else None
    return None if value in (None, "") else str(value)


def find_columns(names: list[str], columns: tuple, where: str) -> tuple[str | None, ...]:
    """Names of the columns with audio, label, speaker, language, text; the last three may be None.

    columns: (audio, label, speaker) as asked for, None where usual names shall be looked for. Raises CorpusError.
    """
    audio, label, speaker = columns
    # "audio" is the default of the argument, so there it means: whichever is usual.
    audio = _pick(names, AUDIO_COLUMNS, None if audio == "audio" else audio, "audio", where)
    label = _pick(names, LABEL_COLUMNS, label, "label", where)
    speaker = _pick(names, SPEAKER_COLUMNS, speaker, "speaker", where, required=False)
    language = _pick(names, LANGUAGE_COLUMNS, None, "language", where, required=False)
    return audio, label, speaker, language, _pick(names, TEXT_COLUMNS, None, "text", where, required=False)


def _pick(names: list[str], usual: Iterable[str], wanted: str | None, what: str, where: str, required: bool = True):
    for name in (wanted,) if wanted else usual:
        if name in names:
            return name
    if not (required or wanted):
        return None
    looked = repr(wanted) if wanted else " or ".join(map(repr, usual))
    raise CorpusError(
        f"{where} has no {what} column: looked for {looked}, found {', '.join(names)}; name it by {what}_column"
    )


def _read_class_folders(root: Path) -> list[Utterance]:
    files = find_audio(root)
    if not files:
        raise CorpusError(
            f"no audio in {str(root)!r}: expected class folders (anger/01.wav), metadata.csv "
            f"or a known corpus; {first_files(root)}"
        )
    parents = [path.relative_to(root).parts[:-1] for path in files]
    loose = [path.name for path, parts in zip(files, parents, strict=True) if not parts]
    if loose:
        raise CorpusError(
            f"{len(loose)} recordings in {str(root)!r} have no label, such as {loose[0]}: put them into "
            "folders named by emotion, or add metadata.csv with file_name, emotion and speaker"
        )
    depth = _label_depth(parents)
    utterances = []
    for path, parts in zip(files, parents, strict=True):
        label = parts[depth]
        beside = [part for part in parts if part != label and part.lower() not in SPLIT_FOLDERS]
        utterances.append(Utterance(str(path), label, beside[0] if len(beside) == 1 else None))
    return utterances


def _label_depth(parents: list[tuple[str, ...]]) -> int:
    """Which folder names the emotion: from the file up, the first level with known emotions only, or -1.

    So both anger/anna/01.wav and anna/anger/01.wav are understood, the other folder being the speaker.
    """
    for depth in range(-1, -1 - min(map(len, parents)), -1):
        if all(canonical_emotion(parts[depth]) for parts in parents):
            return depth
    return -1
