"""Datasets of the Hub, Parquet files or folders of them, and what `save_to_disk` wrote, as recordings on disk.

A dataset is streamed once: each recording's encoded bytes go into a file of their own, and of the rest labels, speakers
and texts are kept. So memory holds no audio whatever the size, disk holds each recording once (what `load_dataset`
prepares lies there twice, as downloaded and as Arrow), and all that reads recordings in any order, any number of times
(splits by speaker, noisy copies, corruptions) has files as of any other corpus. Streaming anew for each condition would
need no disk, and download the whole dataset once for each of them.
"""

import io
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import fsspec
import soundfile
from datasets import Audio, DatasetDict, load_dataset_builder, load_from_disk

from modeling_edrl_mea.recordings import SAMPLING_RATE, find_audio, load_recording

from .audformat import HEADER
from .files import atomic_write, fingerprint
from .given_splits import is_split
from .manifests import emotion_of, find_columns, find_times, text_of, times_of
from .recordings import CorpusError, Utterance, recordings_folder

logger = logging.getLogger(__name__)

FILES = {".parquet": "parquet", ".arrow": "arrow"}  # what `datasets` reads a file by
HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"


def is_hub_id(source: str) -> bool:
    """Whether a source that is not on disk may be a Hub dataset's id, and no mistyped path below a folder."""
    owner = source.split("/")[0]
    return bool(re.fullmatch(HUB_ID, source)) and not ("/" in source and Path(owner).is_dir())


def is_streamed(source: str) -> bool:
    """Whether a source is the id of a Hub dataset, a file of `datasets`' own formats, or a folder of those files (from
    `save_to_disk` too) that holds no audio files."""
    path = Path(source)
    if not path.exists():
        return is_hub_id(source)
    if path.is_file():
        return path.suffix.lower() in FILES
    if _is_saved(path):
        return True
    return any(path.rglob("*.parquet")) and not (path / HEADER).exists() and not find_audio(path)


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_hub(
    source: str,
    audio_column: str = "audio",
    label_column: str | None = None,
    speaker_column: str | None = None,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    skip_missing: bool = False,
) -> list[Utterance]:
    """A Hub dataset's utterances, their audio in files below `datasets`' own cache (HF_DATASETS_CACHE/recordings).

    What was read once is not streamed again unless the dataset, the split or the columns asked for are others; files
    that a killed process had written are kept. Without a split all splits are read; each utterance names its own.

    Raises:
        CorpusError: it cannot be loaded, or lacks a column, a label or a recording.
    """
    columns, folder = (audio_column, label_column, speaker_column), recordings_folder() / re.sub(r"\W+", "_", source)
    asked = json.dumps([split, config_name, revision, *columns, skip_missing])
    try:
        version, open_parts = _opened(source, config_name, revision)
        index = folder / f"index-{fingerprint(version + asked, 32)}.json"  # whose name changes with the dataset
        if not index.exists():
            _stream(open_parts, source, split, columns, folder, index, asked, skip_missing)
    except CorpusError:
        raise
    except Exception as error:  # network, no such repository, no such split, full disk: one message serves
        index = _earlier_index(folder, asked) if isinstance(error, ConnectionError) else None
        if index is None:
            is_here = Path(source).exists()
            what = "cannot be read" if is_here else "is no folder or file here, and loading it from the Hub failed"
            raise CorpusError(f"{source!r} {what}: {' '.join(str(error).split())}") from error
        logger.warning("The Hub does not answer (%s): %s is used as it was when last read.", error, source)
    rows = json.loads(index.read_text())["rows"]
    return [Utterance(str(folder / name), *about) for name, *about in rows]


def _earlier_index(folder: Path, asked: str) -> Path | None:
    known = [path for path in folder.glob("index-*.json") if json.loads(path.read_text())["asked"] == asked]
    return max(known, key=lambda path: path.stat().st_mtime, default=None)


def _opened(source: str, config_name: str | None, revision: str | None) -> tuple[str, Callable[[], Mapping]]:
    """(what changes with the dataset's content, a function that gives its splits by name)."""
    if _is_saved(Path(source)):
        saved = load_from_disk(source)
        parts = dict(saved) if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
        return "".join(part._fingerprint for part in parts.values()), lambda: parts
    if Path(source).is_file():
        builder = load_dataset_builder(FILES[Path(source).suffix.lower()], data_files=str(Path(source).resolve()))
    else:
        builder = load_dataset_builder(source, config_name, revision=revision)
    return builder.cache_dir, builder.as_streaming_dataset


