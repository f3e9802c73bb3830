"""Recordings on disk before their labels are put under a scheme: what every corpus reader gives and uses."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Lossless first: where a corpus ships one recording in two formats (CREMA-D), the first one is taken.
AUDIO_EXTENSIONS = (
    *(".wav", ".flac", ".aiff", ".aif", ".w64"),
    *(".ogg", ".opus", ".oga", ".mp3", ".m4a", ".aac", ".wma"),
)


# Where nothing says who speaks, each recording counts as its own speaker under this mark; splits refuse it.
UNKNOWN_SPEAKER = "file:"
MAX_LISTED = 20  # bad recordings named in one message


class CorpusError(ValueError):
    """A corpus that is missing, empty or incomplete; the message names what, where and the remedy."""


@dataclass(frozen=True)
class Utterance:
    """One recording and its emotion, in any wording. `audio`: its path, or what to call it in messages."""

    audio: str
    emotion: str
    speaker: str | None = None
    language: str | None = None
    text: str | None = None


def find_audio(folder: Path) -> list[Path]:
    """Audio files under a folder, sorted, lossless formats first; hidden and macOS "._" files left out."""
    if not folder.is_dir():
        raise CorpusError(f"folder {str(folder)!r} does not exist; give the path the corpus was unpacked to")
    rank = {extension: place for place, extension in enumerate(AUDIO_EXTENSIONS)}
    files = []
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in visited:  # a link back up would go round for ever
            folders.clear()
            continue
        visited.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        files += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in rank
        ]
    return sorted(files, key=lambda path: (rank[path.suffix.lower()], path.as_posix()))


def first_files(folder: Path, count: int = 3) -> str:
    """The first few files under a folder, for messages."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return f"found {len(files)} files, such as {', '.join(files[:count])}" if files else "the folder has no files"


def listed(problems: Sequence[str]) -> str:
    """What is wrong with recordings, for messages: a line each, no more than MAX_LISTED."""
    return "".join(f"\n  {problem}" for problem in problems[:MAX_LISTED]) + "\n  …" * (len(problems) > MAX_LISTED)


def read_table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV table with a header line."""
    # MELD's tables have a few bytes that are not UTF-8, in the text only.
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as table:
        return list(csv.DictReader(table, delimiter=delimiter))
