"""Datasets of the Hub, or folders of their Parquet shards, as recordings on disk.

A dataset is streamed once: each recording's encoded bytes go into a file of their own, and of the rest labels, speakers
and texts are kept. So memory holds no audio whatever the size, disk holds each recording once (what `load_dataset`
prepares lies there twice, as downloaded and as Arrow), and all that reads recordings in any order, any number of times
(splits by speaker, noisy copies, corruptions) has files as of any other corpus. Streaming anew for each condition would
need no disk, and download the whole dataset once for each of them.
"""

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import datasets.config
import fsspec
from datasets import Audio, load_dataset_builder

from modeling_edrl_mea.recordings import find_audio

from .files import atomic_write, fingerprint
from .manifests import find_columns, text_of
from .recordings import CorpusError, Utterance

logger = logging.getLogger(__name__)

HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"


def is_hub_id(source: str) -> bool:
    """Whether a source that is not on disk may be a Hub dataset's id, and no mistyped path below a folder."""
    owner = source.split("/")[0]
    return bool(re.fullmatch(HUB_ID, source)) and not ("/" in source and Path(owner).is_dir())


def is_streamed(source: str) -> bool:
    """Whether a source is the id of a Hub dataset, or a folder that holds Parquet shards and no audio files."""
    path = Path(source)
    if not path.exists():
        return is_hub_id(source)
    return path.is_dir() and any(path.rglob("*.parquet")) and not find_audio(path)


def read_hub(
    source: str,
    audio_column: str = "audio",
    label_column: str | None = None,
    speaker_column: str | None = None,
    split: str | None = None,
) -> list[Utterance]:
    """A Hub dataset's utterances, their audio in files below `datasets`' own cache (HF_DATASETS_CACHE/recordings).

    What was read once is not streamed again unless the dataset, the split or the columns asked for are others; files
    that a killed process had written are kept. Without a split all splits are read.

    Raises:
        CorpusError: it cannot be loaded, or lacks a column, a label or a recording.
    """
    columns, folder = (audio_column, label_column, speaker_column), recordings_folder() / re.sub(r"\W+", "_", source)
    asked = json.dumps([split, *columns])
    try:
        builder = load_dataset_builder(source)
        asked_of = fingerprint(builder.cache_dir + asked, 32)  # which changes with the dataset
        index = folder / f"index-{asked_of}.json"
        if not index.exists():
            _stream(builder, source, split, columns, folder, index, asked)
    except CorpusError:
        raise
    except Exception as error:  # network, no such repository, no such split, full disk: one message serves
        index = _earlier_index(folder, asked) if isinstance(error, ConnectionError) else None
        if index is None:
            raise CorpusError(
                f"{source!r} is no folder or file here, and loading it from the Hub failed: {error}"
            ) from error
        logger.warning("The Hub does not answer (%s): %s is used as it was when last read.", error, source)
    rows = json.loads(index.read_text())["rows"]
    return [Utterance(str(folder / name), *about) for name, *about in rows]


def _earlier_index(folder: Path, asked: str) -> Path | None:
    known = [path for path in folder.glob("index-*.json") if json.loads(path.read_text())["asked"] == asked]
    return max(known, key=lambda path: path.stat().st_mtime, default=None)


def recordings_folder() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "recordings"


def _stream(builder, source: str, split: str | None, columns: tuple, folder: Path, index: Path, asked: str) -> None:
    """One pass over the dataset: its recordings into files of `folder`, all else into `index`, written last."""
    parts = builder.as_streaming_dataset(split=split)
    if split is None:
        logger.info("%s: all its splits are read: %s", source, ", ".join(parts))
    rows = []
    for part in parts.values() if split is None else [parts]:
        rows += _read_part(part, source, columns, folder, first=len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(index) as temporary:
        temporary.write_text(json.dumps({"asked": asked, "rows": rows}))


def _read_part(part, source: str, columns: tuple, folder: Path, first: int) -> Iterable[list]:
    names = part.column_names or list(next(iter(part)))
    audio, label, *others = find_columns(names, columns, source)
    classes = getattr((part.features or {}).get(label), "names", None)
    wanted = [column for column in (audio, label, *others) if column]
    # Not decoded, for which datasets needs torchcodec and FFmpeg's libraries.
    part = part.select_columns(wanted).cast_column(audio, Audio(decode=False))
    for number, row in enumerate(part, start=first):
        if row[label] in (None, "") or (classes and row[label] < 0):
            raise CorpusError(f"row {number} of {source!r} has no {label}; choose a labelled split")
        emotion = classes[row[label]] if classes else str(row[label])
        name = _write_recording(row[audio], folder, f"row {number} of {source!r}")
        yield [name, emotion, *(text_of(row, column) for column in others)]


def _write_recording(recording: dict | None, folder: Path, what: str) -> str:
    """Its file's place in the folder: HASH/NAME, where it need not be written again."""
    recording = recording or {}
    content, path = recording.get("bytes"), recording.get("path")
    if content is None and not path:
        raise CorpusError(f"{what} has no recording; choose another split, or name another audio_column")
    if content is None:
        with fsspec.open(path, "rb") as file:
            content = file.read()
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(path or "").name)[-100:]
    place = f"{fingerprint(content, 32)}/{name if name.strip('.') else 'recording'}"
    if not (folder / place).exists():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / place) as temporary:
            temporary.write_bytes(content)
    return place
