"""Emotional speech corpora as one table: audio, label, speaker, corpus, language, text; see `load_corpus`.

Corpora read as their authors ship them are declared in catalogue.py; anybody's recordings (class
folders, a manifest) are read by manifests.py, Hub datasets by hub.py; emotions.py says what counts
as which class.
"""

import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from modeling_edrl_mea.recordings import AUDIO_EXTENSIONS, find_audio

from .audformat import HEADER
from .catalogue import CORPORA, Corpus
from .emotions import SCHEMES, LabelError, canonical_emotion, check_scheme, label_under_scheme
from .given_splits import is_split
from .hub import is_streamed, read_hub
from .manifests import METADATA_FILES, label_depth, read_generic, tables_of
from .recordings import NO_LABEL, UNKNOWN_SPEAKER, CorpusError, Utterance, Wanted, first_files, listed, speaker_key
from .segments import cut_segments

logger = logging.getLogger(__name__)


def load_corpus(
    source: str | os.PathLike,
    *,
    label_scheme: str = "native",
    corpus: str | None = None,
    audio_column: str = "audio",
    label_column: str | None = None,
    speaker_column: str | None = None,
    split: str | None = None,
    min_class_size: int = 2,
    config_name: str | None = None,
    revision: str | None = None,
    skip_missing: bool = False,
    attributes: Sequence[str] = (),
    emotions: bool = True,
    soft_labels: bool = False,
) -> Dataset:
    """Reads a corpus into columns audio, label (ClassLabel), speaker, corpus, language, text, split.

    Audio is a path; a Hub dataset's recordings, and parts of longer ones (columns start, end), become files in
    `datasets`' cache, see hub.py and segments.py. `split` is the one that the corpus itself gives, or None. What is
    converted, dropped or guessed is logged.

    source: folder of a corpus in CORPORA as downloaded; folder of class folders, or with metadata.csv, also one a
        split; a CSV, TSV, JSON or JSONL manifest; an audformat database; the id of a Hub dataset, a Parquet file, or a
        folder of them or of `save_to_disk`. "name=path" also gives the corpus's name. What the user wrote (a name,
        metadata.csv, class folders) wins over what file names look like.
    label_scheme: "native" (the emotions there are, sorted), "four_emotions", "arousal" or "valence". Rows
        whose emotion lies outside the scheme are dropped, and counted in the log. Class ids follow
        emotions.SCHEMES.
    corpus: the corpus's name; without it, recognized from the files, then from the folder's name.
    audio_column, label_column, speaker_column: for manifests and Hub datasets; usual names are found alone.
    split: an official split alone (of MELD, MSP-Podcast, a Hub dataset, a table's column, or a sub-folder).
    min_class_size: fewest recordings a class may have; one alone is in training or in a test, not in both.
    config_name, revision: of a Hub dataset.
    skip_missing: leave out, with a warning, rows without a recording and recordings that are not there.
    attributes: what is rated (arousal …), a column more each, NaN where a recording is not. One that is rated is kept
        without an emotion too; its label is then -1.
    emotions: False: all labels are -1.
    soft_labels: a column more, shares: of emotions, as JSON, where a table's labels or the corpus' listeners give them.

    Raises CorpusError (nothing there, no labels, columns or files missing, a class too small) and LabelError
    (scheme or emotion unknown), both ValueError.
    """
    check_scheme(label_scheme)
    source, corpus = _name_and_path(str(source), corpus)
    declaration = _declaration_of(source, corpus)
    if declaration is not None:
        name = declaration.name
        utterances = _read_declared(declaration, Path(source), attributes, soft_labels)
    else:
        name = corpus or re.sub(r"\W+", "_", Path(source).stem if os.path.exists(source) else source.split("/")[-1])
        wanted = Wanted((audio_column, label_column, speaker_column), tuple(attributes), emotions, skip_missing)
        if is_streamed(source):
            utterances = read_hub(source, wanted, split, config_name, revision)
        else:
            utterances = read_generic(source, wanted)
    if not emotions:
        utterances = [replace(utterance, emotion=None, shares=None) for utterance in utterances]
    utterances = _of_split(utterances, split, source)
    utterances = _without_repeats(cut_segments(utterances, name, skip_missing), name)
    dataset = _as_dataset(utterances, name, source, label_scheme if emotions else None, min_class_size, attributes)
    if soft_labels:
        dataset = _with_shares(dataset, utterances, label_scheme)
    return dataset


