"""Anybody's recordings: class folders, metadata.csv, a CSV, TSV, JSON or JSONL manifest, a Hub dataset."""

import csv
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets import Audio, Dataset, DatasetDict, concatenate_datasets, load_dataset

from .emotions import canonical_emotion
from .recordings import CorpusError, Utterance, find_audio, first_files, read_table

logger = logging.getLogger(__name__)

AUDIO_COLUMNS = ("file_name", "audio", "path", "file", "filename", "audio_path", "wav")
LABEL_COLUMNS = ("emotion", "label", "labels", "emotions", "major_emotion", "category", "class")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "spk", "spk_id", "speakers", "actor", "actor_id", "client_id")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence", "raw_text", "normalized_text")
METADATA_FILES = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.json")
HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
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
    audio, label, *others = _find_columns(list(rows[0]), columns, str(path))
    found, missing = [], []
    for number, row in enumerate(rows, start=1):
        if row.get(audio) in (None, "") or row.get(label) in (None, ""):
            empty = audio if row.get(audio) in (None, "") else label
            raise CorpusError(f"row {number} of {str(path)!r} has no {empty}: {row}; fill it in or take the row out")
        recording = path.parent / str(row[audio])
        if not recording.is_file():
            missing.append(str(row[audio]))
        found.append(Utterance(str(recording), str(row[label]), *(_text(row, column) for column in others)))
    if missing:
        raise CorpusError(
            f"{len(missing)} of {len(rows)} recordings in {str(path)!r} do not exist, "
            f"such as {missing[0]!r}; "
            f"paths are relative to {str(path.parent)!r}"
        )
    return found


def _text(row: Mapping, column: str | None) -> str | None:
    value = row.get(column) if column else None
    return None if value in (None, "") else str(value)


def _find_columns(names: list[str], columns: tuple, where: str) -> tuple[str | None, ...]:
    """Names of the columns with audio, label, speaker, language, text; the last three may be None."""
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


def is_hub_id(source: str) -> bool:
    """Whether a source that is not on disk may be a Hub dataset's id, and no mistyped path below a folder."""
    owner = source.split("/")[0]
    return bool(re.fullmatch(HUB_ID, source)) and not ("/" in source and Path(owner).is_dir())


def read_hub(
    source: str,
    audio_column: str = "audio",
    label_column: str | None = None,
    speaker_column: str | None = None,
    split: str | None = None,
) -> tuple[list[Utterance], Dataset]:
    """A Hub dataset's utterances, and beside them its one column of audio, which stays on disk.

    Audio is {"bytes", "path"} there, never decoded, for which datasets needs torchcodec and FFmpeg's
    libraries. Without a split all splits are read. Raises CorpusError where it cannot be loaded, or lacks a
    column or a label.
    """
    try:
        dataset = load_dataset(source, split=split)
    except Exception as error:  # network, no such repository, no such split: one message serves
        raise CorpusError(
            f"{source!r} is no folder or file here, and loading it from the Hub failed: {error}"
        ) from error
    if isinstance(dataset, DatasetDict):
        logger.info("%s: all its splits are read: %s", source, ", ".join(dataset))
        dataset = concatenate_datasets(list(dataset.values()))
    columns = _find_columns(dataset.column_names, (audio_column, label_column, speaker_column), source)
    audio, label, *others = columns
    rows = dataset.select_columns([column for column in columns[1:] if column])
    names = getattr(dataset.features[label], "names", None)
    utterances = []
    for number, row in enumerate(rows):
        if row[label] in (None, "") or (names and row[label] < 0):
            raise CorpusError(f"row {number} of {source!r} has no {label}; choose a labelled split")
        emotion = names[row[label]] if names else str(row[label])
        utterances.append(Utterance(f"{source}[{number}]", emotion, *(_text(row, column) for column in others)))
    audio_only = dataset.select_columns([audio]).cast_column(audio, Audio(decode=False))
    return utterances, audio_only if audio == "audio" else audio_only.rename_column(audio, "audio")
