"""Recordings and speakers that are in training and in a test: results would be too good."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from datasets import Dataset

from .catalogue import CORPORA
from .files import content_hash
from .recordings import NO_LABEL, UNKNOWN_SPEAKER, CorpusError, speaker_key

LISTED = 5  # examples in one message
HEARD = 8  # recordings of each speaker by which a model's report knows the speaker again
# What many corpora call different people: F1, 003, speaker_7, Actor 12, woman.
CODE = (
    r"(speaker|spk|spkr|actor|actress|subject|participant|user|person|male|female|man|woman|id|unknown)?\W*_?\w{0,2}\d*"
)


def speaker_identities(dataset: Dataset) -> list[str | None]:
    """Who speaks in each row, so that the same people in two datasets are the same: by name in any case and spaces,
    across corpora too where it is a name and no code such as F1 or 003. None where nobody says."""
    return [
        None if UNKNOWN_SPEAKER in speaker else speaker_identity(speaker, corpus)
        for speaker, corpus in zip(dataset["speaker"], dataset["corpus"], strict=True)
    ]


def speaker_identity(speaker: str, corpus: str) -> str:
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


# --- within one dataset ---


def copies_in(dataset: Dataset, name: str) -> list[list[int]]:
    """Rows of the same content, where there are several. CorpusError where they have different emotions."""
    rows = defaultdict(list)
    for row, recording in enumerate(dataset["audio"]):
        rows[content_hash(recording)].append(row)
    copies = [same for same in rows.values() if len(same) > 1]
    labels, names = dataset["label"], dataset.features["label"].names
    for same in copies:
        emotions = list(dict.fromkeys(names[labels[row]] for row in same if labels[row] != NO_LABEL))
        if len(emotions) > 1:
            files = " and ".join(dict.fromkeys(str(dataset[row]["audio"]) for row in same))
            raise CorpusError(
                f"{name}: {files} are the same recording, and listed as {' and as '.join(emotions)}. Take all but the "
                "right one out"
            )
    return copies


def one_voice_a_speaker(dataset: Dataset, name: str, drop: bool, notes: list[str]) -> Dataset:
    """The dataset, in which no recording is two speakers': they would be the same voice in training and test folds.

    drop: speakers who share a recording become one, and its copies are left out, which `notes` say. Raises CorpusError
    otherwise, and where copies have different emotions.
    """
    copies, speakers = copies_in(dataset, name), list(dataset["speaker"])
    between = [same for same in copies if len({speakers[row] for row in same}) > 1]
    repeated = sum(len(same) - 1 for same in copies)
    if repeated and not between:
        notes.append(f"{name}: {repeated} recordings are copies of others of the same speaker")
    if not between:
        return dataset
    examples = "; ".join(" = ".join(str(dataset[row]["audio"]) for row in same) for same in between[:LISTED])
    what = f"{len(between)} recordings are there under several speakers: {examples}"
    if not drop:
        raise CorpusError(
            f"{name}: {what}. Correct the speakers, or take them for one and leave copies out by --on_leak drop"
        )
    first = _first_names(speakers, between)
    notes.append(f"{name}: {what}; copies dropped, and their speakers taken for one")
    names = [first.get(speaker, speaker) for speaker in speakers]
    renamed = dataset.remove_columns("speaker").add_column("speaker", names, feature=dataset.features["speaker"])
    extra = {row for same in copies for row in same[1:]}
    return without(renamed.select_columns(dataset.column_names), extra)


def _first_names(speakers: Sequence[str], between: Iterable[Sequence[int]]) -> dict[str, str]:
    """The name that each speaker has who shares a recording with another: that of the first among them all."""
    first: dict[str, str] = {}
    for same in between:
        known = {speakers[row] for row in same} | {first[speakers[row]] for row in same if speakers[row] in first}
        known |= {speaker for speaker, name in first.items() if name in known}
        name = min(known, key=speakers.index)
        first |= dict.fromkeys(known, name)
    return first


# --- what a finished model was trained on ---


def heard_recordings(*datasets: Dataset) -> list[str]:
    """16 hexadecimal digits of some recordings of each speaker, by which they are known again in another corpus."""
    of_speaker = defaultdict(set)
    for dataset in datasets:
        for recording, speaker in zip(dataset["audio"], dataset["speaker"], strict=True):
            of_speaker[speaker].add(short_hash(recording))
    return sorted({digest for digests in of_speaker.values() for digest in sorted(digests)[:HEARD]})


def short_hash(recording) -> str:
    return content_hash(recording).hex()[:16]
