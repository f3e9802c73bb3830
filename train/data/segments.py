"""Parts of longer recordings, cut into files of their own, so that everything else meets whole files only.

They lie below `datasets`' cache, named by their source's content, start and end: cut once, and found again whenever the
corpus is read. Sixteen-bit sources stay bit-exact; what a lossy codec decodes to is kept in 24 bits.
"""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import soundfile

from modeling_edrl_mea import RecordingError, load_recording
from modeling_edrl_mea.recordings import SAMPLING_RATE

from .files import atomic_write, content_hash
from .recordings import CorpusError, Utterance, listed, recordings_folder

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
