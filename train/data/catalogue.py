"""The corpora read as their authors ship them, one declaration each at the end of this file.

To add a corpus, declare it there: its pattern of file names, or a reader of its metadata.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from modeling_edrl_mea.recordings import find_audio

from .recordings import CorpusError, Utterance, first_files, read_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """How to read one corpus as its authors ship it.

    Either `pattern`, a regular expression for the end of a file's path without extension, with the groups
    `emotion`, `speaker` and optionally `text`; or `read`, called with the corpus's folder, and returning utterances
    whose emotions are the corpus's own codes and whose splits are its official ones. `labels` maps those
    codes to emotion names, None meaning that the recording has no usable label. `licence` is the Hub's
    identifier ("other": its own terms, or on request; see the home page). `scale`: the ends of the one that its
    attributes are rated on. `read_shares` gives the shares of emotions among the listeners by the audio file's stem.
    """

    name: str
    title: str  # as its authors write it
    homepage: str
    licence: str
    language: str
    labels: dict[str, str | None]
    pattern: str | None = None
    texts: dict[str, str] = field(default_factory=dict)  # what the text code stands for
    carrier: str | None = None  # for corpora whose text code is the word itself
    read: Callable[[Path], list[Utterance]] | None = None
    marker: str | None = None  # a file or folder (glob) that tells a corpus with a `read` by its layout
    splits: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None
    read_shares: Callable[[Path], dict[str, dict[str, float]]] | None = None
    session: str | None = None  # matches the start of speakers' names that those share who were recorded together

    def text(self, code: str | None) -> str | None:
        """The words behind a file name's text code, where they are known."""
        if code and self.carrier:
            return self.carrier.format(code)
        return self.texts.get((code or "").lower())

    def match(self, path: Path) -> re.Match | None:
        """The pattern's match on an audio file's path, extension aside; None for another corpus's file."""
        found = re.search(rf"(?:^|/)(?:{self.pattern})$", path.with_suffix("").as_posix(), re.IGNORECASE)
        return found if found and found["emotion"].lower() in map(str.lower, self.labels) else None


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in files:
        stems.setdefault(path.stem, path)
    return stems


def _complain_of_missing(name: str, folder: Path, found: list, missing: list[str], hint: str = "") -> None:
    if not found and not missing:
        raise CorpusError(f"{name} in {str(folder)!r} lists no recording; {first_files(folder)}")
    if not found:
        raise CorpusError(
            f"none of the {len(missing)} labeled recordings of {name} is in {str(folder)!r}: "
            f"first {missing[0]}; {first_files(folder)}{hint}"
        )
    if missing:
        logger.warning("%s: %d labeled recordings have no audio file, such as %s", name, len(missing), missing[0])


def _read_iemocap(folder: Path) -> list[Utterance]:
    """Session*/dialog/EmoEvaluation/*.txt: "[start - end] TAB turn TAB emotion TAB [V, A, D]" per turn."""
    audio = _by_stem(path for path in find_audio(folder) if "sentences" in path.parts)
    turn = re.compile(r"^\[[\d. -]+\]\t(Ses\d\d\w+_([FM])\d+)\t(\w+)\t(?:\[([\d., ]+)\])?", re.MULTILINE)
    spoken = re.compile(r"^(Ses\d\d\w+) \[[\d. -]+\]: ?(.*)$", re.MULTILINE)
    found, missing = [], []
    for table in sorted(folder.glob("Session*/dialog/EmoEvaluation/Ses*.txt")):
        transcript = table.parents[1] / "transcriptions" / table.name
        texts = dict(spoken.findall(transcript.read_text(errors="replace"))) if transcript.is_file() else {}
        for name, gender, emotion, ratings in turn.findall(table.read_text(errors="replace")):
            if name not in audio:
                missing.append(name)
                continue
            # The file's first F/M says who wore the markers, the one before the number says who speaks.
            values = map(float, ratings.split(",")) if ratings else ()
            rated = dict(zip(("valence", "arousal", "dominance"), values, strict=False))
            about = {"text": texts.get(name), "ratings": rated}
            found.append(Utterance(str(audio[name]), emotion, f"{name[:5]}{gender}", **about))
    _complain_of_missing("iemocap", folder, found, missing)
    return found


def _read_msp_podcast(folder: Path) -> list[Utterance]:
    """Labels/labels_consensus.csv (FileName, EmoClass, EmoAct, EmoVal, EmoDom, SpkrID, Split_Set) and the audio
    anywhere below."""
    columns = {"arousal": "EmoAct", "valence": "EmoVal", "dominance": "EmoDom"}
    rows = read_table(folder / "Labels" / "labels_consensus.csv")
    audio = _by_stem(find_audio(folder))
    stems = [Path(row["FileName"]).stem for row in rows]
    # Its "Unknown" speakers stay one group: they may be anybody, so they must not fall on both sides.
    found = [
        Utterance(
            str(audio[stem]),
            row["EmoClass"],
            row["SpkrID"],
            split=row["Split_Set"],
            ratings={name: float(row[column]) for name, column in columns.items() if row.get(column)},
        )
        for stem, row in zip(stems, rows, strict=True)
        if stem in audio
    ]
    _complain_of_missing("msppodcast", folder, found, [stem for stem in stems if stem not in audio])
    return found


