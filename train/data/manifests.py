"""Anybody's recordings: class folders, metadata.csv, a CSV, TSV, JSON or JSONL manifest, an audformat database."""

import ast
import contextlib
import csv
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet

from modeling_edrl_mea.recordings import AUDIO_EXTENSIONS, find_audio

from .audformat import HEADER, read_database
from .emotions import canonical_emotion
from .given_splits import role_of_split
from .ratings import find_ratings, ratings_of
from .recordings import CorpusError, Utterance, Wanted, column_key, first_files, is_nothing, read_table
from .segments import find_times, times_of

logger = logging.getLogger(__name__)

# Usual names, in any case, with spaces, hyphens or nothing for underscores.
AUDIO_COLUMNS = (
    *("file_name", "audio", "path", "file", "audio_path", "file_path", "audio_file", "audio_file_path"),
    *("audio_filename", "wav", "wav_file", "wav_path", "recording"),
)
LABEL_COLUMNS = (
    *("emotion_name", "emotion", "label_name", "label", "labels", "emotions", "major_emotion", "emotion_label", "emo"),
    *("category", "class_name", "class"),  # a name before the number that stands for it
)
SPEAKER_COLUMNS = (
    *("speaker", "speaker_id", "spk", "spk_id", "spkr_id", "speakers", "speaker_name", "actor", "actor_id"),
    *("client_id", "subject", "subject_id", "participant", "participant_id", "talker", "talker_id"),
)
LANGUAGE_COLUMNS = ("language", "lang", "locale")
TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence", "raw_text", "normalized_text")
SPLIT_COLUMNS = ("split", "split_set", "subset", "partition", "set")
METADATA_FILES = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.json", "metadata.parquet")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
# Folders that are called so hold one person's recordings, and are no emotions.
_PEOPLE = re.compile(r"(actor|speaker|spk|subject|participant|person|talker|voice|user|session)[\W_]*\w{0,2}\d+", re.I)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")


def read_generic(source: str, wanted: Wanted) -> list[Utterance]:
    """The utterances of class folders, of a folder with metadata, of a manifest file, or of an audformat database.

    Paths in a manifest are relative to its folder. Columns not named are found by their usual names. A folder may have
    a table for each split (train/metadata.csv, or train.csv), as `datasets` reads it. Where emotions are wanted, a row
    needs one, or a rating.
    Raises CorpusError for a missing source, column, label or audio file.
    """
    path = Path(source)
    if path.is_file():
        return _as_utterances(read_manifest(path), path, wanted)
    if not path.is_dir():
        raise CorpusError(f"{source!r} does not exist; give a folder, a manifest or the id of a Hub dataset")
    if (path / HEADER).is_file():
        return _as_utterances(read_database(path, wanted.columns[1]), path / HEADER, wanted)
    tables = tables_of(path)
    if not tables:
        return _read_class_folders(path)
    found = [u for table in tables for u in _as_utterances(read_manifest(table), table, wanted, path)]
    unlisted = {str(file) for file in find_audio(path)} - {os.path.normpath(u.audio) for u in found}
    if unlisted:
        logger.info("%s: %d audio files that no table lists left out", path.name, len(unlisted))
    return found


def tables_of(folder: Path) -> list[Path]:
    """The folder's own metadata file; else those of its sub-folders; else tables named by splits (train.csv)."""
    for name in METADATA_FILES:
        if (folder / name).is_file():
            return [folder / name]
    below = sorted(path for name in METADATA_FILES for path in folder.rglob(name))
    return below or sorted(path for path in folder.iterdir() if path.suffix in TABLES and role_of_split(path.stem))


def read_manifest(path: Path) -> list[dict]:
    """A table's rows, text where the format has no types. Raises CorpusError."""
    suffix = path.suffix.lower()
    if suffix in ARCHIVES:
        raise CorpusError(f"{str(path)!r} is an archive: unpack it and give the folder")
    if suffix not in (*TABLES, ".txt"):
        raise CorpusError(f"{str(path)!r} is no manifest: use .csv, .tsv, .json (a list of rows) or .jsonl")
    try:
        if suffix in (".csv", ".tsv", ".txt"):
            return read_table(path)
        if suffix == ".parquet":
            return pyarrow.parquet.read_table(pyarrow.BufferReader(path.read_bytes())).to_pylist()
        lines = path.read_text(encoding="utf-8-sig")
        rows = json.loads(lines) if suffix == ".json" else [json.loads(x) for x in lines.splitlines() if x.strip()]
    except (csv.Error, UnicodeDecodeError, json.JSONDecodeError, pyarrow.ArrowInvalid) as error:
        raise CorpusError(f"{str(path)!r} cannot be read as {suffix[1:]}: {error}") from error
    if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
        rows = list(rows.values())  # SpeechBrain's, by utterance
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CorpusError(f"{str(path)!r} must hold a list of rows, each an object such as {{'file_name': …}}")
    return rows


