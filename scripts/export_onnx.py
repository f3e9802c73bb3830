"""Export a trained model to ONNX, with batch and length left open, and an int8 variant:

    python scripts/export_onnx.py MODEL_DIR OUT --recordings FOLDER
    python scripts/export_onnx.py MODEL_DIR OUT --corpus emodb=EMODB --speakers 03 08

Writes OUT/model.onnx and OUT/model_int8.onnx. Both hold the whole chain from normalised waveform to probabilities,
alignment included, and what a caller needs to know in their metadata: labels, sampling rate, whether waveforms are
normalised, fewest samples. `scripts/classify_onnx.py` shows their use without torch. Needs `pip install -e ".[onnx]"`.

Inputs: input_values (batch, samples) float32, attention_mask (batch, samples) int64, 1 within each recording.
Outputs: logits and probabilities (batch, emotions), speech_embedding, and aligned_embedding where the model has one.

The export is compared with the model on recordings (noise where none are given) and fails beyond 1e-4. `--corpus`
prints what int8 costs in UAR. A recording is one window here, whatever its length: up to the model's
`max_window_seconds` that is what the model does; longer ones are for the caller to cut.
"""

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation
from modeling_edrl_mea import EdrlMeaForAudioClassification, load_recording  # noqa: E402
from modeling_edrl_mea.frames import longest_input  # noqa: E402
from modeling_edrl_mea.recordings import find_audio  # noqa: E402
from modeling_edrl_mea.stock_encoders import StockEncoder  # noqa: E402
from modeling_edrl_mea.wavlm import LengthAwareWavLM  # noqa: E402

OPSET = 20  # the first with Gelu
TOLERANCE = 1e-4  # of probabilities, on real recordings
EXAMPLE_SECONDS = 1.5  # of the recordings that the graph is traced with
CHECKED_RECORDINGS = 16


class WaveformClassifier(nn.Module):
    """The model from waveforms to probabilities, with no choice left that depends on values."""

    def __init__(self, model: EdrlMeaForAudioClassification):
        super().__init__()
        self.model = model
        has_alignment = model.alignment is not None and model.alignment.is_fitted
        self.outputs = ["logits", "probabilities", "speech_embedding"] + ["aligned_embedding"] * has_alignment

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        # Asking WavLM for attentions takes the plain formula, which exports; unused, they are not in the graph.
        plainly = isinstance(self.model.backbone, LengthAwareWavLM)
        frames = self.model.backbone(input_values, attention_mask, output_attentions=plainly)
        pooling = self.model.edrl_mea.pooling
        statistics = pooling.statistics(pooling.moments(frames.hidden_states, frames.frame_mask))
        output = self.model(layer_statistics=statistics)
        output.logits = self.model.without_voice_uniform(output.logits, input_values, attention_mask)
        output["probabilities"] = output.logits.softmax(-1)
        return tuple(output[name] for name in self.outputs)


def export(model: EdrlMeaForAudioClassification, path: Path) -> None:
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
        sampling_rate=str(extractor.sampling_rate),
        do_normalize=str(int(extractor.do_normalize)),
        minimum_length=str(extractor.minimum_length),
        max_window_seconds=str(model.config.max_window_seconds),
    )
    program.save(path)


