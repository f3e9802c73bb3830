"""Recordings and speakers that are in training and in a test: results would be too good."""

import re
from collections.abc import Iterable, Sequence

from datasets import Dataset

from .catalogue import CORPORA
from .files import content_hash
from .recordings import UNKNOWN_SPEAKER, speaker_key

LISTED = 5  # examples in one message
# What many corpora call different people: F1, 003, speaker_7, Actor 12, woman.
CODE = (
    r"(speaker|spk|spkr|actor|actress|subject|participant|user|person|male|female|man|woman|id|unknown)?\W*_?\w{0,2}\d*"
)


def speaker_identities(dataset: Dataset) -> list[str | None]:
    """Who speaks in each row, so that the same people in two datasets are the same: by name in any case and spaces,
    across corpora too where it is a name and no code such as F1 or 003. None where nobody says."""
    return [
        None if UNKNOWN_SPEAKER in speaker else _identity(speaker, corpus)
        for speaker, corpus in zip(dataset["speaker"], dataset["corpus"], strict=True)
    ]


def _identity(speaker: str, corpus: str) -> str:
    name = speaker_key(speaker.removeprefix(f"{corpus}_"))
    is_name = corpus not in CORPORA and not re.fullmatch(CODE, name)
    return name if is_name else f"{corpus}/{name}"


def shared_rows(dataset: Dataset, others: Sequence[Dataset], speakers: bool = True) -> dict[int, str]:
    """Rows of a dataset that others have too, and why: the same content, or (`speakers`) the same speaker, by name or
    because some recording of theirs is the same."""
    heard, known = set(), set()
    for other in others:
        heard.update(map(content_hash, other["audio"]))
        known.update(speaker_identities(other))
    hashes, who = list(map(content_hash, dataset["audio"])), speaker_identities(dataset)
    same_voice = {speaker for speaker, digest in zip(who, hashes, strict=True) if digest in heard}
    known = (known | same_voice) - {None} if speakers else set()
    found = {}
    for row, (digest, speaker) in enumerate(zip(hashes, who, strict=True)):
        if digest in heard:
            found[row] = "the same recording"
        elif speaker in known:
            found[row] = f"speaker {dataset[row]['speaker']}"
    return found


def without(dataset: Dataset, rows: Iterable[int]) -> Dataset:
    rows = set(rows)
    return dataset.select([row for row in range(len(dataset)) if row not in rows]) if rows else dataset


def described(dataset: Dataset, found: dict[int, str]) -> str:
    """What is shared, for messages: counts and examples."""
    same = [str(dataset[row]["audio"]) for row, why in found.items() if why == "the same recording"]
    people = list(dict.fromkeys(why for why in found.values() if why != "the same recording"))
    parts = [f"{len(same)} recordings are the same, such as {same[0]}"] if same else []
    parts += [f"{', '.join(people[:LISTED])}{' …' * (len(people) > LISTED)}"] if people else []
    return f"{len(found)} of {len(dataset)} recordings: " + "; ".join(parts)
