"""Where somebody speaks, so that no emotion is named where there is none to hear."""

import functools
from collections.abc import Callable

import numpy as np

from .recordings import SHORTEST_SECONDS, is_silent, resample

RATE = 16_000  # Hz, that gates hear at
FRAME = 512  # samples of one decision: 32 ms, which Silero's network was trained on
SPOKEN = 0.5  # Silero's probability from which a frame is speech, as its own functions have it
LEAST_SECONDS = SHORTEST_SECONDS  # of speech in a window, all together, that make an utterance
ABOVE_FLOOR_DB = 10.0  # speech's frames over the quietest tenth of a window; steady noise varies by 1 to 3 dB
FAINTEST_FRAME_DB = -65.0  # of full scale

Frames = Callable[[np.ndarray], np.ndarray]


class SpeechGate:
    """Says how much of a waveform is speech.

    Args:
        kind: "silero": the network of the package silero-vad, which ships it (`pip install "edrl-mea[speech]"`).
            "energy": ours, of loudness alone; it tells silence and steady noise from speech, but neither barks, steps
            nor music. "auto": the first where it is installed, else the second. None: all that is not silent.
        sampling_rate: Hz of the waveforms.

    Raises ValueError for another kind, ImportError where "silero" is not installed.
    """

    def __init__(self, kind: str | None = "auto", sampling_rate: int = RATE):
        makers = {"silero": silero, "energy": lambda: loud_frames, None: lambda: None}
        if kind not in ("auto", *makers):
            raise ValueError(f"speech_gate={kind!r} is none of {['auto', *makers]}.")
        self.kind = _best() if kind == "auto" else kind
        self.frames: Frames | None = makers[self.kind]()
        self.sampling_rate = sampling_rate

    def share(self, waveform: np.ndarray) -> float:
        """Of the samples (n,), how many are speech, 0 to 1; 0 where speech is too short to be an utterance."""
        if is_silent(waveform):
            return 0.0
        if self.frames is None:
            return 1.0
        spoken = self.frames(resample(waveform, self.sampling_rate, RATE))
        return float(spoken.mean()) if spoken.sum() * FRAME >= LEAST_SECONDS * RATE else 0.0


def _best() -> str:
    try:
        silero()
    except ImportError:
        return "energy"
    return "silero"


@functools.cache
def silero() -> Frames:
    """Importing silero-vad sets torch to one thread, which is undone: its network does not use torch."""
    import torch

    n_threads = torch.get_num_threads()
    try:
        import onnxruntime  # noqa: F401  silero-vad imports it later
        from silero_vad import load_silero_vad
    except ImportError as error:
        raise ImportError('speech_gate="silero" needs silero-vad: pip install "edrl-mea[speech]"') from error
    finally:
        torch.set_num_threads(n_threads)
    network = load_silero_vad(sequence=True)
    return lambda waveform: network.audio_forward(waveform) >= SPOKEN


def loud_frames(waveform: np.ndarray) -> np.ndarray:
    """(frames,) whether each stands out of the quietest tenth of them."""
    padded = np.pad(waveform, (0, -len(waveform) % FRAME)).reshape(-1, FRAME)
    level_db = 10 * np.log10(np.maximum(padded.var(1, dtype=np.float64), 1e-12))
    return level_db > max(np.percentile(level_db, 10) + ABOVE_FLOOR_DB, FAINTEST_FRAME_DB)
