"""What a recording costs in every runtime that a user might pick: processor time on one thread, in one run.

    python scripts/benchmark_inference.py checkpoints/edrl-mea-compact --recordings EMODB/wav
    python scripts/benchmark_inference.py wavlm-base --tables lengths --seconds 1 5 20

Tables: `recordings` (of distinct lengths, sorted by length: first and second pass), `lengths` (one recording at a time,
no two of quite the same length), `pipeline` (files to scores, decoding included), `timeline` (in passes of the backbone
over the same audio), `memory` (what a recording adds to the loaded model). `wavlm-base` is that shape with random
weights. Without --recordings, speech is synthesized by espeak-ng.

Every contender is a process of its own and gets the same batches. They take turns, so that other work on the machine
meets all alike: trust the ratios, of the first contender's time to each. What a contender cannot do is its row.
`stock` is transformers' classifier on the same backbone (Whisper's pads every recording to 30 s); `onnx`, `int8` and
`openvino` run exported graphs.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForAudioClassification,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperFeatureExtractor,
    pipeline,
)
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation
from modeling_edrl_mea import EdrlMeaForAudioClassification, load_recording, onnx_export  # noqa: E402
from modeling_edrl_mea.prepared_weights import project  # noqa: E402
from modeling_edrl_mea.recordings import SAMPLING_RATE, find_audio  # noqa: E402
from train.data.files import write_json  # noqa: E402
from train.evaluation.markdown import markdown_table  # noqa: E402

RUNTIMES = ["float32", "bfloat16", "compiled", "onnx", "openvino"]
CONTENDERS = [f"{kind} {runtime}" for kind in ("stock", "ours") for runtime in RUNTIMES] + ["ours int8"]
REFERENCE = "ours float32"  # whose labels the others are held against
TABLES = ["recordings", "lengths", "pipeline", "timeline", "memory"]
BASE = "wavlm-base"
EMOTIONS = dict(enumerate(["anger", "happiness", "neutral", "sadness"]))
TURN = 8  # batches
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
ANSWER = "answer: "  # what exporters print besides is not one

Classify = Callable[[list], list[int]]  # a batch of waveforms, or of files, to their labels


def our_model(name: str) -> EdrlMeaForAudioClassification:
    torch.manual_seed(0)
    if name == BASE:
        return EdrlMeaForAudioClassification.from_backbone(WavLMConfig(), id2label=EMOTIONS).eval()
    return EdrlMeaForAudioClassification.from_pretrained(name).eval()


def stock_model(name: str) -> tuple[torch.nn.Module, object]:
    """transformers' classifier, with our backbone's weights, and its feature extractor."""
    ours = our_model(name)
    config = ours.config.backbone_config
    config.num_labels = len(EMOTIONS)
    attention = "sdpa" if config.model_type == "whisper" else "eager"  # all that transformers has
    model = AutoModelForAudioClassification.from_config(config, attn_implementation=attention).eval()
    if config.model_type == "whisper":
        model.encoder.load_state_dict(ours.backbone.encoder.state_dict())
        return model, WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    model.base_model.load_state_dict(ours.backbone.state_dict(), strict=False)
    # Without a mask, as in WavLM-base's own preprocessor config: its fastest way.
    normalizes = ours.config.normalize_waveform
    return model, Wav2Vec2FeatureExtractor(do_normalize=normalizes, return_attention_mask=False)


def contender(model_name: str, name: str, graphs: Path) -> Classify:
    kind, runtime = name.split()
    if runtime == "pipeline" and not shutil.which("ffmpeg"):
        raise RuntimeError("pipeline decodes files by the ffmpeg program, and there is none")
    model, extract = stock_model(model_name) if kind == "stock" else (our_model(model_name), None)
    extract = extract or model.feature_extractor()
    if runtime == "pipeline":
        classify_files = pipeline("audio-classification", model=model, feature_extractor=extract, device="cpu")
        return lambda files: [model.config.label2id[scores[0]["label"]] for scores in classify_files(files)]
    padding = "max_length" if isinstance(extract, WhisperFeatureExtractor) else True

    def prepare(waveforms: list) -> dict[str, torch.Tensor]:
        return dict(extract(waveforms, sampling_rate=SAMPLING_RATE, padding=padding, return_tensors="pt"))

    if runtime in ("onnx", "int8", "openvino"):
        if runtime == "openvino":
            import openvino  # noqa: F401 (before the work, where there is none)
        example = prepare([noise(1.5), noise(1.5)])
        export = partial(onnx_export.export, model) if kind == "ours" else partial(export_stock, model, example)
        run = graph(written(graphs / f"{kind}.onnx", export), runtime)
        return lambda waveforms: run(as_arrays(prepare(waveforms))).argmax(-1).tolist()
    dtype = torch.bfloat16 if runtime == "bfloat16" else torch.float32
    run = torch.compile(model, dynamic=True) if runtime == "compiled" else model.to(dtype)

    @torch.inference_mode()
    def classify(waveforms: list) -> list[int]:
        inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in prepare(waveforms).items()}
        return run(**inputs).logits.argmax(-1).tolist()

    return classify


def graph(path: Path, runtime: str) -> Callable[[dict], np.ndarray]:
    """Inputs to logits."""
    if runtime == "int8":
        onnx_export.quantize(path, path := path.with_stem("int8"))
    if runtime == "openvino":
        import openvino

        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1})
        return lambda inputs: compiled(inputs)["logits"]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["logits"], inputs)[0]


def written(path: Path, export: Callable[[Path], None]) -> Path:
    """A graph, by the first of the contenders that needs it."""
    if not path.exists():
        export(path)
    return path


def export_stock(model, example: dict[str, torch.Tensor], path: Path) -> None:
    ((name, value),) = example.items()
    dynamic = {0: torch.export.Dim.DYNAMIC} | ({1: torch.export.Dim.DYNAMIC} if value.ndim == 2 else {})
    names = {"input_names": [name], "output_names": ["logits"]}
    torch.onnx.export(model, kwargs=example, dynamic_shapes={name: dynamic}, dynamo=True, **names).save(path)


def as_arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: x.numpy() if x.is_floating_point() else x.long().numpy() for key, x in inputs.items()}


def noise(seconds: float) -> np.ndarray:
    n_samples = int(seconds * SAMPLING_RATE)
    return (0.1 * np.random.default_rng(0).standard_normal(n_samples)).astype(np.float32)


class Server:
    """A contender in its process. Its public methods are what can be asked of it."""

    def __init__(self, args):
        name, graphs = args.serve
        self._model_name, self._runtime = args.model, name.split()[1]
        self._classify = contender(args.model, name, Path(graphs))
        self._size = args.batch_size
        files = chosen_files(args)
        pairs = sorted(zip(map(load_recording, files), files, strict=True), key=lambda pair: len(pair[0]))
        self._waveforms, self._files = (list(column) for column in zip(*pairs, strict=True))

    def recordings(self, start: int, end: int) -> tuple[float, list[int]]:
        """Seconds of processor time, and the labels, of recordings `start` to `end`."""
        given = (self._files if self._runtime == "pipeline" else self._waveforms)[start:end]
        batches = [given[i : i + self._size] for i in range(0, len(given), self._size)]
        return timed(lambda: sum(map(self._classify, batches), []))

    def length(self, seconds: float) -> tuple[float, list[int]]:
        return timed(lambda: self._classify([noise(seconds)]))

    def timeline(self, seconds: float) -> tuple[float, float]:
        """Seconds that a timeline takes, and one pass of the backbone over the same."""
        model = our_model(self._model_name).to(getattr(torch, self._runtime))
        call = np.concatenate(self._waveforms)[: int(seconds * SAMPLING_RATE)]
        whole = torch.from_numpy(call)[None].to(model.dtype)
        with torch.inference_mode():
            model.edrl_mea.layer_statistics(whole)  # or the first one would cost the preparation of the weights too
            one_pass, _ = timed(lambda: model.edrl_mea.layer_statistics(whole))
        return timed(lambda: model.predict_timeline(call, SAMPLING_RATE, speech_gate=None))[0], one_pass

    def memory(self, seconds: float) -> tuple[float]:
        """MiB that a recording adds after a short one, which lets libraries settle and weights be prepared."""
        self._classify([noise(0.5)])
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or what loading left free would hide what the recording takes
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
        before = resident_mib("VmRSS")
        self._classify([noise(seconds)])
        return (resident_mib("VmHWM") - before,)


def timed(run: Callable) -> tuple[float, object]:
    """Seconds of processor time, that of child processes (FFmpeg) too, and what came out."""
    start = processor_seconds()
    result = run()
    return processor_seconds() - start, result


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def resident_mib(field: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def serve(args) -> None:
    server = Server(args)
    print(ANSWER + "[]", flush=True)  # ready
    for line in sys.stdin:
        task, *numbers = json.loads(line)
        print(ANSWER + json.dumps(getattr(server, task)(*numbers)), flush=True)


class Contender:
    """The other end; `failure` says why it answers no more."""

    def __init__(self, name: str, graphs: str):
        command = [sys.executable, *sys.argv, "--serve", name, graphs]
        self.name, self.failure, self.log = name, None, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | ONE_THREAD,
        )
        self.answer()

    def ask(self, request: list):
        """Its answer; None where it has failed."""
        if self.failure:
            return None
        with suppress(BrokenPipeError):  # it has ended: then there is no answer
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self):
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        status = self.process.wait()
        self.log.seek(0)
        said = [line.strip() for line in self.log if line.strip()]
        self.failure = said[-1][:100] if said else f"exit status {status}"
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def print_table(
    title: str, names: list[str], columns: dict[str, list[list]], cell: Callable, warm_up: bool
) -> list[list]:
    """`columns`: the requests of each, put to one contender after the other; `cell(answers, name, column)` is text.
    Returns what it prints."""
    answers = {name: {column: [] for column in columns} for name in names}
    rows = []
    with ExitStack() as stack:
        graphs = stack.enter_context(tempfile.TemporaryDirectory())
        contenders = [Contender(name, graphs) for name in names]
        for one in contenders:
            stack.callback(one.end)
        for column, requests in columns.items():
            for turn, request in enumerate([*requests[:1], *requests] if warm_up else requests):
                for one in contenders:
                    answers[one.name][column] += [one.ask(request)][: turn >= warm_up]
        for one in contenders:
            cells = [f"fails: {one.failure}"] if one.failure else [cell(answers, one.name, key) for key in columns]
            rows.append([one.name, *cells, *[""] * (len(columns) - len(cells))])
    print(f"\n{title}\n\n{markdown_table(['', *columns], rows)}", flush=True)
    return [["", *columns], *rows]


def milliseconds(answers: dict, name: str, column: str) -> str:
    """Of one batch or recording, and the first contender's time to it."""
    first, spent = (sum(x[0] if x else np.nan for x in answers[one][column]) for one in (next(iter(answers)), name))
    n_recordings = sum(len(labels) for _, labels in answers[name][column])
    return f"{1e3 * spent / n_recordings:.1f} ms, {first / spent:.2f} ×"


