"""Which recordings of noise and which rooms serve in training, and which only in testing.

A model that has heard the test noise is not robust, only used to it. So every folder of noise or of room
impulse responses is divided once, the same way on every machine: by its published folds where a metadata file
gives them, else by a hash of the file names. Training asks for "training", the corruptions for "testing".
"""

import csv
import hashlib
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from modeling_edrl_mea.recordings import AUDIO_EXTENSIONS, SAMPLING_RATE, check_file, find_audio, load_recording

METADATA_FILES = ("metadata.csv", "meta/esc50.csv")  # an audiofolder's, ESC-50's own
TRAINING_FOLDS = (1, 2, 3)  # of ESC-50's five; 4 and 5 are left for testing

Part = Literal["training", "testing", "all"]


class SoundError(ValueError):
    """Recordings of noise or rooms that cannot be used; the message names them and the remedy."""


def sound_files(folder: str | Path) -> list[Path]:
    """All audio files under a folder, sorted by their path in it. ValueError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SoundError(f"{folder} is not a folder. Give one that holds audio files, or none at all.")
    files = find_audio(folder)
    if not files:
        endings = ", ".join(sorted(AUDIO_EXTENSIONS))
        raise SoundError(f"{folder} holds no audio file ({endings}). Add some, or leave this folder out.")
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def noise_files(
    folder: str | Path, part: Part = "all", folds: tuple[int, ...] | None = None, source: str | None = None
) -> list[Path]:
    """Noise recordings of a folder that may serve in one part, sorted.

    `part`: "training" and "testing" never share a file. Files with a fold in the folder's metadata.csv (or
    ESC-50's meta/esc50.csv) serve in training where it is 1, 2 or 3; of the others half of each source do,
    chosen by a hash of their names. `folds` asks for these folds instead. `source` keeps only the files of
    one source, after the metadata's column of that name. ValueError where nothing is left, naming what was
    asked for.
    """
    folder = Path(folder)
    files, rows = sound_files(folder), _metadata(folder)
    fold_of = {path: _fold(_row(rows, path, folder)) for path in files}
    if folds is not None:
        chosen = {path for path in files if fold_of[path] in folds}
    elif part == "all":
        chosen = set(files)
    else:
        folded = {path for path in files if fold_of[path] is not None}
        chosen = {path for path in folded if (fold_of[path] in TRAINING_FOLDS) == (part == "training")}
        for one in {_row(rows, path, folder).get("source") for path in files}:
            of_source = [path for path in files if _row(rows, path, folder).get("source") == one]
            chosen |= _part([path for path in of_source if path not in folded], part, folder, lambda path: path.name)
    if source is not None:
        chosen = {path for path in chosen if _row(rows, path, folder).get("source") == source}
    if not chosen:
        raise SoundError(
            f"{folder} has no noise recording left for {part} (folds {folds}, source {source}). At least two "
            "files are needed where noise serves both in training and in testing: add recordings."
        )
    return [path for path in files if path in chosen]


def noise_sources(folder: str | Path) -> list[str]:
    """Names in the `source` column of the folder's metadata.csv, sorted; empty where there is none."""
    return sorted({row["source"] for row in _metadata(Path(folder)).values() if row.get("source")})


def impulse_response_files(folder: str | Path, part: Part = "all") -> list[Path]:
    """Room impulse responses that may serve in one part, sorted; positions in one room stay together.

    Names that differ only in a last "Position3", "mic2", "ch1" or "source1" are one room. May be empty for
    one part where the folder holds a single room.
    """
    folder = Path(folder)
    files = sound_files(folder)
    if part == "all":
        return files
    chosen = _part(files, part, folder, _room_name)
    return [path for path in files if path in chosen]


@lru_cache(maxsize=128)  # a minute is 4 MB: half a gigabyte at most for minute-long recordings
def recording(path: str | Path) -> np.ndarray:
    """A recording `(n,)` at 16 kHz, float32, kept in memory for the next time; not to be written to."""
    waveform = load_recording(path, sampling_rate=SAMPLING_RATE)
    waveform.setflags(write=False)
    return waveform


def content_of(path: str | Path) -> bytes:
    """SHA-256 of a recording's file, which its name and size do not tell from another."""
    status = check_file(path)
    return _content_of(str(path), status.st_size, status.st_mtime_ns)


@cache
def _content_of(path: str, size: int, modified: int) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _room_name(path: Path) -> str:
    return re.sub(r"[\W_]*(position|pos|mic|channel|ch|source|src)[\W_]*\d+$", "", path.stem, flags=re.I)


def _part(files: list[Path], part: Part, folder: Path, group_of) -> set[Path]:
    """Half of the groups for training (the larger half), in an order that depends on names alone."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        relative = path.relative_to(folder).parent.as_posix()
        groups.setdefault(f"{relative}/{group_of(path)}", []).append(path)
    ordered = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    middle = (len(ordered) + 1) // 2
    kept = ordered[:middle] if part == "training" else ordered[middle:]
    return {path for name in kept for path in groups[name]}


def _metadata(folder: Path) -> dict[str, dict]:
    """Rows of the folder's metadata by file name (as written there); empty where there is none."""
    for name in METADATA_FILES:
        if (folder / name).is_file():
            with open(folder / name, newline="", encoding="utf-8", errors="replace") as lines:
                rows = list(csv.DictReader(lines))
            return {row.get("file_name") or row.get("filename") or "": row for row in rows}
    return {}


def _row(rows: dict[str, dict], path: Path, folder: Path) -> dict:
    return rows.get(path.relative_to(folder).as_posix()) or rows.get(path.name) or {}


def _fold(row: dict) -> int | None:
    fold = (row.get("fold") or "").strip()
    return int(fold) if fold.isdigit() else None