def _as_utterances(rows: list[dict], path: Path, wanted: Wanted, root: Path | None = None):
    """The utterances that a table's rows list; `root`: the corpus's folder, where the table lies in one for a split."""
    if not rows:
        raise CorpusError(f"{str(path)!r} lists no recording")
    names = list(dict.fromkeys(name for row in rows for name in row))
    audio, label, speaker, language, text = find_columns(names, wanted.columns, str(path), wanted.emotions)
    times, rated = find_times(names, str(path)), find_ratings(names, wanted.attributes)
    split = next((name for name in names if name.lower() in SPLIT_COLUMNS), None)
    _say_what_is_not_used(path, names, {audio, label, speaker, language, text, *times, split, *rated.values()})
    found, missing = [], []
    for number, row in enumerate(rows, start=1):
        place = f"row {number} of {str(path)!r}"
        told = what_is_told(row, label, rated, place)
        has_recording = not is_nothing(row.get(audio))
        if not has_recording and not wanted.skip_missing or wanted.emotions and not (told.emotion or told.ratings):
            empty = label if has_recording else audio
            raise CorpusError(f"{place} has no {empty}: {row}; fill it in or take the row out")
        recording = _file_of(path.parent, str(row[audio])) if has_recording else None
        if recording is None:
            missing.append(str(row[audio]))
            continue
        speaker_of, language_of, words = (text_of(row, column) for column in (speaker, language, text))
        start, end = times_of(row, times, place)
        about = {"speaker": speaker_of, "language": language_of, "text": words, "start": start, "end": end}
        given = text_of(row, split) or _split_of_place(recording, path, root)
        found.append(replace(told, audio=str(recording), split=given, **about))
    _complain_of_missing(missing, len(rows), path, wanted.skip_missing)
    return found


def _say_what_is_not_used(path: Path, names: list[str], used: set) -> None:
    unused = [name for name in names if name and name not in used]
    if unused:
        logger.info("%s: columns not used: %s", path.name, ", ".join(unused))


