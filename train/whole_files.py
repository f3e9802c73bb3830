"""Files that are there whole or not at all, at whatever moment the process that writes them is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

UNFINISHED = ".tmp"  # ends the names of files that are being written, so that no pattern for finished ones finds them


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Where to write a file that gets its name `path` when it is whole and on the disk.

    `path` stays what it was where the block raises or the process dies. Several processes may write one file at a
    time: each has a temporary file of its own beside it, and the last to finish wins.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:12]}{UNFINISHED}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed processes left in a folder (not below it) that no other process is writing to."""
    for leftover in Path(folder).glob(f"*{UNFINISHED}"):
        leftover.unlink(missing_ok=True)
