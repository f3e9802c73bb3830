"""Recordings in, model inputs out, and a clear error for what cannot be one."""

import io
import os
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None

logger = logging.get_logger(__name__)

SAMPLING_RATE = 16_000  # Hz
RECEPTIVE_FIELD = 400  # samples that WavLM's convolutions need for one frame: 25 ms at 16 kHz
MINIMUM_RATE = 1_000  # Hz; a rate below was given in kHz
MAXIMUM_RATE = 10_000_000  # Hz; no recorder reaches it
MAX_CHANNELS = 8  # an array with one side this short and the other long is multi-channel audio, not a batch
FULL_SCALE = 4.0  # floats beyond it were integers that nobody scaled; lossy codecs overshoot far less


class RecordingError(ValueError):
    """A recording that no model could answer for; the message names it, what is wrong and what to do."""


class EdrlMeaFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms to `input_values` and `attention_mask`.

    Channels are mixed, integers scaled to ±1, other sampling rates converted (soxr), and clips shorter than one frame
    padded with silence. The mask marks each recording's own samples. Silence and noise are recordings like any other:
    the model gives them finite scores, the same every time, which mean nothing.

    Args:
        sampling_rate: Hz, of the model's inputs.
        do_normalize: zero mean and unit variance a recording, as the backbone was pretrained.
        minimum_length: samples that give the backbone one frame.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = SAMPLING_RATE,
        padding_value: float = 0.0,
        do_normalize: bool = False,
        minimum_length: int = RECEPTIVE_FIELD,
        return_attention_mask: bool = True,
        **kwargs,
    ):
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.do_normalize = do_normalize
        self.minimum_length = minimum_length
        self.return_attention_mask = return_attention_mask

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Prepare one recording or a list of them.

        Args:
            raw_speech: (n,) array or list of numbers; a list of such; a (batch, n) array. An array of at most
                8 channels, (n, channels) alone or either way round inside a list, is mixed to mono.
            sampling_rate: Hz of `raw_speech`; 16 kHz is assumed, with a warning, where it is missing.

        Returns:
            `input_values` (batch, n) float32 and `attention_mask` (batch, n).

        Raises:
            RecordingError: empty, NaN or infinite samples, or no numbers at all; names the recording by its place.
        """
        if sampling_rate is None:
            logger.warning_once(f"No sampling_rate given: taking the audio to be at {self.sampling_rate} Hz.")
            sampling_rate = self.sampling_rate
        recordings = as_list_of_recordings(raw_speech)
        if not recordings:
            raise RecordingError(f"A batch of no recordings, shape {raw_speech.shape}: give at least one.")
        waveforms = [
            self._prepare(recording, sampling_rate, name=f"recording {i}") for i, recording in enumerate(recordings)
        ]
        return self.pad(
            BatchFeature({"input_values": waveforms}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=True,
            return_tensors=return_tensors,
        )

    def _prepare(self, recording, sampling_rate: int, name: str) -> np.ndarray:
        waveform = to_mono(recording, name)
        waveform = resample(waveform, sampling_rate, self.sampling_rate, name)
        if self.do_normalize:
            # In float64, as a faint sound on a large offset drowns in float32; in place, as an hour takes 440 MiB.
            waveform = waveform.astype(np.float64)
            waveform -= waveform.mean()
            waveform /= np.sqrt(np.dot(waveform, waveform) / len(waveform) + 1e-7)
        waveform = waveform.astype(np.float32, copy=False)
        missing = self.minimum_length - len(waveform)
        return np.pad(waveform, (0, missing)) if missing > 0 else waveform


def load_recording(source, sampling_rate: int = SAMPLING_RATE, name: str = "recording") -> np.ndarray:
    """A recording from a path, bytes, an array (at `sampling_rate`), or a dict as `datasets` makes it
    (`{"array", "sampling_rate"}`, `{"bytes", "path"}`), as float32 (n,) mono at `sampling_rate` Hz.
    `name` is what errors call a recording that has no path.

    Raises `RecordingError`, naming the file and the remedy, for what is missing, does not decode, is empty or holds
    NaN or infinite samples.
    """
    if hasattr(source, "get_all_samples"):  # torchcodec's AudioDecoder, what `datasets` decodes to
        decoded = source.get_all_samples()
        return resample(to_mono(decoded.data, name), decoded.sample_rate, sampling_rate)
    if isinstance(source, Mapping):
        if source.get("array") is not None:
            waveform = to_mono(source["array"], str(source.get("path") or name))
            return resample(waveform, source.get("sampling_rate") or sampling_rate, sampling_rate, name)
        content, path = source.get("bytes"), source.get("path")
        if not content and not path:
            raise RecordingError(f"{name} with the keys {sorted(source)}: none of array, bytes or path is filled.")
        source, name = content or path, str(path or name)
    if isinstance(source, (str, os.PathLike, bytes)):
        name = name if isinstance(source, bytes) else os.fspath(source)
        samples, rate = _decode(source, name)
        return resample(to_mono(samples, name), rate, sampling_rate, name)
    return to_mono(source, name)


def _decode(source, name: str) -> tuple[np.ndarray, int]:
    if soundfile is None:
        raise ImportError("Reading audio files needs soundfile: pip install soundfile")
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise RecordingError(f"{name}: no such file.")
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    elif os.name == "posix":
        source = os.fsencode(source)  # a file's name need not be text, and soundfile encodes only what is
    try:
        return soundfile.read(source, dtype="float32")
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:  # TypeError: headerless
        raise RecordingError(
            f"{name}: does not decode ({error}). It is damaged or in a format that libsndfile cannot read; convert it, "
            f"e.g. `ffmpeg -i {name} -ac 1 -ar {SAMPLING_RATE} out.wav`."
        ) from error


def as_list_of_recordings(raw_speech) -> list:
    """One recording or many, as a list."""
    if hasattr(raw_speech, "detach"):
        raw_speech = as_array(raw_speech)
    if isinstance(raw_speech, np.ndarray):
        is_batch = raw_speech.ndim == 2 and not (raw_speech.shape[1] <= MAX_CHANNELS < raw_speech.shape[0])
        return list(raw_speech) if is_batch else [raw_speech]
    if isinstance(raw_speech, Sequence) and len(raw_speech) and not np.isscalar(raw_speech[0]):
        return list(raw_speech)
    return [raw_speech]


def to_mono(samples, name: str) -> np.ndarray:
    """Any array of samples as finite float32 (n,) at full scale ±1. Raises `RecordingError`."""
    samples = as_samples(samples, name)
    if samples.ndim == 2 and min(samples.shape) <= MAX_CHANNELS:
        samples = mix(samples, int(np.argmin(samples.shape)))
    if samples.ndim != 1:
        raise RecordingError(f"{name}: shape {samples.shape}; give (n,) samples, or up to {MAX_CHANNELS} channels.")
    peak = float(np.abs(samples).max())
    if peak > FULL_SCALE:
        logger.warning_once("Samples far beyond ±1 (integers stored as floats?): scaled by their peak.")
        samples = samples / peak
    return samples.astype(np.float32)


def as_samples(samples, name: str) -> np.ndarray:
    """Any array or tensor of at least one sample as finite floats, integers scaled to ±1. Raises `RecordingError`."""
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
        samples = samples / (float(np.iinfo(samples.dtype).max) + 1)
    if not np.isfinite(samples).all():
        raise RecordingError(f"{name}: NaN or infinite samples. Check the file, or how it was processed.")
    return samples


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