def _file_of(folder: Path, name: str) -> Path | None:
    """The audio file that a table means: relative to its folder, or else to where the command runs. The extension may
    be left out, accents written in either of Unicode's ways, backslashes be Windows', and {data_root} SpeechBrain's."""
    plain = re.sub(r"^(\{\w+\}|\$\{?\w+\}?)/", "", name.replace("\\", "/").strip())
    forms = [name, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    paths = [base / form for base in (folder, Path.cwd()) for form in dict.fromkeys(forms) if form]
    paths += [path.with_name(path.name + extension) for path in paths if path.name for extension in AUDIO_EXTENSIONS]
    return next((path for path in paths if os.path.isfile(path)), None)


def _split_of_place(recording: Path, table: Path, root: Path | None) -> str | None:
    """The split that a row is in by where its table lies or is called, or else by its recording's folder."""
    root = root or table.parent
    parts = (*table.relative_to(root).parts[:-1], table.stem)
    parts += tuple(Path(os.path.relpath(recording, root)).parts[:-1])
    return next((part for part in parts if role_of_split(part)), None)


def _complain_of_missing(missing: list[str], n_rows: int, path: Path, skip_missing: bool) -> None:
    if not missing:
        return
    what = f"{len(missing)} of {n_rows} recordings in {str(path)!r} do not exist, such as {missing[0]!r}"
    if not skip_missing or len(missing) == n_rows:
        raise CorpusError(
            f"{what}; paths are relative to {str(path.parent)!r} or to where the command runs. --on_bad_audio skip "
            "leaves some out"
        )
    logger.warning("%s: left out", what)


def what_is_told(row: Mapping, label: str | None, rated: Mapping[str, str], where: str) -> Utterance:
    """A row's emotion, shares and ratings, as far as it has them. Raises CorpusError."""
    value = row.get(label) if label else None
    emotion = None if is_nothing(value) else emotion_of(value, where)
    return Utterance("", emotion, ratings=ratings_of(row, rated, where), shares=shares_of(value))


def emotion_of(value, where: str) -> str:
    """One emotion of what a label column holds: a word, a list of one, or shares by emotion: the largest counts.

    Raises CorpusError for several at once.
    """
    shares = shares_of(value)
    if shares:
        return max(shares, key=shares.get)
    value = _unpacked(value) if isinstance(value, str) else value
    if isinstance(value, (list, tuple)):
        if len(value) == 1:
            return _plain(value[0])
        raise CorpusError(
            f"{where} has the labels {value}: give each recording one, or shares by name, {{anger: 0.7, …}}"
        )
    return _plain(value)


def _unpacked(cell: str):
    """What a cell stands for that is the text of a list or of shares, as pandas writes them: "['anger']"."""
    cell = cell.strip()
    if cell[:1] + cell[-1:] == "[]":
        quoted = re.findall(r"""(['"])(.*?)\1""", cell)
        return [word for _, word in quoted] or [word.strip() for word in cell[1:-1].split(",")]
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(cell) if cell[:1] + cell[-1:] == "{}" else cell
    return cell


def shares_of(value) -> dict[str, float] | None:
    """Shares by emotion, where a label column holds such, or the text of such."""
    value = _unpacked(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        return None
    return {name: float(share or 0) for name, share in value.items()}


def text_of(row: Mapping, column: str | None) -> str | None:
    value = row.get(column) if column else None
    return None if is_nothing(value) else _plain(value)


def _plain(value) -> str:
    """A cell as text; 1.0, which pandas makes of 1 where other cells are empty, is 1 again."""
    return re.sub(r"^\s*(-?\d+)\.0+\s*$", r"\1", str(value))


def find_columns(names: list[str], columns: tuple, where: str, emotions: bool = True) -> tuple[str | None, ...]:
    """Names of the columns with audio, label, speaker, language, text; the last three may be None, and the label where
    no emotions are wanted.

    columns: (audio, label, speaker) as asked for, None to look for the usual names. Raises CorpusError.
    """
    audio, label, speaker = columns
    # "audio" is the default of the argument, so there it means: whichever is usual.
    audio = _pick(names, AUDIO_COLUMNS, None if audio == "audio" else audio, "audio", where)
    label = _pick(names, LABEL_COLUMNS, label, "label", where) if emotions else None
    speaker = _pick(names, SPEAKER_COLUMNS, speaker, "speaker", where, required=False)
    language = _pick(names, LANGUAGE_COLUMNS, None, "language", where, required=False)
    return audio, label, speaker, language, _pick(names, TEXT_COLUMNS, None, "text", where, required=False)


def _pick(names: list[str], usual: Iterable[str], wanted: str | None, what: str, where: str, required: bool = True):
    if wanted in names:
        return wanted
    by_name = {} if wanted else {column_key(name): name for name in reversed(names)}
    for name in map(column_key, usual):
        if name in by_name:
            return by_name[name]
    if not (required or wanted):
        return None
    looked = repr(wanted) if wanted else " or ".join(map(repr, usual))
    raise CorpusError(
        f"{where} has no {what} column: looked for {looked}, found {', '.join(names)}; name it by {what}_column"
    )


def _read_class_folders(root: Path) -> list[Utterance]:
    files = find_audio(root)
    if not files:
        packed = any(path.suffix.lower() in ARCHIVES for path in root.rglob("*"))
        raise CorpusError(
            f"no audio in {str(root)!r}: {'unpack its archives, or give' if packed else 'expected'} class folders "
            f"(anger/01.wav), metadata.csv or a known corpus; {first_files(root)}"
        )
    parents = [path.relative_to(root).parts[:-1] for path in files]
    loose = [path.name for path, parts in zip(files, parents, strict=True) if not parts]
    if loose:
        raise CorpusError(
            f"{len(loose)} recordings in {str(root)!r} have no label, such as {loose[0]}: put them into "
            "folders named by emotion, or add metadata.csv with file_name, emotion and speaker"
        )
    depth = label_depth(parents)
    names = {parts[depth] for parts in parents} if depth is not None else set()
    if not any(map(canonical_emotion, names)) and (len(names) == 1 or names and all(map(_PEOPLE.fullmatch, names))):
        others = " and the like" * (len(names) > 1)
        raise CorpusError(
            f"all recordings in {str(root)!r} lie in {min(names)!r}{others}, which is no known emotion: put them into "
            "folders named by emotion, or add metadata.csv with file_name, emotion and speaker"
        )
    _say_which_folders_are_empty(root)
    if depth is None:
        raise CorpusError(
            f"which folders of {str(root)!r} are emotions? {'/'.join(parents[0])} has no known one at any level that "
            "all files share. Put recordings into folders named by emotion only, or add metadata.csv with file_name, "
            "emotion and speaker"
        )
    utterances = []
    for path, parts in zip(files, parents, strict=True):
        beside = [part for place, part in enumerate(parts) if place != len(parts) + depth and not role_of_split(part)]
        split = next((part for part in parts if role_of_split(part)), None)
        speaker = beside[0] if len(beside) == 1 else None
        utterances.append(Utterance(str(path), parts[depth], speaker, split=split))
    named = f", speakers by the folder {'above' if depth == -1 else 'below'}" if utterances[0].speaker else ""
    logger.info("%s: emotions read from folders such as %s%s", root.name, utterances[0].emotion, named)
    return utterances


def _say_which_folders_are_empty(root: Path) -> None:
    empty = [folder.name for folder in sorted(root.iterdir()) if folder.is_dir() and not find_audio(folder)]
    empty = [name for name in empty if canonical_emotion(name)]
    if empty:
        logger.info("%s: folders without recordings: %s", root.name, ", ".join(empty))


def label_depth(parents: list[tuple[str, ...]]) -> int | None:
    """Which folder, counted from the file up (-1), names the emotion: the level with most names that are known ones.

    So anger/anna/01.wav and anna/anger/01.wav are understood, the other folder being the speaker, and folders of
    unknown words, where they are the only level that names no split. None: it cannot be told.
    """
    levels = {}
    for depth in range(-1, -1 - min(map(len, parents)), -1):
        names = {parts[depth] for parts in parents}
        if not all(map(role_of_split, names)):
            levels[depth] = sum(canonical_emotion(name) is not None for name in names) / len(names)
    if not levels:
        return None
    best = max(levels, key=levels.get)
    return best if levels[best] > 0 or len(levels) == 1 else None
