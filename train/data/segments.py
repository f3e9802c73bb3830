"""Parts of longer recordings, cut into files of their own, so that everything else meets whole files only.

They lie below `datasets`' cache, named by their source's content, start and end: cut once, and found again whenever the
corpus is read. Sixteen-bit sources stay bit-exact; what a lossy codec decodes to is kept in 24 bits.
"""

import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import soundfile

from modeling_edrl_mea import RecordingError, load_recording
from modeling_edrl_mea.recordings import SAMPLING_RATE

from .files import atomic_write, content_hash
from .recordings import CorpusError, Utterance, column_key, listed, recordings_folder

logger = logging.getLogger(__name__)

TOLERANCE = 0.1  # seconds that a segment may reach beyond its file's end: tables round, codecs pad
_DAYS = re.compile(r"(?:(?P<days>\d+) days?,?\s*)?(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+(?:[.,]\d+)?)$")


def seconds_of(value, what: str = "time") -> float | None:
    """A time as tables have it: seconds, "00:01:02.5", audformat's "0 days 00:00:02.5"; None for nothing or NaT.

    Raises CorpusError.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    text = str(value).strip()
    if value is None or text.lower() in ("", "nat", "nan", "none"):
        return None
    found = _DAYS.match(text)
    if found:
        days, hours, minutes, seconds = (float((part or "0").replace(",", ".")) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise CorpusError(f'{what} {text!r}: write seconds (2.5), 00:00:02.5 or "0 days 00:00:02.5".') from None


# As tables call them: start, Start time, start_ms, begin, onset, xmin …
_TIMES = re.compile(
    r"(start|begin|onset|xmin|offset|end|stop|xmax|duration|dur)(time)?(in)?(s|secs?|seconds?|(ms|msecs?|millis(econds)?))?"
)


def find_times(names: list[str], where: str) -> tuple[str | None, ...]:
    """Names of the columns with start, end and duration of a part of a file; a duration counts with a start alone.

    An offset is a start, as in NeMo's manifests, or the end where there is an onset. CorpusError where one of the two
    is not found, since the wrong part of the file would be taken for the utterance.
    """
    found: dict[str, str] = {}
    for name in names:
        if time := _TIMES.fullmatch(column_key(name)):
            found.setdefault(time[1], name)
    start, end, duration = (next((found[word] for word in words if word in found), None) for words in _words(found))
    if not start and not end:
        return (None, None, None)
    if not start or not (end or duration):
        known, other = (end, "start") if end else (start, "end")
        raise CorpusError(f"{where} has the column {known!r} and none called {other}: give both, or neither")
    return start, end, None if end else duration


def _words(found: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """What a start, an end and a duration may be called in a table with these columns."""
    offset = ("offset",)
    starts, ends = ("start", "begin", "onset", "xmin"), ("end", "stop", "xmax")
    return starts + offset * ("onset" not in found), ends + offset * ("onset" in found), ("duration", "dur")


def times_of(row: Mapping, columns: tuple, where: str) -> tuple[float | None, float | None]:
    """(start, end) in seconds of a row's part of its file. Raises CorpusError."""
    start, end, duration = (_time_of(row, name, where) if name else None for name in columns)
    if end is None and duration is not None:
        end = (start or 0.0) + duration
    return start, end


def _time_of(row: Mapping, name: str, where: str) -> float | None:
    seconds = seconds_of(row.get(name), f"{where}, {name}")
    is_in_thousandths = _TIMES.fullmatch(column_key(name))[5]
    return seconds / 1000 if is_in_thousandths and seconds is not None else seconds


def cut_segments(utterances: list[Utterance], name: str, skip_bad: bool = False) -> list[Utterance]:
    """The utterances with a file each; those with a start or end are cut from theirs.

    skip_bad: leave out, with a warning, what cannot be cut, instead of raising CorpusError.
    """
    parts = [utterance for utterance in utterances if utterance.start or utterance.end is not None]
    if not parts:
        return utterances
    with ThreadPoolExecutor() as pool:
        cut = dict(zip(map(id, parts), pool.map(_try_to_cut, parts), strict=True))
    problems = [part for part in cut.values() if isinstance(part, str)]
    if problems and not skip_bad:
        raise CorpusError(f"{name}: {len(problems)} segments cannot be cut:{listed(problems)}")
    if problems:
        logger.warning("%s: %d segments that cannot be cut left out:%s", name, len(problems), listed(problems))
    sources = {part.audio for part in parts}
    logger.info("%s: %d segments cut from %d files by start and end", name, len(parts) - len(problems), len(sources))
    found = [cut.get(id(utterance), utterance) for utterance in utterances]
    return [utterance for utterance in found if not isinstance(utterance, str)]


def _try_to_cut(utterance: Utterance) -> Utterance | str:
    try:
        return replace(
            utterance, audio=_cut(utterance.audio, utterance.start or 0.0, utterance.end), start=None, end=None
        )
    except (RecordingError, soundfile.SoundFileError, OSError) as error:
        return str(error)


def _cut(source: str, start: float, end: float | None) -> str:
    if start < 0 or (end is not None and end <= start):
        raise RecordingError(f"{source}: a segment from {start} to {end} s; its end must lie after its start.")
    name = f"{Path(source).stem}_{start:.3f}-{'end' if end is None else f'{end:.3f}'}.flac"
    path = recordings_folder() / "segments" / content_hash(source).hex()[:32] / name
    seal = path.with_name(f"{name}.sha256")
    if path.exists() and seal.exists() and seal.read_bytes() == content_hash(path):
        return str(path)
    samples, rate, subtype, seconds = _part(source, start, end)
    if end is not None and end > seconds + TOLERANCE and abs(end - start - seconds) <= TOLERANCE:
        return source  # it is the segment, cut already
    if start >= seconds or (end is not None and end > seconds + TOLERANCE):
        raise RecordingError(f"{source}: a segment from {start} to {end} s of {seconds:.2f} s; correct its times.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        soundfile.write(temporary, samples, rate, format="FLAC", subtype=subtype)
    with atomic_write(seal) as temporary:
        temporary.write_bytes(content_hash(path))
    return str(path)


def _part(source: str, start: float, end: float | None):
    """(samples from start to end, Hz, how to store them, the file's seconds)."""
    try:
        with soundfile.SoundFile(source) as file:
            is_pcm = file.subtype == "PCM_16"
            first, last = (min(round(at * file.samplerate), file.frames) for at in (start, end or float(file.frames)))
            file.seek(first)
            samples = file.read(max(last - first, 0), dtype="int16" if is_pcm else "float64")
            return samples, file.samplerate, "PCM_16" if is_pcm else "PCM_24", file.frames / file.samplerate
    except soundfile.SoundFileError:  # a format that others may read
        samples = load_recording(source)
        first, last = (round(at * SAMPLING_RATE) for at in (start, end or len(samples)))
        return samples[first:last], SAMPLING_RATE, "PCM_24", len(samples) / SAMPLING_RATE
