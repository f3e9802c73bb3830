"""Emotions over time from audio that comes in chunks of any size, in bounded memory."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from .evaluation_mode import evaluating
from .frames import samples_per_frame
from .prediction import Listener
from .recordings import (
    MAX_CHANNELS,
    RecordingError,
    as_array,
    as_samples,
    check_rate,
    has_own_rate,
    integer_scale,
    is_silent,
    is_usable,
    load_recording,
    mix,
)
from .timeline import Segment, Timeline

try:
    import soxr
except ImportError:
    soxr = None

WINDOW_SECONDS = 3.0  # about the length of the utterances that models of acted speech are trained on
HOP_SECONDS = 1.0
BLOCK_SECONDS = 10.0  # of a long recording taken at once
BATCH = 16  # windows classified at once; they are of equal length, so none is padded
LARGEST = 1e30  # finite samples beyond it would overflow float32 on the way
SILENCE = 1e-12  # mean square that counts as -120 dB


class TimelineStream:
    """Scores windows of a recording as its samples arrive: `push` chunks, then `finish`.

    Every window is classified by itself, exactly as the recording cut there would be: with its own normalization where
    the model normalizes waveforms, and nothing seen beyond its ends. Frames are therefore not shared between
    overlapping windows, and the cost is window / hop times that of the recording. Windows start every `hop_s`; the
    last one ends with the recording and is moved back to full length. A recording shorter than `window_s` is one
    segment of its own length.

    Args:
        model: an `EdrlMeaForAudioClassification`.
        sampling_rate: Hz of the chunks; the model's own by default.
        window_s, hop_s: seconds.
        batch_size: windows classified at once.
        adapter: an `Adapter` (online_adaptation.py), which learns from every window in which somebody speaks, and
            corrects its scores.
        speech_gate: as [`SpeechGate`] takes it: windows without speech get no label. None: all that are not silent do.

    Raises ValueError where window or hop are no lengths: the hop must be at least a frame (20 ms in WavLM) and at most
    the window, or speech would go unheard.
    """

    def __init__(
        self,
        model,
        sampling_rate: float | None = None,
        window_s: float = WINDOW_SECONDS,
        hop_s: float = HOP_SECONDS,
        batch_size: int = BATCH,
        adapter=None,
        speech_gate: str | None = "auto",
    ):
        self.model, self.rate = model, model.config.sampling_rate
        self.sampling_rate = self.rate if sampling_rate is None else sampling_rate
        frame = samples_per_frame(model.config.backbone_config)
        self.window, self.hop = (n_samples(seconds, self.rate) for seconds in (window_s, hop_s))
        if not frame <= self.hop <= self.window:
            raise ValueError(
                f"window_s={window_s}, hop_s={hop_s}: the hop must be at least {frame / self.rate:g} s (one frame) and "
                "at most the window."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: classify at least one window at once.")
        self.batch_size = batch_size
        if adapter is not None and adapter.labels != model.config.labels:
            raise ValueError(f"The adapter has the labels {adapter.labels}, and the model {model.config.labels}.")
        self.adapter, self.speaker = adapter, None
        self.hear = Listener(model, speech_gate=speech_gate)
        self.resampler = self._resampler()
        self.timeline = Timeline([], [] if model.config.is_regression else model.config.labels)
        self.buffer, self.buffer_start = np.zeros(0, np.float32), 0  # what comes from sample `buffer_start` on
        self.pending: list[np.ndarray] = []  # chunks not joined to the buffer yet: they may be tiny, and many
        self.scale = 0.0  # full scale of the integers pushed so far
        self.n_arrived = 0  # samples at the model's rate, counted from the start of the recording
        self.next_start = 0  # sample at which the next window starts
        self.n_received, self.first_sample = 0, np.zeros(0, np.float32)
        self.is_flushed = self.is_finished = False  # no more samples come; no more segments do

    def push(self, chunk, speaker: str | None = None) -> list[Segment]:
        """Take (n,) samples, or (n, channels) of up to 8 channels, and return the segments that they complete.

        `speaker`: who speaks in the windows that end in it, for an `adapter`.

        Raises RecordingError for NaN or infinite samples (nothing of the chunk is taken), and for any other shape.
        """
        if self.is_flushed:
            raise RuntimeError("This stream is finished; start a new one with stream_timeline.")
        samples = self._checked(chunk)
        self.speaker = speaker
        if len(samples):
            self.n_received += len(samples)
            self.first_sample = self.first_sample if len(self.first_sample) else samples[:1]
            self._append(samples if self.resampler is None else self.resampler.resample_chunk(samples))
        return self._classify(self._complete_windows())

    def finish(self) -> list[Segment]:
        """The segments still due: the recording ends here. All of them together are in `timeline`."""
        if self.is_finished:
            return []
        if not self.n_received:
            raise RecordingError("recording: zero length. Nothing was pushed before finish.")
        if self.resampler is not None and not self.is_flushed:
            self._append(self.resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            if not self.n_arrived:  # too short for the filter
                self._append(self.first_sample)
        self.is_flushed = True
        segments = self._classify(self._complete_windows())
        n_covered = self.next_start - self.hop + self.window if self.next_start else 0
        if n_covered < self.n_arrived:
            segments += self._classify([max(0, self.n_arrived - self.window)])
        self.is_finished = True
        self.buffer = self.buffer[:0]
        return segments

    def _checked(self, chunk) -> np.ndarray:
        name = f"recording, at {self.n_received / self.sampling_rate:.2f} s"
        shape = np.shape(chunk)
        if len(shape) not in (1, 2) or (len(shape) == 2 and not 1 <= shape[1] <= MAX_CHANNELS):
            raise RecordingError(f"{name}: shape {shape}; push (n,) samples, or (n, channels) of up to {MAX_CHANNELS}.")
        if not shape[0]:
            return np.zeros(0, np.float32)
        samples = as_samples(chunk, name, self._full_scale(chunk))
        samples = mix(samples, 1) if samples.ndim == 2 else samples
        samples = samples.astype(np.promote_types(samples.dtype, np.float32))  # float16 has no number that large
        return samples.clip(-LARGEST, LARGEST).astype(np.float32)

    def _full_scale(self, chunk) -> float:
        """Of integers: the largest that any chunk so far called for, as silence tells nothing of it."""
        chunk = as_array(chunk)
        if chunk.dtype.kind == "i" and chunk.size:
            self.scale = max(self.scale, integer_scale(chunk))
        return self.scale

    def _resampler(self):
        check_rate(self.sampling_rate)
        if self.sampling_rate == self.rate:
            return None
        if soxr is None:
            raise ImportError(f"Converting {self.sampling_rate} Hz to {self.rate} Hz needs soxr: pip install soxr")
        return soxr.ResampleStream(self.sampling_rate, self.rate, 1, dtype="float32")

    def _append(self, samples: np.ndarray) -> None:
        self.pending.append(samples)
        self.n_arrived += len(samples)

    def _complete_windows(self) -> list[int]:
        """Starts of the windows that lie wholly within what has arrived and were not classified yet."""
        starts = []
        while self.next_start + self.window <= self.n_arrived:
            starts.append(self.next_start)
            self.next_start += self.hop
        return starts

    @torch.no_grad()
    def _classify(self, starts: list[int]) -> list[Segment]:
        if not starts:
            return []
        self.buffer = np.concatenate([self.buffer, *self.pending])
        self.pending = []
        segments = []
        try:
            with evaluating(self.model):
                for i in range(0, len(starts), self.batch_size):
                    segments += self._segments(starts[i : i + self.batch_size])
        except BaseException:  # out of memory, or Ctrl-C: the next call takes these windows up again
            self.next_start = min(self.next_start, starts[0])
            raise
        self.timeline.segments += segments
        # Should the recording end here, its last window would be moved back over samples heard before.
        unneeded = min(self.next_start, self.n_arrived - self.window) - self.buffer_start
        if unneeded > 0:
            self.buffer, self.buffer_start = self.buffer[unneeded:].copy(), self.buffer_start + unneeded
        return segments

    def _adapted(self, logits: torch.Tensor, cuts: list[np.ndarray], shares: list[float]) -> torch.Tensor:
        rows = []
        for cut, share, row in zip(cuts, shares, logits.numpy(), strict=True):
            act = self.adapter.learn if share and is_usable(cut, self.rate) else self.adapter.correct
            rows.append(row if is_silent(cut) else act(row, self.speaker))
        return torch.from_numpy(np.stack(rows)).float()

    def _segments(self, starts: list[int]) -> Iterator[Segment]:
        cuts = [self.buffer[start - self.buffer_start :][: self.window] for start in starts]
        output, shares = self.hear.forward(cuts), [self.hear.gate.share(cut) for cut in cuts]
        if self.timeline.labels and self.adapter is not None:
            output.logits = self._adapted(output.logits.float().cpu(), cuts, shares)
        for start, cut, heard in zip(starts, cuts, self.hear.told(output, shares), strict=True):
            span = (start / self.rate, (start + len(cut)) / self.rate)
            about = heard.emotion, heard.scores, level_db(cut), heard.speech_share, heard.attributes
            yield Segment(*span, *about)


class TimelineMixin:
    """Timelines of an `EdrlMeaForAudioClassification`."""

    def predict_timeline(self, recording, sampling_rate: float | None = None, **settings) -> Timeline:
        """Scores over time in windows of `window_s` seconds, one every `hop_s`, of a whole recording: an array, (n,) or
        with channels either way round, or what else [`load_recording`] takes. `settings` are those of
        [`TimelineStream`], and so is what raises."""
        if has_own_rate(recording):
            sampling_rate = self.config.sampling_rate
            recording = load_recording(recording, sampling_rate)
        elif isinstance(recording, Mapping):
            recording = recording["array"]
        stream = TimelineStream(self, sampling_rate, **settings)
        if isinstance(recording, (list, tuple)) or as_array(recording).dtype.kind == "i":
            recording = as_samples(recording, "recording")  # one scale for all of it
        samples = as_array(recording)
        if samples.ndim == 2 and samples.shape[0] <= samples.shape[1]:
            samples = samples.T
        block = max(1, int(BLOCK_SECONDS * stream.sampling_rate))
        for start in range(0, len(samples) if samples.ndim else 1, block):
            stream.push(samples[start : start + block] if samples.ndim else samples)
        stream.finish()
        return stream.timeline

    def stream_timeline(self, sampling_rate: float | None = None, **settings) -> TimelineStream:
        """The same from chunks as they come: `push(chunk)` gives new segments, `finish()` the last."""
        return TimelineStream(self, sampling_rate, **settings)


def n_samples(seconds: float, rate: int) -> int:
    return round(seconds * rate) if math.isfinite(seconds) else 0


def level_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(max(np.mean(np.square(samples, dtype=np.float64)), SILENCE)))