def print_recordings(title: str, names: list[str], args) -> list[list]:
    n = len(chosen_files(args))
    step = TURN * args.batch_size
    requests = [["recordings", start, min(start + step, n)] for start in range(0, n, step)]
    agreement = f"labels of {REFERENCE}"

    def cell(answers: dict, name: str, column: str) -> str:
        if column != agreement:
            return milliseconds(answers, name, column)
        if name.startswith("stock") or not answers.get(REFERENCE, {}).get("second pass"):
            return ""
        found, expected = (sum((x[1] for x in answers[one]["second pass"]), []) for one in (name, REFERENCE))
        return f"{sum(map(int.__eq__, found, expected))} of {n}"

    columns = {"first pass": requests, "second pass": requests, agreement: []}
    return print_table(f"{title}: {n}, in batches of {args.batch_size}", names, columns, cell, warm_up=False)


def print_lengths(names: list[str], args) -> list[list]:
    def requests(seconds: float) -> list[list]:
        return [["length", seconds * share] for share in np.linspace(0.95, 1.05, args.repeats)]

    columns = {f"{seconds:g} s": requests(seconds) for seconds in args.seconds}
    return print_table("One recording at a time, within 5% of", names, columns, milliseconds, warm_up=True)


def print_timeline(args) -> list[list]:
    def passes(answers: dict, name: str, column: str) -> str:
        whole, one_pass = (sum(times) for times in zip(*answers[name][column], strict=True))
        return f"{whole / one_pass:.2f} passes, {whole / args.repeats:.2f} s"

    seconds = max(args.seconds)
    columns = {f"{seconds:g} s, windows of 3 s every second": [["timeline", seconds]] * args.repeats}
    names = [name for name in (REFERENCE, "ours bfloat16") if name in args.contenders]
    return print_table("A timeline", names, columns, passes, warm_up=True)