def _of_split(utterances: list[Utterance], split: str | None, source: str) -> list[Utterance]:
    if split is None:
        return utterances
    found = [utterance for utterance in utterances if utterance.split and is_split(utterance.split, split)]
    if not found:
        names = ", ".join(dict.fromkeys(u.split for u in utterances if u.split))
        has = f"its splits are {names}" if names else "it has no official splits"
        raise CorpusError(f"split {split!r} of {source!r}: {has}; leave split out to split by speaker")
    return found


def _without_repeats(utterances: list[Utterance], name: str) -> list[Utterance]:
    """Each file once in each split. Raises CorpusError where one has two emotions."""
    known: dict[tuple, Utterance] = {}
    emotions: dict[str, Utterance] = {}
    for utterance in utterances:
        known.setdefault((utterance.audio, utterance.split), utterance)
        other = emotions.setdefault(utterance.audio, utterance)
        if other.emotion != utterance.emotion:
            raise CorpusError(
                f"{name}: {utterance.audio} is listed as {other.emotion} and as {utterance.emotion}. Give each "
                "recording one row, e.g. by what most listeners said; give parts of a file columns start and end"
            )
    if len(known) < len(utterances):
        logger.info("%s: %d rows that repeat a recording left out", name, len(utterances) - len(known))
    return list(known.values())


def concatenate_corpora(parts: Iterable[Dataset]) -> Dataset:
    """One dataset of several corpora; classes that differ between them are united, sorted."""
    parts = list(parts)
    names = [part.features["label"].names for part in parts]
    if any(other != names[0] for other in names[1:]):
        union = ClassLabel(names=sorted(set().union(*names)))
        parts = [_relabel(part, union) for part in parts]
    return concatenate_datasets(parts)


def _name_and_path(source: str, corpus: str | None) -> tuple[str, str | None]:
    name, equals, path = source.partition("=")
    if equals and re.fullmatch(r"[\w-]+", name) and not os.path.exists(source):
        return os.path.expanduser(path), corpus or name
    return os.path.expanduser(source), corpus


def _declaration_of(source: str, corpus: str | None) -> Corpus | None:
    """The declared corpus a source is, by the name given, its files or its folder's name; or None."""
    if corpus is not None:
        return None if os.path.isfile(source) or is_streamed(source) else CORPORA.get(_plain(corpus))
    folder = Path(source)
    if not folder.is_dir() or (folder / HEADER).exists() or any((folder / name).exists() for name in METADATA_FILES):
        return None
    for declared in CORPORA.values():
        if declared.marker and any(folder.glob(declared.marker)):
            return declared
    paths = [_path_with_root(folder, path) for path in find_audio(folder)]
    patterned = [declared for declared in CORPORA.values() if declared.pattern]
    counts = {declared.name: sum(declared.match(path) is not None for path in paths) for declared in patterned}
    best = max(counts, key=counts.get)
    named = _plain(folder.resolve().name)
    if counts.get(named):
        best = named
    if not counts[best] or (best != named and counts[best] < 0.9 * len(paths)):
        return None
    if tables_of(folder) or _folders_say_otherwise(CORPORA[best], folder, paths):
        logger.info("%s: file names look like %s's; tables and folders win over them", folder.name, best)
        return None
    logger.info("%s: recognized by its file names as %s, which give emotions and speakers", folder.name, best)
    return CORPORA[best]


def _folders_say_otherwise(declared: Corpus, folder: Path, paths: list[Path]) -> bool:
    """Whether folders name emotions, and not those that file names do."""
    parents = [path.parts[1:-1] for path in paths]
    depth = label_depth(parents) if all(parents) else None
    if depth is None or not any(canonical_emotion(parts[depth]) for parts in parents):
        return False
    matches = [(declared.match(path), parts[depth]) for path, parts in zip(paths, parents, strict=True)]
    codes = {code.lower(): emotion for code, emotion in declared.labels.items()}
    return any(match is None or codes[match["emotion"].lower()] != canonical_emotion(name) for match, name in matches)


def _plain(name: str) -> str:
    return re.sub(r"\W|_", "", name.lower())


def _path_with_root(folder: Path, path: Path) -> Path:
    return folder.resolve().name / path.relative_to(folder)


