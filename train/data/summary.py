"""What was read, before anything is trained on it: corpora, classes, speakers, splits, hours, and what was done."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import soundfile
from datasets import Dataset

from modeling_edrl_mea.recordings import SAMPLING_RATE

from .ratings import attributes_of
from .recordings import UNKNOWN_SPEAKER


class _Notes(logging.Handler):
    def __init__(self):
        super().__init__(logging.INFO)
        self.notes: list[str] = []

    def emit(self, record):
        self.notes.append(record.getMessage())


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """What the readers of corpora log meanwhile: what they convert, drop and guess."""
    logger, handler = logging.getLogger("train.data"), _Notes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.notes
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def summary_of(parts: Mapping[str, Dataset], notes: list[str]) -> dict:
    """JSON-able: by part ("train", "validation", "test", another corpus) its corpora, recordings, hours, speakers (None
    where nobody says), classes and sampling rates; and the notes."""
    return {"parts": {name: _part(dataset) for name, dataset in parts.items()}, "notes": list(dict.fromkeys(notes))}


def _part(dataset: Dataset) -> dict:
    names = dataset.features["label"].names
    seconds, rates, channels = _sound(dataset["audio"])
    speakers = set(dataset["speaker"])
    counts = Counter(dataset["label"])
    return {
        "corpora": dict(Counter(dataset["corpus"])),
        "recordings": len(dataset),
        "hours": round(seconds / 3600, 3),
        "speakers": None if any(UNKNOWN_SPEAKER in speaker for speaker in speakers) else len(speakers),
        "classes": {name: counts[place] for place, name in enumerate(names)},
        "rated": {name: sum(not math.isnan(rating) for rating in dataset[name]) for name in attributes_of(dataset)},
        "sampling_rates": {str(rate): n for rate, n in sorted(rates.items())},
        "mixed_to_mono": sum(n for count, n in channels.items() if count > 1),
    }


def _sound(audio) -> tuple[float, Counter, Counter]:
    seconds, rates, channels = 0.0, Counter(), Counter()
    for recording in audio:
        try:
            about = soundfile.info(recording)
        except (soundfile.SoundFileError, TypeError):  # what others decode says nothing here
            continue
        seconds += about.frames / about.samplerate
        rates[about.samplerate] += 1
        channels[about.channels] += 1
    return seconds, rates, channels


def as_text(summary: Mapping) -> str:
    """The summary for people, as a Markdown table and a list."""
    head = ["part", "corpora", "recordings", "hours", "speakers", "classes"]
    lines = [_line(name, part) for name, part in summary["parts"].items()]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))
    notes = [*_conversions(list(summary["parts"].values())), *summary["notes"]]
    return table + ("\n\n" + "\n".join(f"- {note}" for note in notes) if notes else "")


def _line(name: str, part: Mapping) -> list[str]:
    counts = [*part["classes"].items(), *((f"rated {name}", n) for name, n in part.get("rated", {}).items())]
    classes = ", ".join(f"{label} {count}" for label, count in counts if count)
    speakers = "unknown" if part["speakers"] is None else str(part["speakers"])
    corpora = " + ".join(part["corpora"])
    return [name, corpora, str(part["recordings"]), f"{part['hours']:.2f}", speakers, classes]


def _conversions(parts) -> list[str]:
    rates: Counter = Counter()
    for part in parts:
        rates.update(part["sampling_rates"])
    mono = sum(part["mixed_to_mono"] for part in parts)
    others = {rate: n for rate, n in rates.items() if int(rate) != SAMPLING_RATE}
    said = ", ".join(f"{n} of {rate} Hz" for rate, n in others.items())
    notes = [f"resampled to {SAMPLING_RATE} Hz as they are read: {said}"] if others else []
    return notes + ([f"{mono} recordings of several channels mixed to mono"] if mono else [])