def print_memory(names: list[str], args) -> list[list]:
    def mebibytes(answers: dict, name: str, column: str) -> str:
        return f"{answers[name][column][0][0]:.0f} MiB"

    columns = {f"{seconds:g} s": [["memory", seconds]] for seconds in args.seconds}
    return print_table("Memory over the loaded model, for a recording of", names, columns, mebibytes, warm_up=False)


def chosen_files(args) -> list[str]:
    """So many recordings of a folder (any depth)."""
    files = find_audio(Path(args.recordings))
    if not files:
        raise SystemExit(f"no audio file under {args.recordings}")
    return [str(files[i]) for i in np.random.default_rng(0).permutation(len(files))[: args.n_recordings]]


@torch.inference_mode()
def gigaflops(dtype: torch.dtype, size: int = 1024, repeats: int = 10) -> float:
    """The best of some matrix products, too large for overhead to count: no program does the same arithmetic faster."""
    layer, x = torch.nn.Linear(size, size, bias=False).to(dtype).eval(), torch.randn(size, size, dtype=dtype)
    return 2e-9 * size**3 / min(timed(lambda: project(layer, x))[0] for _ in range(repeats))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"directory of a model, or {BASE}")
    parser.add_argument("--recordings", help="folder of audio files")
    parser.add_argument("--n_recordings", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 2.5, 5, 10, 20])
    parser.add_argument("--repeats", type=int, default=8, help="recordings of each length")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--report", type=Path, help="write the tables here as JSON")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    if args.serve:
        return serve(args)
    peaks = ", ".join(f"{gigaflops(getattr(torch, name)):.0f} GFLOP/s in {name}" for name in RUNTIMES[:2])
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{args.model}, one thread, {capability}, torch {torch.__version__}; this machine's matrix products: {peaks}")
    with tempfile.TemporaryDirectory() as folder:
        if not args.recordings:
            subprocess.run([sys.executable, ROOT / "scripts/make_demo_corpus.py", folder], check=True)
            sys.argv += ["--recordings", folder]
            args.recordings = folder
        in_table = {
            "recordings": lambda: print_recordings("Recordings sorted by length", args.contenders, args),
            "lengths": lambda: print_lengths(args.contenders, args),
            "pipeline": lambda: print_recordings("Files through `pipeline`", ["stock pipeline", "ours pipeline"], args),
            "timeline": lambda: print_timeline(args),
            "memory": lambda: print_memory(args.contenders, args),
        }
        tables = {name: act() for name, act in in_table.items() if name in args.tables}
    if args.report:
        write_json(args.report, {"machine": f"{capability}, {peaks}", "tables": tables})


if __name__ == "__main__":
    main()