def _read_declared(declared: Corpus, folder: Path, attributes: Sequence[str], soft_labels: bool) -> list[Utterance]:
    if declared.read is not None:
        if not folder.is_dir():
            raise CorpusError(f"folder {str(folder)!r} does not exist; give the path the corpus was unpacked to")
        found = declared.read(folder)
    else:
        found = _read_file_names(declared, folder)
    codes = {code.lower(): emotion for code, emotion in declared.labels.items()}
    strange = sorted({utterance.emotion for utterance in found if utterance.emotion.lower() not in codes})
    if strange:
        raise LabelError(
            f"{declared.name} in {str(folder)!r} has unknown labels {strange}; known: {list(declared.labels)}"
        )
    found = [replace(u, emotion=codes[u.emotion.lower()], language=u.language or declared.language) for u in found]
    kept = [u for u in found if u.emotion is not None or u.ratings.keys() & set(attributes)]
    if len(kept) < len(found):
        logger.info("%s: %d recordings without an agreed emotion left out", declared.name, len(found) - len(kept))
    shares = declared.read_shares(folder) if soft_labels and declared.read_shares else {}
    return [replace(u, shares=shares.get(Path(u.audio).stem)) for u in kept]


def _read_file_names(declared: Corpus, folder: Path) -> list[Utterance]:
    if not folder.is_dir():
        raise CorpusError(f"folder {str(folder)!r} does not exist; give the path the corpus was unpacked to")
    files = find_audio(folder)
    utterances, seen = [], set()
    for path in files:
        match = declared.match(_path_with_root(folder, path))
        # Archives repeat files, in a second folder (RAVDESS and TESS on Kaggle) or format (CREMA-D's MP3).
        if match is None or match[0].strip("/").lower() in seen:
            continue
        seen.add(match[0].strip("/").lower())
        groups = match.groupdict()
        text = declared.text(groups.get("text"))
        utterances.append(Utterance(str(path), groups["emotion"], groups["speaker"], None, text))
    if not utterances:
        raise CorpusError(
            f"no recording of {declared.name} in {str(folder)!r}: expected names like /{declared.pattern}/ "
            f"with one of the extensions {' '.join(AUDIO_EXTENSIONS)}; {first_files(folder)}. "
            "Give another corpus name to read it as class folders or metadata.csv"
        )
    logger.info("%s: %d of %d audio files read", declared.name, len(utterances), len(files))
    return utterances


def _as_dataset(
    utterances: list[Utterance],
    name: str,
    source: str,
    label_scheme: str | None,
    min_class_size: int,
    attributes: Sequence[str],
) -> Dataset:
    """label_scheme: None where no emotions are wanted."""
    kept = _kept(utterances, name, source, label_scheme, attributes)
    _check_class_sizes(kept, name, min_class_size)
    names = list(SCHEMES.get(label_scheme, sorted({label for _, label in kept if label})))
    text = Value("string")
    features = Features(
        audio=text, label=ClassLabel(names=names), speaker=text, corpus=text, language=text, text=text, split=text
    )
    features |= {attribute: Value("float32") for attribute in attributes}
    utterances = [utterance for utterance, _ in kept]
    _check_names(utterances, name)
    columns = {
        "audio": [u.audio for u in utterances],
        "label": [names.index(label) if label else NO_LABEL for _, label in kept],
        "speaker": _speakers(utterances, name),
        "corpus": [name] * len(utterances),
        "language": [u.language for u in utterances],
        "text": [u.text for u in utterances],
        "split": [u.split for u in utterances],
        **{attribute: [u.ratings.get(attribute, math.nan) for u in utterances] for attribute in attributes},
    }
    return Dataset.from_dict(columns, features=Features(features))


def _kept(utterances: list[Utterance], name: str, source: str, label_scheme, attributes) -> list[tuple]:
    """(utterance, class or None) of those that have a class or a rating. Raises CorpusError where none has."""
    labels = [u.emotion and label_under_scheme(u.emotion, label_scheme) for u in utterances]
    _say_what_words_became(utterances, labels, name)
    kept, dropped = [], Counter()
    for utterance, label in zip(utterances, labels, strict=True):
        if label or utterance.ratings.keys() & set(attributes):
            kept.append((utterance, label))
        else:
            dropped[utterance.emotion] += 1
    what = f"under {label_scheme!r}" if label_scheme else f"with a rating of {', '.join(attributes)}"
    if not kept:
        raise CorpusError(f"{name} ({source}) has no recording {what}; it has {dict(dropped)}")
    n_unrated = dropped.pop(None, 0)
    if n_unrated:
        logger.info("%s: %d recordings without a rating left out", name, n_unrated)
    if dropped:
        logger.info("%s: %d recordings outside %s dropped: %s", name, dropped.total(), label_scheme, dict(dropped))
    return kept


