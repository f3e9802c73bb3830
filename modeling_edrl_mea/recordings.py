"""Recordings as arrays: found in folders, decoded, mixed to mono and brought to one rate, or refused with a clear
error.

Whatever takes a recording reads it here, but `pipeline(path)`, which transformers decodes by the ffmpeg program. Needs
NumPy, soundfile and soxr alone, so that scripts/classify_onnx.py reads by it without torch.
"""

import functools
import io
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path

import numpy as np

try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16_000  # Hz, of every model's input
MINIMUM_RATE = 1_000  # Hz; a rate below was given in kHz
MAXIMUM_RATE = 10_000_000  # Hz; no recorder reaches it
MAX_CHANNELS = 16  # an array with one side this short and the other long is multi-channel audio, not a batch
FULL_SCALE = 4.0  # floats beyond it were integers that nobody scaled; lossy codecs overshoot far less
FAINTEST_DB = -70.0  # of full scale; quieter recordings hold no voice
SHORTEST_SECONDS = 0.2  # a shorter recording is no utterance
SILENT_VARIANCE = 2.0**-30  # one step of 16-bit samples, squared: -90 dB of full scale
CANCELED = 0.01  # a mix this far (40 dB) below its channels has lost them
INTEGER_BITS = (16, 24, 32)  # of samples in wider containers
# Lossless first: where a corpus ships one recording in two formats (CREMA-D), the first one is taken.
AUDIO_EXTENSIONS = (
    *(".wav", ".flac", ".aiff", ".aif", ".au", ".w64", ".caf"),
    *(".ogg", ".opus", ".oga", ".mp3", ".m4a", ".aac", ".wma", ".webm", ".amr"),
)


class RecordingError(ValueError):
    """A recording that no model could answer for; the message names it, what is wrong and what to do."""


def load_recording(source, sampling_rate: int = SAMPLING_RATE, name: str = "recording") -> np.ndarray:
    """A recording from a path, bytes, an open file, an array (at `sampling_rate`), or what `datasets` makes of one
    (`{"array", "sampling_rate"}`, `{"bytes", "path"}`, torchcodec's decoder), as float32 (n,) mono at `sampling_rate`
    Hz.
    `name` is what errors call a recording that has no path.

    Raises `RecordingError`, naming the file and the remedy, for what is missing, does not decode, is empty or holds
    NaN or infinite samples.
    """
    if hasattr(source, "get_all_samples"):  # torchcodec's AudioDecoder, what `datasets` decodes to
        decoded = source.get_all_samples()
        return resample(to_mono(decoded.data, name, channel_axis=0), decoded.sample_rate, sampling_rate)
    if isinstance(source, Mapping):
        if source.get("array") is not None:
            waveform = to_mono(source["array"], str(source.get("path") or name))
            rate = source.get("sampling_rate")
            return resample(waveform, sampling_rate if rate is None else rate, sampling_rate, name)
        content, path = source.get("bytes"), source.get("path")
        if not content and not path:
            raise RecordingError(f"{name} with the keys {sorted(source)}: none of array, bytes or path is filled.")
        source, name = content or path, str(path or name)
    if is_open_file(source):
        source = source.read()
    if isinstance(source, (str, os.PathLike, bytes)):
        name = name if isinstance(source, bytes) else os.fspath(source)
        samples, rate = _decode(source, name)
        return resample(to_mono(samples, name, channel_axis=1), rate, sampling_rate, name)
    return to_mono(source, name)


def is_open_file(source) -> bool:
    return isinstance(source, io.IOBase) and not isinstance(source, io.TextIOBase)


def has_own_rate(source) -> bool:
    """Whether a recording is a file, its bytes, or what `datasets` makes of one, and no mere samples."""
    if isinstance(source, Mapping):
        return source.get("array") is None or source.get("sampling_rate") is not None
    return isinstance(source, (str, os.PathLike, bytes)) or is_open_file(source) or hasattr(source, "get_all_samples")


def _decode(source, name: str) -> tuple[np.ndarray, int]:
    """Samples (n, channels) and their rate: by soundfile, or what else the machine has."""
    if soundfile is None:
        raise ImportError("Reading audio files needs soundfile: pip install soundfile")
    if not isinstance(source, bytes):
        check_file(source)
    try:
        samples, rate = _read(source)
        return (samples, rate) if len(samples) else _read(_with_true_size(source))
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:  # TypeError: headerless
        decoded = _decode_by_ffmpeg(source)
        if decoded is not None:
            _warn_if_cut(*decoded, source, name)
            return decoded
        reason = getattr(error, "error_string", error)
        raise RecordingError(f"{name}: does not decode ({str(reason).strip('. ')}). {_remedy()}") from error


