"""Recordings on disk before their labels are put under a scheme: what every corpus reader gives and uses."""

import codecs
import contextlib
import csv
import io
import logging
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import datasets.config
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from modeling_edrl_mea import RecordingError, load_recording

from .files import content_hash

logger = logging.getLogger(__name__)

# Where nothing says who speaks, each recording counts as its own speaker under this mark; splits refuse it.
UNKNOWN_SPEAKER = "file:"
NO_LABEL = -1  # of a recording without an emotion, as `datasets` has it
NOTHING = ("", "nan", "none", "null", "<na>", "n/a")  # what tables write where nothing is known
MAX_LISTED = 20  # bad recordings named in one message


class CorpusError(ValueError):
    """A corpus that is missing, empty or incomplete; the message names what, where and the remedy."""


@dataclass(frozen=True)
class Utterance:
    """One recording and its emotion, in any wording. `audio`: its path, or what to call it in messages.

    split: the one that the corpus's authors put it in, in their words. start, end: seconds, of a recording that is a
    part of its file; see segments.py. ratings: of attributes, on the corpus' scale; with some, the emotion may be None.
    shares: of emotions, among those who listened.
    """

    audio: str
    emotion: str | None
    speaker: str | None = None
    language: str | None = None
    text: str | None = None
    split: str | None = None
    start: float | None = None
    end: float | None = None
    ratings: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Wanted:
    """What is read of a table's or dataset's rows: columns of audio, label and speaker (None: by their usual names),
    what is rated, whether emotions, and whether rows without a recording are left out."""

    columns: tuple[str, str | None, str | None] = ("audio", None, None)
    attributes: tuple[str, ...] = ()
    emotions: bool = True
    skip_missing: bool = False


def column_key(name: str) -> str:
    """The same for "Speaker ID", "speaker_id" and "SpeakerID"."""
    return re.sub(r"[\W_]", "", name.lower())


def is_nothing(value) -> bool:
    """Whether a table's cell says that nothing is known: empty, or what NaN and None look like as text."""
    return value is None or (isinstance(value, (str, float)) and str(value).strip().lower() in NOTHING)


def speaker_key(name: str) -> str:
    """The same for "Anna", "anna" and "Anna "."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def recording_names(audio: Sequence) -> list[str]:
    """What tells recordings of a corpus apart, wherever it lies: their folder's and their own name, no extension."""
    paths = [part if isinstance(part, str) else part.get("path") or str(row) for row, part in enumerate(audio)]
    return ["/".join(Path(path).with_suffix("").parts[-2:]) for path in paths]


def first_files(folder: Path, count: int = 3) -> str:
    """The first few files under a folder, for messages."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return f"found {len(files)} files, such as {', '.join(files[:count])}" if files else "the folder has no files"


def listed(problems: Sequence[str]) -> str:
    """What is wrong with recordings, for messages: a line each, no more than MAX_LISTED."""
    return "".join(f"\n  {problem}" for problem in problems[:MAX_LISTED]) + "\n  …" * (len(problems) > MAX_LISTED)


def recordings_folder() -> Path:
    """Where recordings are kept that no corpus on the disk has as a file of its own: below `datasets`' cache."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "recordings"


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a header line, all of them text, so that 001 stays 001.

    Columns are separated by what the header has most of: comma, semicolon, tab or |. Lines that are not UTF-8 are read
    as Windows-1252 (Latin-1), one by one, as a few in MELD's tables are.
    """
    text = _decoded(path)
    header = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    delimiter = max(",;\t|", key=header.count)
    _check_header(header.split(delimiter), path)
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))
    crowded = next((number for number, row in enumerate(rows, start=1) if None in row), None)
    if crowded:
        raise CorpusError(f"{str(path)!r}: row {crowded} has more columns than the header: put quotes around text.")
    return [{(name or "").strip(): value for name, value in row.items()} for row in rows]


def _check_header(names: list[str], path: Path) -> None:
    plain = [name.strip().lower() for name in names if name.strip()]
    twice = {name for name in plain if plain.count(name) > 1}
    if twice:
        raise CorpusError(f"{str(path)!r} has two columns called {', '.join(sorted(twice))}: take one out.")


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
        return content.decode("utf-16")
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    decoded = [_line(line) for line in lines]
    strange = sum(not is_utf8 for _, is_utf8 in decoded)
    if strange:
        logger.info("%s: %d of %d lines are not UTF-8 and read as Windows-1252", path.name, strange, len(lines))
    return "\n".join(line for line, _ in decoded)


def _line(line: bytes) -> tuple[str, bool]:
    try:
        return line.decode("utf-8"), True
    except UnicodeDecodeError:
        return line.decode("cp1252", errors="replace"), False


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
    """Digests of recordings that decode; a damaged line is nobody's, and its recording is decoded again."""
    found: set[str] = set()
    for file in memory.glob("good-*.txt"):
        with contextlib.suppress(OSError):
            found |= set(file.read_text(encoding="ascii", errors="replace").split())
    return found


def _remember(file: Path, digests: set[str]) -> None:
    if not digests:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a") as lines:
            lines.write("".join(f"{digest}\n" for digest in sorted(digests)))
    except OSError:  # a cache that cannot be written may still be read
        pass
