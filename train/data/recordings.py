"""Recordings on disk before their labels are put under a scheme: what every corpus reader gives and uses."""

import csv
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from modeling_edrl_mea import RecordingError, load_recording

from .files import content_hash

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


# --- checked recordings ---


def bad_recordings(audio: Sequence, memory: str | Path, processes=None) -> dict[int, str]:
    """What is wrong with each recording that cannot be used, by its place in `audio`.

    Every recording is decoded once. Those found good are remembered by their content in the folder `memory`, so that
    a run's repetition need not decode again.

    Args:
        audio: paths, or dicts as `datasets` makes them.
        processes: an accelerate `PartialState`, where several share the work.
    """
    memory = Path(memory)
    good = _remembered(memory)
    rank, n_processes = (processes.process_index, processes.num_processes) if processes else (0, 1)
    mine = range(rank, len(audio), n_processes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda row: _check(audio[row], good), mine)
        found = list(tqdm(found, "checking", len(mine), unit="rec", disable=rank > 0 or len(mine) < 1000, leave=False))
    wrong = [(row, message) for row, (_, message) in zip(mine, found, strict=True) if message]
    _remember(memory / f"good-{rank}.txt", {digest for digest, message in found if not message} - good)
    return dict(sorted(gather_object(wrong) if n_processes > 1 else wrong))


def _check(recording, good: set[str]) -> tuple[str, str | None]:
    try:
        digest = content_hash(recording).hex()
        if digest not in good:
            load_recording(recording)
        return digest, None
    except RecordingError as error:
        return "", str(error)


def _remembered(memory: Path) -> set[str]:
    return {line for file in memory.glob("good-*.txt") for line in file.read_text().split()}


def _remember(file: Path, digests: set[str]) -> None:
    if not digests:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a") as lines:
            lines.write("".join(f"{digest}\n" for digest in sorted(digests)))
    except OSError:  # a cache that cannot be written may still be read
        pass