def _shares_of_msp_podcast(folder: Path) -> dict[str, dict[str, float]]:
    """Labels/labels_detailed.csv: a row a listener, with EmoClass_Major, or (releases 1.8 to 1.11) EmoDetail "WORKER;
    Neutral; …"."""
    votes: dict[str, Counter] = {}
    for row in read_table(folder / "Labels" / "labels_detailed.csv"):
        word = row.get("EmoClass_Major") or (row.get("EmoDetail") or ";").split(";")[1]
        votes.setdefault(Path(row["FileName"]).stem, Counter())[word.strip()] += 1
    return votes


def _read_meld(folder: Path) -> list[Utterance]:
    """{train,dev,test}_sent_emo.csv; audio dia<D>_utt<U> in folders whose names contain train, dev, test."""
    files = find_audio(folder)
    found, missing = [], []
    for part in ("train", "dev", "test"):
        tables = sorted(folder.rglob(f"{part}_sent_emo.csv"))
        if not tables:
            continue
        # Dialogue numbers start again in each split, so the split's folder is part of the name.
        audio = _by_stem(f for f in files if any(part in name for name in f.relative_to(folder).parts[:-1]))
        for row in read_table(tables[0]):
            stem = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            if stem in audio:
                found.append(Utterance(str(audio[stem]), row["Emotion"], row["Speaker"], None, row["Utterance"], part))
            else:
                missing.append(f"{part}/{stem}")
    video = '. MELD ships video: for f in *.mp4; do ffmpeg -i "$f" -ac 1 -ar 16000 "${f%.mp4}.wav"; done'
    _complain_of_missing("meld", folder, found, missing, video)
    return found


