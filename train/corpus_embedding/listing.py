"""The recordings of a bulk embedding: a folder, a manifest or a data set, listed once and decoded one by one."""

import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import soundfile
from torch.utils.data import Dataset

from modeling_edrl_mea import RecordingError, load_recording
from modeling_edrl_mea.recordings import AUDIO_EXTENSIONS, find_audio
from train.data.files import as_path, fingerprint, is_address
from train.data.manifests import TABLES, find_columns, read_manifest
from train.run_folder import RunError


def open_dataset(source: str, split: str, audio_column: str):
    """The rows of a data set, or None where the source is a folder of audio or a manifest."""
    from datasets import Audio, load_dataset, load_from_disk

    if is_address(source):
        return None
    if Path(source, "state.json").is_file():
        rows = load_from_disk(source)
    elif os.path.exists(source):
        return None
    else:
        try:
            rows = load_dataset(source, split=split)
        except Exception as error:
            raise RunError(f"{source}: no folder, no manifest, and no dataset on the Hub ({error}).") from error
    if audio_column not in rows.column_names:
        raise RunError(f"{source} has no column {audio_column!r}; name one of {rows.column_names}.")
    if not len(rows):
        raise RunError(f"{source} has no rows.")
    return rows.cast_column(audio_column, Audio(decode=False))


def list_paths(source: Path, audio_column: str) -> list[bytes]:
    """Paths of all recordings, relative to the folder or to the manifest's."""
    if is_manifest(source):
        return _paths_of_manifest(source, audio_column)
    found = _audio_at(source) if is_address(source) else [path.relative_to(source) for path in find_audio(source)]
    paths = [os.fsencode(path) for path in found]
    if not paths:
        raise RunError(f"{source} holds no audio file.")
    return paths


def is_manifest(source: Path) -> bool:
    """Otherwise a folder; not every storage tells one from a file."""
    return source.suffix.lower() in TABLES if is_address(source) else source.is_file()


def _audio_at(folder) -> list[str]:
    """Audio files under an address, relative to it; hidden ones left out."""
    names = (name.removeprefix(folder.path).strip("/") for name in folder.fs.find(folder.path))
    is_hidden = re.compile(r"(^|/)(\.|__MACOSX)").search
    return sorted(name for name in names if name.lower().endswith(AUDIO_EXTENSIONS) and not is_hidden(name))


def _paths_of_manifest(path: Path, audio_column: str) -> list[bytes]:
    rows = read_manifest(path)
    if not rows:
        raise RunError(f"{path} lists no recording.")
    column, *_ = find_columns(list(rows[0]), (audio_column, None, None), str(path), emotions=False)
    names = [row.get(column) for row in rows]
    wrong = next((number for number, name in enumerate(names, start=1) if not (name and isinstance(name, str))), None)
    if wrong:
        raise RunError(f"Row {wrong} of {path} has no path in {column!r}. Fill it in, or take the row out.")
    return [os.fsencode(name) for name in names]


def fingerprint_of_rows(rows, is_local: bool) -> str:
    """Of a data set: what `save_to_disk` noted, or the Hub's files with their commit, wherever they are cached."""
    return fingerprint((not is_local and sorted(rows.info.download_checksums or {})) or rows._fingerprint)


# --- one by one ---


class Item(NamedTuple):
    """A recording: decoded, or with the reason why it cannot be used."""

    place: int
    name: str
    stamp: str = ""  # changes with the file
    waveform: np.ndarray | None = None
    reason: str = ""


class Recordings(Dataset):
    """Items by place in the listing; `names` are None where they are rows of a data set."""

    def __init__(self, names: pa.Array | None, source: Path, rows, audio_column: str, rate: int, max_seconds: float):
        self.names, self.rows, self.audio_column = names, rows, audio_column
        self.base = source.parent if is_manifest(source) else source
        self.rate, self.max_seconds = rate, max_seconds

    def __len__(self) -> int:
        return len(self.rows) if self.names is None else len(self.names)

    def __getitem__(self, place: int) -> Item:
        item = Item(place, f"row {place}", self.stamp(place))
        try:
            if self.names is None:
                source = self.rows[place][self.audio_column]
                item = item._replace(name=str(source.get("path") or item.name))
            else:
                item = item._replace(name=printable(os.fsdecode(self.names[place].as_py())))
                source = path = self._path(place)
                if is_address(path):
                    source = {"bytes": path.read_bytes(), "path": str(path)}
            seconds = stated_seconds(source)
            if seconds > self.max_seconds:
                return item._replace(reason=f"{seconds:.0f} s long, over --max_seconds {self.max_seconds:g}")
            return item._replace(waveform=load_recording(source, self.rate))
        except ImportError:
            raise  # a decoder that is not installed is no fault of the file
        except RecordingError as error:
            return item._replace(reason=printable(str(error)))
        except Exception as error:  # one file, however strange, must not stop millions
            return item._replace(reason=printable(f"{type(error).__name__}: {error}"))

    def _path(self, place: int):
        name = os.fsdecode(self.names[place].as_py())
        if is_address(name) or is_address(self.base):
            return as_path(name if is_address(name) else self.base / name)
        return os.path.join(self.base, name)

    def stamp(self, place: int) -> str:
        """Size and time of a recording's file, empty where it is gone; the same for all rows of a data set, whose
        fingerprint is among the run's settings."""
        if self.names is None:
            return "row"
        path = self._path(place)
        try:
            if is_address(path):
                return path.fs.ukey(path.path)
            status = os.stat(path)
        except (OSError, ValueError):
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"

    def check_source(self) -> None:
        if self.names is not None and not self.base.exists():
            raise RunError(f"{self.base} is gone. Once it is back, run this again: it goes on.")


def stated_seconds(source) -> float:
    """What the file's header says, before it is all decoded; 0 where nothing does."""
    content = isinstance(source, dict) and source.get("bytes")
    if not content and not (isinstance(source, str) and os.path.isfile(source)):  # opening a pipe would wait for ever
        return 0.0
    try:
        return soundfile.info(io.BytesIO(content) if content else os.fsencode(source)).duration
    except soundfile.LibsndfileError:
        return 0.0


def printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
