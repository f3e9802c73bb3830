"""Speaks two small corpora of emotional speech with espeak-ng, so that all can be tried with no download.

    python scripts/make_demo_corpus.py OUT

makes OUT/demo_studio (English, dry and clean) and OUT/demo_room (German, other voices and sentences, a small
room and a cheap microphone): eight voices each, four emotions, FLAC at 16 kHz, metadata.csv. It is synthetic:
good for seeing that training works, worth nothing for judging a model of human speech.

Which way each emotion moves pitch, pitch range, rate, loudness and voice quality follows Burkhardt &
Sendlmeier, "Verification of acoustical correlates of emotional speech using formant-synthesis" (ISCA Workshop
on Speech and Emotion, 2000). How far is ours, and varies between speakers and utterances, so that the
emotions overlap.
The same arguments give the same bytes on the same machine. Needs `pip install -e ".[demo]"`.
"""

import argparse
import csv
import ctypes
import multiprocessing
import os
import sys
import tempfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLING_RATE = 16_000  # Hz
TITLE = "# Synthetic emotional speech"  # first line of OUT/README.md, by which a former run's folder is known

# ratios of pitch, pitch range and rate to the speaker's own; loudness in dB; spectral tilt in dB per octave
# above 500 Hz, up for a tense voice and down for a breathy one
EMOTIONS = {
    "anger": (1.25, 1.50, 1.28, 6.0, 2.5),
    "happiness": (1.48, 1.90, 1.08, 3.0, 1.0),
    "neutral": (1.00, 1.00, 1.00, 0.0, 0.0),
    "sadness": (0.88, 0.45, 0.77, -5.0, -2.5),
}
# How much one utterance strays from that, as standard deviations (of the logarithm, for the ratios).
UTTERANCE_JITTER = (0.06, 0.20, 0.06, 1.5, 0.6)
SPEAKER_JITTER = (0.05, 0.10, 0.05, 2.0, 0.5)
EXPRESSIVENESS = (0.75, 1.20)  # how much of an emotion's deviation a speaker shows
# Arousal, from 1 to 7: how far pitch, rate (logarithms) and loudness (dB) lie above the speaker's own, in these units.
AROUSAL = (0.4, 0.25, 6.0)


@dataclass(frozen=True)
class DemoCorpus:
    name: str
    language: str
    voice: str  # espeak-ng's language
    # espeak-ng's voice variants, one a speaker; none with breath (f2, f3, f5): the time seeds its noise.
    variants: tuple[str, ...]
    in_a_room: bool
    sentences: tuple[str, ...]  # neutral in content, so that only the voice tells the emotion


CORPORA = (
    DemoCorpus(
        name="demo_studio",
        language="en",
        voice="en-us",
        variants=("m1", "f1", "m3", "linda", "m7", "anika", "max", "Andrea"),
        in_a_room=False,
        sentences=(
            "The books are on the table in the hall.",
            "She will come back on Wednesday morning.",
            "They have moved the meeting to the third floor.",
            "I put the letter under the blue cushion.",
            "There is a bus to the station every hour.",
            "He told me what they talked about at dinner.",
            "The shop on the corner opens at nine.",
            "We are going to the lake at the weekend.",
            "Somebody left a bag beside the door.",
            "It will be ready in a couple of days.",
        ),
    ),
    DemoCorpus(
        name="demo_room",
        language="de",
        voice="de",
        variants=("m2", "f4", "m4", "steph", "m5", "belinda", "norbert", "Annie"),
        in_a_room=True,
        sentences=(
            "Die Schlüssel liegen auf dem Schrank.",
            "Am Montag fährt er wieder nach Hause.",
            "Das Paket ist gestern angekommen.",
            "Wir treffen uns um sieben vor dem Bahnhof.",
            "Sie hat den Brief noch nicht gelesen.",
            "In der Küche steht eine Kiste mit Äpfeln.",
            "Der Zug hält heute nicht in jedem Ort.",
            "Ich habe ihm davon am Telefon erzählt.",
            "Nachher gehen wir noch in die Stadt.",
            "Das Fenster im Flur ist offen geblieben.",
        ),
    ),
)


