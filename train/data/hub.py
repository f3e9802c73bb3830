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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

import fsspec
import soundfile
from datasets import Audio, DatasetDict, load_dataset_builder, load_from_disk

from modeling_edrl_mea.recordings import SAMPLING_RATE, RecordingError, find_audio, load_recording

from .audformat import HEADER
from .files import atomic_write, content_hash, fingerprint, read_sealed, write_sealed
from .given_splits import is_split
from .manifests import emotion_of, find_columns, shares_of, text_of
from .ratings import find_ratings, ratings_of
from .recordings import CorpusError, Utterance, Wanted, recordings_folder
from .segments import find_times, times_of

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
    source: str, wanted: Wanted, split: str | None = None, config_name: str | None = None, revision: str | None = None
) -> list[Utterance]:
    """A Hub dataset's utterances, their audio in files below `datasets`' own cache (HF_DATASETS_CACHE/recordings).

    What was read once is not streamed again unless the dataset, the split or the columns asked for are others; files
    that a killed process had written are kept. Without a split all splits are read; each utterance names its own.

    Raises:
        CorpusError: it cannot be loaded, or lacks a column, a label or a recording.
    """
    folder = recordings_folder() / re.sub(r"\W+", "_", source)
    about = (*wanted.columns, *wanted.attributes, wanted.emotions, wanted.skip_missing)
    asked = json.dumps([split, config_name, revision, *about])
    try:
        version, open_parts = _opened(source, config_name, revision)
        index = folder / f"index-{fingerprint(version + asked, 32)}.json"  # whose name changes with the dataset
        rows = _rows(index)
        if rows is None:
            _stream(open_parts, source, split, wanted, folder, index, asked)
            rows = _rows(index)
    except CorpusError:
        raise
    except Exception as error:  # network, no such repository, no such split, full disk: one message serves
        rows = _earlier_rows(folder, asked) if isinstance(error, ConnectionError) else None
        if rows is None:
            is_here = Path(source).exists()
            what = "cannot be read" if is_here else "is no folder or file here, and loading it from the Hub failed"
            raise CorpusError(f"{source!r} {what}: {' '.join(str(error).split())}") from error
        logger.warning("The Hub does not answer (%s): %s is used as it was when last read.", error, source)
    return [Utterance(str(folder / name), *about) for name, *about in rows]


def _rows(index: Path) -> list | None:
    """What an index lists; None where it, or a recording of it, is damaged or not there. Damaged recordings are
    removed, so that the next pass over the dataset writes them anew."""
    found = read_sealed(index)
    if found is None:
        return None
    places = {index.parent / name for name, *_ in found["rows"]}
    damaged = [place for place in places if not _is_whole(place)]
    for place in damaged:
        place.unlink(missing_ok=True)
    if damaged:
        logger.warning("%d recordings in %s are damaged or gone: read again.", len(damaged), index.parent)
    return None if damaged else found["rows"]


def _is_whole(place: Path) -> bool:
    """Whether a recording has the content that its folder is named by."""
    try:
        return content_hash(place).hex().startswith(place.parent.name)
    except RecordingError:
        return False


def _earlier_rows(folder: Path, asked: str) -> list | None:
    known = sorted(folder.glob("index-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    of_these = (path for path in known if (read_sealed(path) or {}).get("asked") == asked)
    return next((rows for path in of_these if (rows := _rows(path)) is not None), None)


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


def _stream(open_parts, source: str, split: str | None, wanted: Wanted, folder: Path, index: Path, asked: str) -> None:
    """One pass over the dataset: its recordings into files of `folder`, all else into `index`, written last."""
    parts = open_parts()
    chosen = [name for name in parts if split is None or is_split(name, split)]
    if not chosen:
        raise CorpusError(f"split {split!r} of {source!r}: its splits are {', '.join(parts)}")
    rows = []
    for name in chosen:
        rows += _read_part(parts[name], name, source, wanted, folder, first=len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(index, {"asked": asked, "rows": rows})


def _read_part(part, split: str, source: str, wanted: Wanted, folder: Path, first: int) -> Iterable[list]:
    """Rows of what `Utterance` takes, in its order."""
    names, features, n_missing = part.column_names or list(next(iter(part))), part.features or {}, 0
    audio, label, *others = find_columns(names, wanted.columns, source, wanted.emotions)
    times, rated = find_times(names, source), find_ratings(names, wanted.attributes)
    classes = _classes(features.get(label))
    part = part.select_columns([column for column in (audio, label, *others, *times, *rated.values()) if column])
    if isinstance(features.get(audio), Audio):  # not decoded: for that, datasets needs torchcodec and FFmpeg
        part = part.cast_column(audio, Audio(decode=False))
    for number, row in enumerate(part, start=first):
        where = f"row {number} of {source!r}"
        value, ratings = row.get(label), ratings_of(row, rated, where)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        is_missing = value in (None, "", []) or (classes and value == -1)
        if wanted.emotions and is_missing and not ratings:
            raise CorpusError(f"{where} has no {label}; choose a labeled split")
        if wanted.skip_missing and not _holds_something(row[audio]):
            n_missing += 1
            continue
        emotion = None
        if not is_missing:
            emotion = classes[value] if classes and isinstance(value, int) else emotion_of(value, where)
        name = _write_recording(*_encoded(row[audio], source, where), folder)
        about = (text_of(row, column) for column in others)
        yield [name, emotion, *about, split, *times_of(row, times, where), ratings, shares_of(value)]
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
    if not _is_whole(folder / place):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / place) as temporary:
            temporary.write_bytes(content)
    return place