def _with_shares(dataset: Dataset, utterances: list[Utterance], label_scheme: str) -> Dataset:
    """The dataset with a column of shares of its classes, as JSON; None where nobody says or none of them has any."""
    names, of_file = dataset.features["label"].names, {u.audio: u.shares for u in utterances}
    column = []
    for audio, label in zip(dataset["audio"], dataset["label"], strict=True):
        shares = Counter()
        for word, share in (of_file[audio] or {}).items() if label != NO_LABEL else ():
            known = label_scheme == "native" or canonical_emotion(word)
            shares[label_under_scheme(word, label_scheme) if known else None] += share
        shares = {name: shares[name] for name in names if shares[name] > 0}
        total = sum(shares.values())
        column.append(json.dumps({name: share / total for name, share in shares.items()}) if total else None)
    logger.info("%s: %d of %d recordings have shares of emotions", dataset["corpus"][0], *_counts(column))
    return dataset.add_column("shares", column, feature=Value("string"))


def _counts(column: list) -> tuple[int, int]:
    return len(column) - column.count(None), len(column)


def _say_what_words_became(utterances: list[Utterance], labels: list[str | None], name: str) -> None:
    known = [label for label in labels if label]
    if known and all(label.lstrip("-").isdigit() for label in known):
        logger.info("%s: emotions are numbers, and no table says their names: the model will answer in numbers", name)
    became = Counter((u.emotion, label) for u, label in zip(utterances, labels, strict=True) if label)
    changed = [f"{word} → {label} ({n})" for (word, label), n in became.items() if word != label]
    if changed:
        logger.info("%s: emotions read as: %s", name, ", ".join(changed))


def _check_names(utterances: list[Utterance], name: str) -> None:
    """A table of recordings holds text, which a file's name need not be."""
    strange = [ascii(u.audio) for u in utterances if not u.audio.isascii() and _is_no_text(u.audio)]
    if strange:
        raise CorpusError(
            f"{len(strange)} recordings of {name} have names that are no UTF-8:{listed(strange)}\nRename them, e.g. "
            "`convmv -r -f latin1 -t utf8 --notest FOLDER`."
        )


def _is_no_text(name: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def _check_class_sizes(kept: list[tuple[Utterance, str]], name: str, min_class_size: int) -> None:
    sizes = Counter(label for _, label in kept if label)
    for label, size in sizes.items():
        if size < min_class_size:
            only = next(u.audio for u, other in kept if other == label)
            raise CorpusError(
                f"class {label!r} of {name} has {size} recording{'s' * (size > 1)} ({only}), fewer than "
                f"{min_class_size}: add recordings, or take that class out"
            )


def _speakers(utterances: list[Utterance], name: str) -> list[str]:
    if any(u.speaker is None for u in utterances):
        logger.warning(
            "%s says of some recordings not who speaks: each counts as its own speaker, "
            "and a speaker-independent split is impossible",
            name,
        )
    speakers, written = [], {}
    for utterance in utterances:
        speaker = utterance.speaker and written.setdefault(speaker_key(utterance.speaker), utterance.speaker.strip())
        if speaker is None:
            speaker = f"{UNKNOWN_SPEAKER}{utterance.audio}"
        speakers.append(speaker if speaker.startswith(f"{name}_") else f"{name}_{speaker}")
    merged = {u.speaker for u in utterances if u.speaker} - set(written.values())
    if merged:
        logger.info("%s: speakers that differ in case or spaces taken for one: %s", name, ", ".join(sorted(merged)))
    return speakers


def _relabel(dataset: Dataset, union: ClassLabel) -> Dataset:
    ids = [union.str2int(label) for label in dataset.features["label"].names]
    column = [NO_LABEL if label == NO_LABEL else ids[label] for label in dataset["label"]]
    return (
        dataset.remove_columns("label").add_column("label", column, feature=union).select_columns(dataset.column_names)
    )