class Speaker:
    """espeak-ng's library, loaded once per process, as a function of text to a waveform."""

    RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4  # espeak_PARAMETER
    RETRIEVAL, DONT_EXIT, UTF8 = 1, 0x8000, 1

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError as error:
            raise SystemExit('espeak-ng is missing: pip install -e ".[demo]" (or espeakng-loader)') from error
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sampling_rate = self.library.espeak_Initialize(self.RETRIEVAL, 0, data, self.DONT_EXIT)
        if self.sampling_rate <= 0:
            raise SystemExit(f"espeak-ng does not start with its data in {data.decode()}; reinstall espeakng-loader")
        self.chunks: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = kind(self._keep)  # kept alive here: the library holds only a pointer
        self.library.espeak_SetSynthCallback(self.callback)

    def _keep(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, pitch: float, pitch_range: float, rate: float) -> np.ndarray:
        """The text as float32 (n,), 16 kHz. Pitch, range and rate are ratios to the voice's own."""
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SystemExit(f"espeak-ng has no voice {voice!r}; reinstall espeakng-loader")
        # Measured on m3: from 50 to 100 the pitch rises by 0.73 octaves, from 50 to 0 it falls by 0.55.
        settings = {
            self.PITCH: 50 + 50 * np.log2(pitch) / 0.7,
            self.RANGE: 50 * pitch_range,
            self.RATE: 175 * rate,
            self.VOLUME: 80,
        }
        for parameter, value in settings.items():
            limits = (80, 350) if parameter == self.RATE else (0, 100)
            self.library.espeak_SetParameter(parameter, int(np.clip(round(value), *limits)), 0)
        self.chunks.clear()
        data = text.encode() + b"\0"
        self.library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, self.UTF8, None, None)
        self.library.espeak_Synchronize()
        samples = np.concatenate(self.chunks).astype(np.float32) / 32768
        return soxr.resample(samples, self.sampling_rate, SAMPLING_RATE)


def speak_one_speaker(corpus: DemoCorpus, variant: str, n_sentences: int, seed: int, folder: Path) -> list[dict]:
    """Writes all recordings of one speaker to folder/audio; returns their rows of metadata."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{corpus.name}/{variant}".encode())])
    espeak = Speaker()
    style = rng.normal(0, SPEAKER_JITTER)
    expressiveness = rng.uniform(*EXPRESSIVENESS)
    room = small_room(rng)
    rows = []
    for place in range(n_sentences):
        for emotion, deviation in EMOTIONS.items():
            ratios = np.log(deviation[:3]) * expressiveness + rng.normal(0, UTTERANCE_JITTER[:3])
            loudness, tilt = np.array(deviation[3:]) * expressiveness + rng.normal(0, UTTERANCE_JITTER[3:])
            arousal = np.clip(4 + 2.5 * np.mean(np.array([ratios[0], ratios[2], loudness]) / AROUSAL), 1, 7)
            ratios, loudness, tilt = ratios + style[:3], loudness + style[3], tilt + style[4]
            text = corpus.sentences[place]
            speech = espeak.say(text, f"{corpus.voice}+{variant}", *np.exp(ratios))
            speech = at_level(tilted(speech, tilt), -26 + loudness)
            speech = cheap_microphone(speech, room, rng) if corpus.in_a_room else studio(speech, rng)
            name = f"audio/{variant}-{place + 1:02d}-{emotion}.flac"
            soundfile.write(folder / name, speech, SAMPLING_RATE, subtype="PCM_16")
            rows.append(
                {
                    "file_name": name,
                    "emotion": emotion,
                    "arousal": f"{arousal:.2f}",
                    "speaker": variant,
                    "language": corpus.language,
                    "text": text,
                }
            )
    return rows


def tilted(speech: np.ndarray, db_per_octave: float) -> np.ndarray:
    """Speech with its spectrum above 500 Hz tilted, as by a tense (up) or breathy (down) voice."""
    spectrum = np.fft.rfft(speech)
    frequencies = np.fft.rfftfreq(len(speech), 1 / SAMPLING_RATE)
    octaves = np.log2(np.maximum(frequencies, 500) / 500)
    return np.fft.irfft(spectrum * 10 ** (db_per_octave * octaves / 20), len(speech))


def at_level(speech: np.ndarray, level: float) -> np.ndarray:
    """Speech at an RMS level in dB below full scale, lower where it would clip."""
    speech = speech * 10 ** (level / 20) / np.sqrt(np.mean(speech**2))
    return speech / max(1.0, np.abs(speech).max() / 0.99)


def studio(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech in a quiet room: noise at −70 dB, silence of up to 0.2 s before and after."""
    before, after = rng.integers(0, SAMPLING_RATE // 5, 2)
    speech = np.pad(speech, (before, after))
    return speech + 10 ** (-70 / 20) * rng.standard_normal(len(speech))


def small_room(rng: np.random.Generator) -> np.ndarray:
    """An impulse response (m,) with a reverberation time of 0.2 to 0.4 s: direct sound and decaying noise."""
    rt60 = rng.uniform(0.2, 0.4)
    seconds = np.arange(int(rt60 * SAMPLING_RATE)) / SAMPLING_RATE
    response = 0.05 * rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / rt60)
    response[0] = 1.0
    return response