def _warn_if_cut(samples: np.ndarray, rate: int, source, name: str) -> None:
    """FFmpeg reads a damaged file as far as it goes, and says nothing."""
    try:
        promised = soundfile.info(_for_soundfile(source)).duration
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError):  # a format that is FFmpeg's alone
        return
    if len(samples) < 0.9 * promised * rate:
        logger.warning(f"{name}: damaged; {len(samples) / rate:.1f} of {promised:.1f} s could be read.")


def _remedy() -> str:
    if shutil.which("ffmpeg"):
        return "It is damaged, or no audio: FFmpeg does not read it either."
    return (
        "It is damaged, or in a format that libsndfile cannot read (m4a, webm, amr …): install the ffmpeg program, or "
        "torchcodec with FFmpeg's libraries, or convert it to WAV."
    )


def _read(source) -> tuple[np.ndarray, int]:
    return soundfile.read(_for_soundfile(source), dtype="float32", always_2d=True)


def _for_soundfile(source):
    if isinstance(source, bytes):
        return io.BytesIO(source)
    # A file's name need not be text, and soundfile encodes only what is.
    return os.fsencode(source) if os.name == "posix" else source


def _with_true_size(source) -> bytes:
    """A WAV whose recorder never came back to write how much it holds (data size 0): all of it is data."""
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    place = content.find(b"data", 12)
    if content[:4] != b"RIFF" or place < 0 or content[place + 4 : place + 8] != bytes(4):
        return content
    size = len(content) - place - 8
    return content[: place + 4] + size.to_bytes(4, "little") + content[place + 8 :]


def _decode_by_ffmpeg(source) -> tuple[np.ndarray, int] | None:
    """By the ffmpeg program or by torchcodec, where the machine has one that can; None otherwise."""
    if not isinstance(source, bytes):
        return _by_program(os.path.abspath(source)) or _by_torchcodec(source)
    with tempfile.TemporaryDirectory() as folder:  # m4a cannot be read from a pipe: its index may be at the end
        path = os.path.join(folder, "recording")
        Path(path).write_bytes(source)
        return _by_program(path) or _by_torchcodec(source)


def _by_program(path) -> tuple[np.ndarray, int] | None:
    program = shutil.which("ffmpeg")
    if program is None:
        return None
    command = [program, "-v", "error", "-nostdin", "-i", path, "-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav", "-"]
    run = subprocess.run(command, capture_output=True)
    if run.returncode != 0:
        return None
    samples, rate = _read(run.stdout)
    return (samples, rate) if len(samples) else None


def _by_torchcodec(source) -> tuple[np.ndarray, int] | None:
    try:
        from torchcodec.decoders import AudioDecoder

        decoded = AudioDecoder(source).get_all_samples()
    except (ImportError, OSError, RuntimeError, ValueError):
        return None
    return decoded.data.numpy().T, decoded.sample_rate


def check_file(path: str | os.PathLike) -> os.stat_result:
    """What the system knows of a file that can be read to its end; a pipe would be waited for, and a device fill the
    memory. Raises `RecordingError` for what is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, (FileNotFoundError, ValueError)) else error.strerror
        raise RecordingError(f"{path}: {reason}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise RecordingError(f"{path}: a folder, pipe or device, and no file. Take it out of the recordings.")
    return status


def as_list_of_recordings(raw_speech) -> list:
    """One recording or many, as a list."""
    if isinstance(raw_speech, Iterator):
        return list(raw_speech)
    if hasattr(raw_speech, "detach"):
        raw_speech = as_array(raw_speech)
    if isinstance(raw_speech, np.ndarray):
        is_batch = raw_speech.ndim == 2 and not (raw_speech.shape[1] <= MAX_CHANNELS < raw_speech.shape[0])
        return list(raw_speech) if is_batch else [raw_speech]
    if isinstance(raw_speech, Sequence) and len(raw_speech) and not np.isscalar(raw_speech[0]):
        return list(raw_speech)
    return [raw_speech]


def to_mono(samples, name: str, channel_axis: int | None = None) -> np.ndarray:
    """Any array of samples as finite float32 (n,) at full scale ±1; the shorter axis holds channels, unless told.
    Raises `RecordingError`."""
    samples = as_samples(samples, name)
    if samples.ndim == 2 and (channel_axis is not None or min(samples.shape) <= MAX_CHANNELS):
        axis = int(np.argmin(samples.shape)) if channel_axis is None else channel_axis
        channels, samples = samples, mix(samples, axis)
        if np.abs(samples).max() < CANCELED * np.abs(channels).max():
            logger.warning(f"{name}: its channels cancel each other in the mix; give the model one of them.")
    if samples.ndim != 1:
        raise RecordingError(f"{name}: shape {samples.shape}; give (n,) samples, or up to {MAX_CHANNELS} channels.")
    peak = float(np.abs(samples).max())
    if peak > FULL_SCALE:
        _warn_once("Samples far beyond ±1 (integers stored as floats?): scaled by their peak.")
        samples = samples / peak
    return samples.astype(np.float32)


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def integer_scale(samples: np.ndarray) -> float:
    """Full scale of signed integers, by their values and container together: 16- or 24-bit samples are often kept in
    wider ones (`tolist()`, int64). 24 bits moved up to the top of 32 keep the container's scale."""
    container = 8 * samples.dtype.itemsize
    peak = max(int(samples.max()), -int(samples.min()))
    is_shifted = container == 32 and peak > 2**15 and not (samples & 0xFF).any()
    fitting = [bits for bits in INTEGER_BITS if bits < container and peak <= 2 ** (bits - 1)]
    return float(2 ** ((container if is_shifted or not fitting else fitting[0]) - 1))


