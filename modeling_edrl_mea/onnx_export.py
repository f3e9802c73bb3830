"""Export of a trained model to ONNX, with batch and length left open, and an int8 variant: `edrl-mea export`.

Both graphs hold the whole chain from normalized waveform to probabilities, alignment included, and what a caller needs
to know in their metadata: labels, sampling rate, whether waveforms are normalized, fewest samples. The repository's
scripts/classify_onnx.py shows their use without torch.

Inputs: input_values (batch, samples) float32, attention_mask (batch, samples) int64, 1 within each recording.
Outputs, as far as the model has them: logits and probabilities (batch, emotions), attributes (batch, attributes) on
their scales, speech_embedding and aligned_embedding.

A recording is one window here, whatever its length: up to the model's `max_window_seconds` that is what the model does;
longer ones are for the caller to cut.
"""

import json
import logging
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .frames import longest_input
from .recordings import RecordingError, find_audio, load_recording
from .speech_embedding import frame_moments
from .stock_encoders import StockEncoder
from .wavlm import LengthAwareWavLM

LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20  # the first with Gelu
TOLERANCE = 1e-4  # of probabilities, on real recordings
EXAMPLE_SECONDS = 1.5  # of the recordings that the graph is traced with
CHECKED_RECORDINGS = 16


@dataclass
class Graph:
    """An exported graph on the disk."""

    path: Path
    mebibytes: float
    difference: float  # the largest between its probabilities, or attributes alone, and the model's


def export_to_folder(model, folder: str | Path, recordings: str | None = None) -> list[Graph]:
    """Write model.onnx and model_int8.onnx, and compare both with the model.

    Args:
        recordings: folder of recordings to compare on; noise by default.

    Raises:
        ImportError: a library is missing, before anything is done. ValueError: a backbone that does not export, or a
            float32 graph that differs from the model by more than 1e-4.
    """
    require_libraries()
    waveforms = some_recordings(model, recordings)
    paths = Path(folder) / "model.onnx", Path(folder) / "model_int8.onnx"
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    export(model, paths[0])
    quantize(*paths)
    graphs = [Graph(path, path.stat().st_size / 2**20, largest_difference(model, path, waveforms)) for path in paths]
    if not graphs[0].difference <= TOLERANCE:
        raise ValueError(f"{paths[0]} differs from the model by {graphs[0].difference:.1e}, more than {TOLERANCE:g}.")
    return graphs


def require_libraries() -> None:
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ImportError(f"Export needs {', '.join(missing)}: pip install edrl-mea[onnx]")


class WaveformClassifier(nn.Module):
    """The model from waveforms to probabilities, with no choice left that depends on values."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        has_alignment = model.alignment is not None and model.alignment.is_fitted
        self.outputs = [] if model.config.is_regression else ["logits", "probabilities"]
        self.outputs += ["attributes"] * bool(model.config.n_attributes) + ["speech_embedding"]
        self.outputs += ["aligned_embedding"] * has_alignment

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        # Asking WavLM for attentions takes the plain formula, which exports; unused, they are not in the graph.
        plainly = isinstance(self.model.backbone, LengthAwareWavLM)
        frames = self.model.backbone(input_values, attention_mask, output_attentions=plainly)
        statistics = frame_moments(frames.hidden_states, frames.frame_mask).statistics()
        output = self.model(layer_statistics=statistics)
        self.model.hear_nothing_in_silence(output, input_values, attention_mask)
        output["probabilities"] = output.logits.softmax(-1)
        return tuple(output[name] for name in self.outputs)


def export(model, path: Path) -> None:
    """Write the graph, with the settings that its inputs need.

    Raises ValueError for a backbone whose batches are taken apart by length, which no graph can do.
    """
    backbone_config = model.config.backbone_config
    if isinstance(model.backbone, StockEncoder):
        raise ValueError(
            f"A {backbone_config.model_type} backbone does not export: padding changes what it says, and a graph "
            "cannot take a batch apart. WavLM and Whisper do."
        )
    classifier = WaveformClassifier(model).eval()
    n_samples = int(EXAMPLE_SECONDS * model.config.sampling_rate)
    mask = torch.ones(2, n_samples, dtype=torch.long)
    mask[1, n_samples // 2 :] = 0
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples", max=longest_input(backbone_config))}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="# The axis name")  # both inputs share their axes
    program = torch.onnx.export(
        classifier,
        (0.1 * torch.randn(2, n_samples), mask),
        input_names=["input_values", "attention_mask"],
        output_names=classifier.outputs,
        dynamic_shapes={"input_values": dynamic, "attention_mask": dynamic},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    extractor = model.feature_extractor()
    program.model.metadata_props.update(
        labels=json.dumps(model.config.labels),
        attribute_names=json.dumps(model.config.attribute_names or []),
        sampling_rate=str(extractor.sampling_rate),
        do_normalize=str(int(extractor.do_normalize)),
        minimum_length=str(extractor.minimum_length),
        max_window_seconds=str(model.config.max_window_seconds),
    )
    program.save(path)


def quantize(path: Path, quantized: Path) -> None:
    """Weights of the backbone's linear layers as int8, activations quantized as they come.

    Convolutions stay float32, which onnxruntime's int8 kernels do not speed up on a CPU; so do embedding, alignment
    and classifier: they are a thousandth of the work, and PLS rotations do not survive rounding.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path).graph
    chosen = [node.name for node in graph.node if node.op_type == "MatMul" and ".backbone" in origin(node)]
    quantize_dynamic(path, quantized, per_channel=True, weight_type=QuantType.QInt8, nodes_to_quantize=chosen)


def origin(node) -> str:
    """The modules that a node was exported from."""
    return next((entry.value for entry in node.metadata_props if entry.key == "namespace"), "")


def session(path: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def prepare(model, waveforms: list[np.ndarray]) -> dict[str, np.ndarray]:
    rate = model.config.sampling_rate
    inputs = model.feature_extractor()(waveforms, sampling_rate=rate, return_tensors="np")
    return {"input_values": inputs["input_values"], "attention_mask": inputs["attention_mask"].astype(np.int64)}


def largest_difference(model, path: Path, waveforms: list[np.ndarray]) -> float:
    """Between the model's probabilities, or attributes alone, and the graph's, over recordings alone and in a batch."""
    run, worst, rates = session(path), 0.0, model.config.is_regression
    for batch in [*([waveform] for waveform in waveforms), waveforms]:
        inputs = prepare(model, batch)
        with torch.no_grad():
            output = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        expected = output.attributes if rates else output.logits.softmax(-1)
        (found,) = run.run(["attributes" if rates else "probabilities"], inputs)
        worst = max(worst, float(np.abs(found - expected.numpy()).max()))
    return worst


def some_recordings(model, folder: str | None) -> list[np.ndarray]:
    """So many recordings of a folder, or noise of different lengths; none longer than a window."""
    rate = model.config.sampling_rate
    generator = np.random.default_rng(0)
    if folder is None:
        lengths = generator.uniform(0.1, 5, CHECKED_RECORDINGS)
        return [(0.1 * generator.standard_normal(int(length * rate))).astype(np.float32) for length in lengths]
    files = find_audio(Path(folder))
    if not files:
        raise RecordingError(f"{folder} holds no audio file.")
    chosen = generator.permutation(len(files))[:CHECKED_RECORDINGS]
    return [load_recording(files[i], rate)[: int(model.config.max_window_seconds * rate)] for i in chosen]