def cheap_microphone(speech: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech in a room, by a microphone that hears 150 to 5500 Hz, with noise 20 to 35 dB below."""
    length = len(speech) + len(room) - 1
    spectrum = np.fft.rfft(speech, length) * np.fft.rfft(room, length)
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLING_RATE)
    band = 1 / (1 + (150 / np.maximum(frequencies, 1)) ** 4) / (1 + (frequencies / 5500) ** 8)
    heard = np.fft.irfft(spectrum * band, length)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * band, length)
    snr = rng.uniform(20, 35)  # dB
    heard += noise * np.sqrt(np.mean(heard**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
    return heard / max(1.0, np.abs(heard).max() / 0.99)


def speak_corpora(out: Path, n_speakers: int, n_sentences: int, seed: int) -> int:
    """Speaks both corpora into an existing folder; returns the number of recordings."""
    total = 0
    # espeak-ng carries state from utterance to utterance, even over a restart: a fresh process for every
    # speaker is what makes the same arguments give the same bytes.
    workers = min(os.cpu_count() or 1, 4)
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for corpus in CORPORA:
            folder = out / corpus.name
            (folder / "audio").mkdir(parents=True)
            work = partial(speak_one_speaker, corpus, n_sentences=n_sentences, seed=seed, folder=folder)
            rows = [row for part in pool.imap(work, corpus.variants[:n_speakers], chunksize=1) for row in part]
            with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as table:
                writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            total += len(rows)
    (out / "README.md").write_text(_readme(n_speakers, n_sentences, seed), encoding="utf-8")
    return total


def _readme(n_speakers: int, n_sentences: int, seed: int) -> str:
    return f"""{TITLE}

Spoken by espeak-ng, by no human: made by scripts/make_demo_corpus.py of edrl-mea
(speakers {n_speakers}, sentences {n_sentences}, seed {seed}), free to use. For trying
training out; a model that does well here says nothing about human speech.

| folder | language | recorded | voices | recordings |
|---|---|---|---|---|
| demo_studio | English | dry, clean | {n_speakers} | {n_speakers * n_sentences * 4} |
| demo_room | German | small room, cheap microphone | {n_speakers} | {n_speakers * n_sentences * 4} |

Emotions (anger, happiness, neutral, sadness) differ in pitch, pitch range, rate, loudness and spectral tilt,
after Burkhardt & Sendlmeier (2000). metadata.csv: file_name, emotion, arousal (1 to 7, by pitch, rate and loudness),
speaker, language, text.
"""


def make_demo_corpus(out: str | os.PathLike, n_speakers: int = 8, n_sentences: int = 8, seed: int = 0) -> int:
    """Makes both corpora at `out`, whole or not at all; returns the number of recordings.

    A folder that a former run made is replaced; FileExistsError for any other that is not empty, and
    ValueError for more speakers (8) or sentences (10) than there are.
    """
    for what, number, most in (("speakers", n_speakers, 8), ("sentences", n_sentences, 10)):
        if not 1 <= number <= most:
            raise ValueError(f"{number} {what}: between 1 and {most} can be had")
    out = Path(out).absolute()
    if out.exists() and not _is_ours(out):
        raise FileExistsError(f"{str(out)!r} holds something else: give a folder that is new or empty")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as unfinished:
        new = Path(unfinished, "new")
        new.mkdir()
        total = speak_corpora(new, n_speakers, n_sentences, seed)
        if out.exists():
            out.rename(Path(unfinished, "old"))
        new.rename(out)
    return total


def _is_ours(out: Path) -> bool:
    if not out.is_dir():
        return False
    readme = out / "README.md"
    if readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(TITLE):
        return {path.name for path in out.iterdir()} <= {"README.md", *(corpus.name for corpus in CORPORA)}
    return not any(out.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description="Speaks two small synthetic corpora of emotional speech.")
    parser.add_argument("out", help="folder to make; replaced if this script made it before")
    parser.add_argument("--speakers", type=int, default=8, help="voices in each corpus, at most 8")
    parser.add_argument("--sentences", type=int, default=8, help="sentences per voice and emotion, at most 10")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        total = make_demo_corpus(arguments.out, arguments.speakers, arguments.sentences, arguments.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{total} synthetic recordings in {arguments.out}: demo_studio and demo_room")


if __name__ == "__main__":
    main()