def _stream(
    open_parts,
    source: str,
    split: str | None,
    columns: tuple,
    folder: Path,
    index: Path,
    asked: str,
    skip_missing: bool,
) -> None:
    """One pass over the dataset: its recordings into files of `folder`, all else into `index`, written last."""
    parts = open_parts()
    chosen = [name for name in parts if split is None or is_split(name, split)]
    if not chosen:
        raise CorpusError(f"split {split!r} of {source!r}: its splits are {', '.join(parts)}")
    rows = []
    for name in chosen:
        rows += _read_part(parts[name], name, source, columns, folder, len(rows), skip_missing)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(index) as temporary:
        temporary.write_text(json.dumps({"asked": asked, "rows": rows}))


def _read_part(part, split: str, source: str, columns: tuple, folder: Path, first: int, skip_missing: bool):
    names = part.column_names or list(next(iter(part)))
    audio, label, *others = find_columns(names, columns, source)
    times, features, n_missing = find_times(names), part.features or {}, 0
    classes = _classes(features.get(label))
    part = part.select_columns([column for column in (audio, label, *others, *times) if column])
    if isinstance(
        features.get(audio), Audio
    ):  # not decoded, for which datasets needs torchcodec and FFmpeg's libraries
        part = part.cast_column(audio, Audio(decode=False))
    for number, row in enumerate(part, start=first):
        where = f"row {number} of {source!r}"
        if row[label] in (None, "", []) or (classes and row[label] == -1):
            raise CorpusError(f"{where} has no {label}; choose a labeled split")
        if skip_missing and not _holds_something(row[audio]):
            n_missing += 1
            continue
        value = row[label][0] if isinstance(row[label], list) and len(row[label]) == 1 else row[label]
        emotion = classes[value] if classes and isinstance(value, int) else emotion_of(value, where)
        name = _write_recording(*_encoded(row[audio], source, where), folder)
        about = (text_of(row, column) for column in others)
        yield [name, emotion, *about, split, *times_of(row, times, where)]
    if n_missing:
        logger.warning("%s: %d rows without a recording left out", source, n_missing)


def _classes(feature) -> list[str] | None:
    """Names of a class label's ids, also of one in a list."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _holds_something(recording) -> bool:
    return any(recording.values()) if isinstance(recording, Mapping) else bool(recording)


def _encoded(recording, source: str, where: str) -> tuple[bytes, str]:
    """(a file's content, its name) of what an audio column holds: a file's bytes or path, or samples with their rate.

    Paths are relative to the dataset's own folder, or else to where the command runs.
    """
    if isinstance(recording, (str, bytes)):
        recording = {"path" if isinstance(recording, str) else "bytes": recording}
    if recording and not isinstance(recording, Mapping):
        raise CorpusError(f"{where} has samples without a rate; store files, or {{'array': …, 'sampling_rate': …}}")
    recording = recording or {}
    content, path = recording.get("bytes"), recording.get("path")
    if content is None and recording.get("array"):
        return _as_wav(load_recording(recording, name=where)), f"{PurePosixPath(path or 'recording').stem}.wav"
    if content is None and not path:
        raise CorpusError(
            f"{where} has no recording; choose another split, name another audio_column, or leave such rows out by "
            "--on_bad_audio skip"
        )
    if content is None:
        beside = (Path(source) if Path(source).is_dir() else Path(source).parent) / path
        with fsspec.open(str(beside) if beside.is_file() else path, "rb") as file:
            content = file.read()
    return content, path or ""


def _as_wav(waveform) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLING_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _write_recording(content: bytes, path: str, folder: Path) -> str:
    """Its file's place in the folder: HASH/NAME, where it need not be written again."""
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(path).name)[-100:]
    place = f"{fingerprint(content, 32)}/{name if name.strip('.') else 'recording'}"
    if not (folder / place).exists():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / place) as temporary:
            temporary.write_bytes(content)
    return place
