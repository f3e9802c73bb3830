"""Recordings in, model inputs out, and a clear error for what cannot be one."""

from collections.abc import Mapping

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

from .recordings import (
    SAMPLING_RATE,
    SILENT_VARIANCE,
    RecordingError,
    as_list_of_recordings,
    load_recording,
    resample,
    to_mono,
)

RECEPTIVE_FIELD = 400  # samples that WavLM's convolutions need for one frame: 25 ms at 16 kHz
NORMALIZATION_EPSILON = 1e-7  # as transformers' extractors have it

logger = logging.get_logger(__name__)


class EdrlMeaFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms to `input_values` and `attention_mask`.

    Channels are mixed, integers scaled to ±1, other sampling rates converted (soxr), and clips shorter than one frame
    padded with silence. The mask marks each recording's own samples. Silence and noise are recordings like any other.

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
                16 channels, (n, channels) alone or either way round inside a list, is mixed to mono.
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
        if isinstance(recording, Mapping) or hasattr(recording, "get_all_samples"):  # a row of `datasets`
            waveform = load_recording(recording, self.sampling_rate, name)
        else:
            waveform = resample(to_mono(recording, name), sampling_rate, self.sampling_rate, name)
        if self.do_normalize:
            # In float64, as a faint sound on a large offset drowns in float32; in place, as an hour takes 440 MiB.
            waveform = waveform.astype(np.float64)
            waveform -= waveform.mean()
            power = np.einsum("i,i", waveform, waveform)  # np.dot would leave BLAS's threads spinning for milliseconds
            waveform /= np.sqrt(power / len(waveform) + NORMALIZATION_EPSILON)
        waveform = waveform.astype(np.float32, copy=False)
        missing = self.minimum_length - len(waveform)
        return np.pad(waveform, (0, missing)) if missing > 0 else waveform


def is_silence(waveforms: torch.Tensor, mask: torch.Tensor | None, is_normalized: bool) -> torch.Tensor:
    """(B,) whether each of the extractor's waveforms (B, n) is silence: what varies by less than the rounding of 16-bit
    samples, so an offset counts as silence and speech does not, however faint. Noise above that is a recording like any
    other."""
    # The extractor's normalization divides by √(variance + 1e-7).
    limit = SILENT_VARIANCE / (SILENT_VARIANCE + NORMALIZATION_EPSILON) if is_normalized else SILENT_VARIANCE
    waveforms = waveforms.float()
    own = torch.ones_like(waveforms) if mask is None else mask.to(waveforms)
    n_samples = own.sum(1).clamp_min(1)
    centered = (waveforms - ((waveforms * own).sum(1) / n_samples)[:, None]) * own
    return centered.square().sum(1) / n_samples < limit
