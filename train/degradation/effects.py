"""What can happen to speech on its way to us: noise, rooms, codecs, telephones, lost packets.

Functions of waveforms: float32 `(n,)`, 16 kHz, in and out, the same length, never clipped unless clipping
is the point. Randomness comes only from a generator that is passed in. Training augmentation and test
corruptions are both made of these.
"""

import hashlib
import io

import numpy as np
import soundfile
import torch
from scipy import signal
from scipy.fft import next_fast_len
from torchaudio.functional import add_noise

from modeling_edrl_mea.recordings import SAMPLING_RATE

MP3_DELAY = 1105  # samples: LAME's encoder delay 576 + decoder delay 529
MP3_KBITS = (8, 160)  # MPEG-2 layer III, the version that goes with 16 kHz
OPUS_KBITS = (6, 256)  # libsndfile's range for one channel
TRANSITION = 0.5  # of a recording, over which its gain moves
PACKET = SAMPLING_RATE // 50  # 20 ms of speech, as most voice-over-IP sends at once


def keyed_generator(seed: int, *key) -> np.random.Generator:
    """A generator that depends on the seed and the key's text alone: not on order, process or machine."""
    text = "\x1f".join(str(part) for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def rms(waveform: np.ndarray) -> float:
    """Root mean square over the whole waveform, pauses included, as RobuSER measures it."""
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


# --- additive -----------------------------------------------------------------------------------------


def noise_segment(noise: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """`num_samples` of a noise recording from a random start; one that is too short is repeated end to start.

    Clips such as single dog barks are mostly digital silence, which brought to an SNR would be amplified
    rounding error. So the start is drawn again, up to 8 times, while the segment is 20 dB below the whole.
    ValueError where the recording is empty or silent throughout.
    """
    level = rms(noise) if len(noise) else 0.0
    if level == 0.0:
        raise ValueError("This noise recording is empty or silent throughout: remove it, or replace it.")
    loudest = None
    for _ in range(8):
        start = rng.integers(max(len(noise) - num_samples, 0) + 1 if len(noise) >= num_samples else len(noise))
        segment = np.take(noise, np.arange(start, start + num_samples), mode="wrap")
        if rms(segment) >= level / 10:
            return segment
        if loudest is None or rms(segment) > rms(loudest):
            loudest = segment
    if rms(loudest) == 0.0:  # all 8 fell into silence: take the stretch that follows the loudest sample
        loudest = np.take(noise, np.abs(noise).argmax() + np.arange(num_samples), mode="wrap")
    return loudest


def mix_at_snr(
    speech: np.ndarray, noise: np.ndarray, snr_db: float, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Speech with noise added at a signal-to-noise ratio in dB; the speech keeps its level.

    The ratio is that of the RMS of the whole recording to the RMS of the noise that is mixed in, which is
    what RobuSER does: pauses count. RobuSER pads short noise with zeros. Here, as in audiomentations, it is repeated,
    from a start drawn from `rng` (without one, from its beginning), and longer noise is cut. Silent speech has no SNR
    and comes back unchanged. ValueError where the noise is empty or silent.
    """
    if rng is not None:
        noise = noise_segment(noise, len(speech), rng)
    elif len(noise):
        noise = np.take(noise, np.arange(len(speech)), mode="wrap")
    if not len(noise) or rms(noise) == 0.0:
        raise ValueError("The noise is empty or silent, so no SNR can be reached: use another recording.")
    speech, noise, snr = (torch.tensor(value, dtype=torch.float64) for value in (speech, noise, snr_db))
    return add_noise(speech, noise, snr).float().numpy()


def add_gaussian(speech: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Speech with white Gaussian noise at an SNR in dB."""
    return mix_at_snr(speech, rng.standard_normal(len(speech)), snr_db)


# --- rooms --------------------------------------------------------------------------------------------


def reverberate(speech: np.ndarray, impulse_response: np.ndarray) -> np.ndarray:
    """Speech in a room: convolved, aligned to the direct sound, cut to its length, at its former RMS.

    `impulse_response`: `(m,)`, 16 kHz. Without the alignment a distant microphone would shift the speech, and
    without the level a large room would be recognised by its loudness. audiomentations' ApplyImpulseResponse, which
    RobuSER uses, does not align, and brings the peak to 0.5.
    """
    direct = int(np.abs(impulse_response).argmax())
    # Overlap-add: faster than torchaudio's fftconvolve, which transforms the whole recording, and closer.
    wet = signal.oaconvolve(speech, impulse_response)[direct : direct + len(speech)]
    wet = np.pad(wet, (0, len(speech) - len(wet)))
    level = rms(wet)
    return (wet * (rms(speech) / level if level else 0.0)).astype(np.float32)


# --- channels -----------------------------------------------------------------------------------------


def through_mp3(speech: np.ndarray, kbits: float) -> np.ndarray:
    """Speech after LAME at a constant bit rate of 8–160 kbit/s and back; codec delay and padding are cut."""
    level = np.clip((MP3_KBITS[1] - kbits) / (MP3_KBITS[1] - MP3_KBITS[0]), 0, 0.999)  # at 1 libsndfile fails
    decoded = _coded(speech, "MP3", "MPEG_LAYER_III", float(level), "CONSTANT")
    # Below about 32 kbit/s no frame has room for the header that tells the decoder what to cut.
    return _fitted(decoded[MP3_DELAY:] if len(decoded) > len(speech) else decoded, len(speech))


def through_opus(speech: np.ndarray, kbits: float) -> np.ndarray:
    """Speech after Opus at a mean bit rate of 6–256 kbit/s (its own; Ogg pages come on top) and back."""
    level = np.clip((OPUS_KBITS[1] - kbits) / (OPUS_KBITS[1] - OPUS_KBITS[0]), 0, 1)
    return _fitted(_coded(speech, "OGG", "OPUS", float(level), None), len(speech))


def through_telephone(speech: np.ndarray, bits: int = 8) -> np.ndarray:
    """Speech over a telephone: 300–3400 Hz at 8 kHz, μ-law (ITU-T G.711 has 8 bits), back at 16 kHz.

    The loudest sample is at the full scale of the quantiser. No delay: the band is cut with zero phase.
    """
    band = band_limit(speech, 300, 3400)
    narrow = signal.resample_poly(band, 1, 2)
    peak = np.abs(narrow).max(initial=0)
    if peak == 0:
        return np.zeros_like(speech)
    mu, steps = 255, 2 ** (bits - 1) - 1
    compressed = np.sign(narrow) * np.log1p(mu * np.abs(narrow / peak)) / np.log1p(mu)
    compressed = np.round(compressed * steps) / steps
    expanded = np.sign(compressed) * np.expm1(np.abs(compressed) * np.log1p(mu)) / mu * peak
    return _fitted(signal.resample_poly(expanded, 2, 1), len(speech))


def band_limit(speech: np.ndarray, low_hz: float, high_hz: float, order: int = 6) -> np.ndarray:
    """Speech between two frequencies, Butterworth slopes of 6 × `order` dB per octave, zero phase."""
    padded = next_fast_len(len(speech) + SAMPLING_RATE // 10)  # 0.1 s, so that the end does not wrap
    frequency = np.fft.rfftfreq(padded, 1 / SAMPLING_RATE)
    high_pass = 1 / np.sqrt(1 + (low_hz / np.maximum(frequency, 1e-3)) ** (2 * order))
    low_pass = 1 / np.sqrt(1 + (frequency / high_hz) ** (2 * order))
    limited = np.fft.irfft(np.fft.rfft(speech, padded) * high_pass * low_pass, padded)
    return limited[: len(speech)].astype(np.float32)


def lose_packets(speech: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Speech of which a share of its 20 ms packets is silent, as without concealment.

    For one state of `rng`, the packets lost at a smaller share are lost at a larger one too.
    """
    packets = -(-len(speech) // PACKET)
    lost = np.zeros(packets, dtype=bool)
    lost[rng.permutation(packets)[: round(share * packets)]] = True
    return np.where(np.repeat(lost, PACKET)[: len(speech)], np.float32(0), speech)


# --- levels -------------------------------------------------------------------------------------------


def clip_percentile(speech: np.ndarray, percent: float) -> np.ndarray:
    """Speech with `percent` % of its samples clipped, half above and half below.

    As audiomentations' ClippingDistortion, which knows whole percents only: an odd one it rounds down.
    """
    low, high = np.percentile(speech, [percent / 2, 100 - percent / 2])
    return np.clip(speech, low, high).astype(np.float32)


def gain_transition(speech: np.ndarray, low_db: float, high_db: float, rng: np.random.Generator) -> np.ndarray:
    """Speech whose gain moves between two random values in `[low_db, high_db]`.

    It moves linearly in dB over half the recording, from a random moment that may lie before its start:
    audiomentations' GainTransition with durations of 0.5 as a fraction, as RobuSER sets it.
    """
    start_db, end_db = rng.uniform(low_db, high_db, 2)
    duration = max(3, round(TRANSITION * len(speech)))
    begin = rng.integers(2 - duration, len(speech) - 1)
    progress = np.clip((np.arange(len(speech)) - begin) / (duration - 1), 0, 1)
    return (speech * 10 ** ((start_db + (end_db - start_db) * progress) / 20)).astype(np.float32)


def _coded(speech, container: str, codec: str, compression_level: float, bitrate_mode: str | None):
    """Speech through an encoder and back, in memory, at a peak of 0.9, so that the encoder does not clip."""
    peak = np.abs(speech).max(initial=0)
    if peak == 0:
        return speech
    buffer = io.BytesIO()
    soundfile.write(
        buffer,
        speech * (0.9 / peak),
        SAMPLING_RATE,
        format=container,
        subtype=codec,
        compression_level=compression_level,
        bitrate_mode=bitrate_mode,
    )
    buffer.seek(0)
    decoded, _ = soundfile.read(buffer, dtype="float32")
    return decoded * (peak / 0.9)


def _fitted(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """The waveform cut, or padded with zeros, to `num_samples`, as float32."""
    waveform = waveform[:num_samples].astype(np.float32)
    return np.pad(waveform, (0, num_samples - len(waveform)))