def as_samples(samples, name: str, scale: float = 0.0) -> np.ndarray:
    """Any array or tensor of at least one sample as finite floats, integers scaled to ±1 (by no less
    than `scale`). Raises `RecordingError`."""
    if samples is None:
        raise RecordingError(f"{name}: None, of type object, is no recording. Leave it out.")
    try:
        samples = as_array(samples)
    except ValueError as error:
        raise RecordingError(f"{name}: not an array of samples ({error}).") from error
    if samples.dtype.kind not in "iuf":
        raise RecordingError(f"{name}: samples of type {samples.dtype}; give integers or floats.")
    if samples.size == 0:
        raise RecordingError(f"{name}: zero length. Leave it out, or check how it was cut.")
    if samples.dtype.kind == "u":
        samples = samples.astype(np.float64) / (np.iinfo(samples.dtype).max / 2) - 1
    elif samples.dtype.kind == "i":
        samples = samples / max(integer_scale(samples), scale)
    if not np.isfinite(samples).all():
        raise RecordingError(f"{name}: NaN or infinite samples. Check the file, or how it was processed.")
    return samples


def is_silent(waveform: np.ndarray) -> bool:
    """Whether (n,) samples vary by less than the rounding of 16 bits: no emotion is named in them."""
    return bool(np.var(waveform, dtype=np.float64) < SILENT_VARIANCE)


def is_usable(waveform: np.ndarray, rate: float) -> bool:
    """Whether a recording can hold a voice: long enough, and not silent."""
    power = np.mean(np.square(waveform, dtype=np.float64)) if len(waveform) else 0.0
    return len(waveform) >= SHORTEST_SECONDS * rate and power > 10 ** (FAINTEST_DB / 10)


def as_array(samples) -> np.ndarray:
    """An array of whatever holds numbers; a bfloat16 tensor, which NumPy does not know, becomes float32."""
    if hasattr(samples, "detach"):
        samples = samples.detach().cpu()
        samples = samples.float() if "bfloat16" in str(samples.dtype) else samples
    return np.asarray(samples)


def mix(samples: np.ndarray, channel_axis: int) -> np.ndarray:
    """Mean over channels, divided before they are added, as the sum of huge samples overflows."""
    return (samples / samples.shape[channel_axis]).sum(axis=channel_axis)


def resample(waveform: np.ndarray, from_rate: float, to_rate: int, name: str = "recording") -> np.ndarray:
    """(n,) at `from_rate` Hz to (n · to_rate / from_rate,), at least one sample."""
    from_rate = from_rate.item() if getattr(from_rate, "ndim", None) == 0 else from_rate
    check_rate(from_rate, name)
    if from_rate == to_rate:
        return waveform
    if soxr is None:
        raise ImportError(f"Converting {from_rate} Hz to {to_rate} Hz needs soxr: pip install soxr")
    converted = soxr.resample(waveform, from_rate, to_rate)
    return converted if len(converted) else waveform[:1]


def check_rate(sampling_rate, name: str = "recording") -> None:
    """Raises `RecordingError` for what is no number of Hz."""
    if not (isinstance(sampling_rate, Real) and MINIMUM_RATE <= sampling_rate <= MAXIMUM_RATE):
        raise RecordingError(
            f"{name}: sampling_rate={sampling_rate!r}; give it in Hz, from {MINIMUM_RATE} to {MAXIMUM_RATE}."
        )


def find_audio(folder: str | os.PathLike) -> list[Path]:
    """Audio files under a folder, sorted, lossless formats first; hidden and macOS "._" files left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordingError(f"{str(folder)!r} is not a folder; give one that holds audio files.")
    rank = {extension: place for place, extension in enumerate(AUDIO_EXTENSIONS)}
    files = []
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in visited:  # a link back up would go round for ever
            folders.clear()
            continue
        visited.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        files += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in rank
        ]
    return sorted(files, key=lambda path: (rank[path.suffix.lower()], path.as_posix()))