def _read_kett(folder: Path) -> list[Utterance]:
    """{emotional,plain}-to-emotional/SPEAKER/SPEAKERnnnnn: each hundred of a speaker's numbers is one emotion."""
    found = []
    for path in sorted(find_audio(folder)):
        name = re.fullmatch(r"([en][a-z]{2})(\d{5})", path.stem)
        if name and path.parts[-3].endswith("-to-emotional"):
            found.append(Utterance(str(path), str((int(name[2]) - 1) // 100), name[1]))
    _complain_of_missing("kett", folder, found, [])
    return found


def _labels(codes: str) -> dict[str, str | None]:
    """ "A=anger X=" as `Corpus.labels`: of X the listeners did not agree."""
    return {code: emotion or None for code, _, emotion in (pair.partition("=") for pair in codes.split())}


_DECLARATIONS = (
    Corpus(
        name="emodb",
        title="EMO-DB",
        homepage="http://emodb.bilderbar.info",
        licence="cc0-1.0",
        language="de",
        pattern=r"(?P<speaker>\d\d)(?P<text>[ab]\d\d)(?P<emotion>[WLEAFTN])[a-z]",
        labels=_labels("W=anger L=boredom E=disgust A=fear F=happiness T=sadness N=neutral"),
        texts={
            "a01": "Der Lappen liegt auf dem Eisschrank.",
            "a02": "Das will sie am Mittwoch abgeben.",
            "a04": "Heute abend könnte ich es ihm sagen.",
            "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
            "a07": "In sieben Stunden wird es soweit sein.",
            "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
            "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
            "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
            "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
            "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
        },
    ),
    Corpus(
        name="ravdess",
        title="RAVDESS",
        homepage="https://zenodo.org/records/1188976",
        licence="cc-by-nc-sa-4.0",
        language="en",
        # modality 03 (audio only), channel 01 (speech; song, 02, is left out), emotion, intensity, text,
        # repetition, actor
        pattern=r"03-01-(?P<emotion>\d\d)-\d\d-(?P<text>\d\d)-\d\d-(?P<speaker>\d\d)",
        labels=_labels("01=neutral 02=calm 03=happiness 04=sadness 05=anger 06=fear 07=disgust 08=surprise"),
        texts={"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."},
    ),
    Corpus(
        name="cremad",
        title="CREMA-D",
        homepage="https://github.com/CheyneyComputerScience/CREMA-D",
        licence="odbl",
        language="en",
        pattern=r"(?P<speaker>\d{4})_(?P<text>[A-Z]{3})_(?P<emotion>[A-Z]{3})_[A-Z]+",
        labels=_labels("ANG=anger DIS=disgust FEA=fear HAP=happiness NEU=neutral SAD=sadness"),
        texts={
            "ieo": "It's eleven o'clock.",
            "tie": "That is exactly what happened.",
            "iom": "I'm on my way to the meeting.",
            "iww": "I wonder what this is about.",
            "tai": "The airplane is almost full.",
            "mti": "Maybe tomorrow it will be cold.",
            "iwl": "I would like a new alarm clock.",
            "ith": "I think I have a doctor's appointment.",
            "dfa": "Don't forget a jacket.",
            "its": "I think I've seen this before.",
            "tsi": "The surface is slick.",
            "wsi": "We'll stop in a couple of minutes.",
        },
    ),
    Corpus(
        name="tess",
        title="TESS",
        homepage="https://doi.org/10.5683/SP2/E8H2MF",
        licence="cc-by-nc-nd-4.0",
        language="en",
        # One file of the original is called OA_… instead of OAF_….
        pattern=r"(?P<speaker>OA|YA)F?_(?P<text>[a-z]+)_(?P<emotion>angry|disgust|fear|happy|neutral|ps|sad)",
        labels=_labels("angry=anger disgust=disgust fear=fear happy=happiness neutral=neutral ps=surprise sad=sadness"),
        carrier="Say the word {}.",
    ),
    Corpus(
        name="savee",
        title="SAVEE",
        homepage="http://kahlan.eps.surrey.ac.uk/savee/",
        licence="other",
        language="en",
        pattern=r"(?P<speaker>DC|JE|JK|KL)[/_](?P<emotion>sa|su|a|d|f|h|n)\d\d",
        labels=_labels("a=anger d=disgust f=fear h=happiness n=neutral sa=sadness su=surprise"),
    ),
    Corpus(
        name="emovo",
        title="EMOVO",
        homepage="http://voice.fub.it/activities/corpora/emovo/index.html",
        licence="other",
        language="it",
        pattern=r"(?P<emotion>[a-z]{3})-(?P<speaker>[mf]\d)-(?P<text>[a-z]\d)",
        labels=_labels("rab=anger dis=disgust pau=fear gio=happiness neu=neutral tri=sadness sor=surprise"),
    ),
    Corpus(
        name="nemo",
        title="nEMO",
        homepage="https://github.com/amu-cai/nEMO",
        licence="cc-by-nc-sa-4.0",
        language="pl",
        pattern=r"(?P<speaker>[A-Z]{2}\d)_(?P<emotion>[a-z]+)_(?P<text>\d+)",
        labels=_labels("anger=anger fear=fear happiness=happiness neutral=neutral sadness=sadness surprised=surprise"),
    ),
    Corpus(
        name="ased",
        title="ASED",
        homepage="https://github.com/Ethio2021/ASED_V1",
        licence="other",
        language="am",
        pattern=r"(?P<emotion>[a-z]\d)-\d\d-\d\d-\d\d-(?P<speaker>\d\d)",
        labels={"n1": "neutral", "f2": "fear", "h3": "happiness", "s4": "sadness", "a5": "anger"},
    ),
    Corpus(
        name="kett",
        title="Korean Emotion TTS",
        homepage="https://github.com/emotiontts/emotiontts_open_db",
        licence="cc-by-nc-sa-4.0",
        language="ko",
        read=_read_kett,
        marker="*-to-emotional",
        # Its own README swaps anger and sadness: what is read and the pitch say so.
        labels={"0": "neutral", "1": "happiness", "2": "sadness", "3": "anger"},
    ),
    Corpus(
        name="iemocap",
        title="IEMOCAP",
        homepage="https://sail.usc.edu/iemocap/",
        licence="other",
        language="en",
        read=_read_iemocap,
        marker="Session*/dialog/EmoEvaluation",
        scale=(1, 5),
        session=r"Ses\d\d",  # two people who talk with one another
        labels=_labels(
            "ang=anger dis=disgust exc=excitement fea=fear fru=frustration hap=happiness neu=neutral sad=sadness "
            "sur=surprise oth=other xxx="
        ),
    ),
    Corpus(
        name="msppodcast",
        title="MSP-Podcast",
        homepage="https://www.lab-msp.com/MSP/MSP-Podcast.html",
        licence="other",
        language="en",
        read=_read_msp_podcast,
        marker="Labels/labels_consensus.csv",
        splits=("Train", "Development", "Test1", "Test2", "Test3"),
        scale=(1, 7),
        read_shares=_shares_of_msp_podcast,
        labels=_labels("A=anger C=contempt D=disgust F=fear H=happiness N=neutral S=sadness U=surprise O=other X="),
    ),
    Corpus(
        name="meld",
        title="MELD",
        homepage="https://affective-meld.github.io",
        licence="gpl-3.0",
        language="en",
        read=_read_meld,
        marker="**/*_sent_emo.csv",
        splits=("train", "dev", "test"),
        labels=_labels(
            "anger=anger disgust=disgust fear=fear joy=happiness neutral=neutral sadness=sadness surprise=surprise"
        ),
    ),
)
CORPORA = {corpus.name: corpus for corpus in _DECLARATIONS}
