"""Classify recordings by an exported model, without torch: onnxruntime, numpy, soundfile and soxr are all it needs.

    python scripts/classify_onnx.py OUT/model.onnx a.wav b.flac

Copy it into your own program together with modeling_edrl_mea/recordings.py, which reads the files. The model's metadata
says how it wants its input.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

# The file alone, not its package, which needs torch; or a copy of it beside this one.
sys.path.append(str(Path(__file__).resolve().parents[1] / "modeling_edrl_mea"))
from recordings import RecordingError, load_recording  # noqa: E402


class OnnxClassifier:
    """Recordings to probabilities by label."""

    def __init__(self, path: str):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        settings = self.session.get_modelmeta().custom_metadata_map
        self.labels = json.loads(settings["labels"])
        self.sampling_rate = int(settings["sampling_rate"])
        self.do_normalize = bool(int(settings["do_normalize"]))
        self.minimum_length = int(settings["minimum_length"])

    def __call__(self, waveforms: list[np.ndarray]) -> list[dict[str, float]]:
        """`waveforms`: (n,) float32 at full scale ±1 and `self.sampling_rate` Hz, of any lengths."""
        prepared = [self.prepare(waveform) for waveform in waveforms]
        lengths = np.array([len(waveform) for waveform in prepared])
        padded = np.stack([np.pad(waveform, (0, lengths.max() - len(waveform))) for waveform in prepared])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        (rows,) = self.session.run(["probabilities"], {"input_values": padded, "attention_mask": mask})
        return [dict(zip(self.labels, row.tolist(), strict=True)) for row in rows]

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        if not len(waveform) or not np.isfinite(waveform).all():
            raise ValueError("a recording with no samples, or with NaN or infinite ones")
        waveform = waveform.astype(np.float64)
        if self.do_normalize:
            waveform = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
        return np.pad(waveform, (0, max(0, self.minimum_length - len(waveform)))).astype(np.float32)

    def read(self, path: str) -> np.ndarray:
        """Any file that `load_recording` reads; RecordingError otherwise."""
        return load_recording(path, self.sampling_rate)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    classifier = OnnxClassifier(sys.argv[1])
    try:
        answers = classifier([classifier.read(path) for path in sys.argv[2:]])
    except RecordingError as error:
        raise SystemExit(f"error: {error}") from error
    for name, scores in zip(sys.argv[2:], answers, strict=True):
        print(name, "  ".join(f"{label} {score:.3f}" for label, score in sorted(scores.items(), key=lambda x: -x[1])))