def quantize(path: Path, quantized: Path) -> None:
    """Weights of the backbone's linear layers as int8, activations quantised as they come.

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


def prepare(model: EdrlMeaForAudioClassification, waveforms: list[np.ndarray]) -> dict[str, np.ndarray]:
    rate = model.config.sampling_rate
    inputs = model.feature_extractor()(waveforms, sampling_rate=rate, return_tensors="np")
    return {"input_values": inputs["input_values"], "attention_mask": inputs["attention_mask"].astype(np.int64)}


def largest_difference(model: EdrlMeaForAudioClassification, path: Path, waveforms: list[np.ndarray]) -> float:
    """Between the model's probabilities and the graph's, over recordings alone and all in one batch."""
    run, worst = session(path), 0.0
    for batch in [*([waveform] for waveform in waveforms), waveforms]:
        inputs = prepare(model, batch)
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.softmax(-1)
        (found,) = run.run(["probabilities"], inputs)
        worst = max(worst, float(np.abs(found - expected.numpy()).max()))
    return worst


def some_recordings(model: EdrlMeaForAudioClassification, folder: str | None) -> list[np.ndarray]:
    """So many recordings of a folder, or noise of different lengths; none longer than a window."""
    rate = model.config.sampling_rate
    generator = np.random.default_rng(0)
    if folder is None:
        lengths = generator.uniform(0.1, 5, CHECKED_RECORDINGS)
        return [(0.1 * generator.standard_normal(int(length * rate))).astype(np.float32) for length in lengths]
    files = find_audio(Path(folder))
    if not files:
        raise SystemExit(f"error: no audio file under {folder}")
    chosen = generator.permutation(len(files))[:CHECKED_RECORDINGS]
    return [load_recording(files[i], rate)[: int(model.config.max_window_seconds * rate)] for i in chosen]


def measure(model: EdrlMeaForAudioClassification, paths: dict[str, Path], args) -> None:
    """Print UAR of the model and of each graph on a corpus, and how many answers differ from the model's."""
    from train.data.corpora import load_corpus
    from train.evaluation.metrics import uar

    corpus = load_corpus(args.corpus, label_scheme=args.label_scheme)
    if args.speakers:
        corpus = corpus.filter(lambda row: row["speaker"] in args.speakers)
    names = corpus.features["label"].names
    references = np.array([model.config.labels.index(names[label]) for label in corpus["label"]])
    inputs = [prepare(model, [load_recording(audio)]) for audio in corpus["audio"]]
    with torch.no_grad():
        tensors = ({name: torch.from_numpy(value) for name, value in row.items()} for row in inputs)
        answers = {"model": np.array([int(model(**row).logits.argmax()) for row in tensors])}
    for name, path in paths.items():
        run = session(path)
        answers[name] = np.array([int(run.run(["logits"], row)[0].argmax()) for row in inputs])
    print(f"\n{len(references)} recordings, {len(set(corpus['speaker']))} speakers of {args.corpus}")
    print(f"{'':14}{'UAR %':>8}{'cost':>8}{'answers changed':>18}")
    baseline = uar(references, answers["model"])
    for name, found in answers.items():
        value = uar(references, found)
        changed = int((found != answers["model"]).sum())
        print(f"{name:14}{100 * value:8.2f}{100 * (baseline - value):8.2f}{changed:18d}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--recordings", help="folder of recordings to compare on")
    parser.add_argument("--corpus", help="labelled corpus to measure UAR on, as train/run.py takes it")
    parser.add_argument("--label_scheme", default="four_emotions")
    parser.add_argument("--speakers", nargs="+", help="of the corpus; all by default")
    args = parser.parse_args(argv)

    model = EdrlMeaForAudioClassification.from_pretrained(args.model).float().eval()
    args.output.mkdir(parents=True, exist_ok=True)
    paths = {"onnx": args.output / "model.onnx", "onnx int8": args.output / "model_int8.onnx"}
    try:
        export(model, paths["onnx"])
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    quantize(*paths.values())
    waveforms = some_recordings(model, args.recordings)
    for name, path in paths.items():
        difference = largest_difference(model, path, waveforms)
        size = path.stat().st_size / 2**20
        print(f"{name}: {path}, {size:.1f} MiB, probabilities within {difference:.1e} on {len(waveforms)} recordings")
        if name == "onnx" and not difference <= TOLERANCE:
            raise SystemExit(f"error: {path} differs from the model by {difference:.1e}, more than {TOLERANCE:g}.")
    if args.corpus:
        measure(model, paths, args)


if __name__ == "__main__":
    main()
