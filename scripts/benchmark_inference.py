"""Speed and memory at inference, against transformers' WavLM on the same weights and recordings, in one run.

    python scripts/benchmark_inference.py
    python scripts/benchmark_inference.py --model MODEL_DIR --recordings EMODB NEMO --corpus emodb=EMODB

Tables: `latency` (one recording at a time, and what the arithmetic alone would take on this machine), `mixed` (many
of different lengths, for each folder of `--recordings`), `pipeline` (a list of files through `pipeline`, arrays where
there are no recordings), `heads` (share of the time that EDRL, MEA and classifier take), `memory` (peak over the
loaded model, each in its own process), `uar` (what bfloat16 costs, on `--corpus`). Stock is transformers'
WavLMForSequenceClassification as its documentation uses it. Contenders take turns, so that other load on the
machine meets all alike: trust the ratios more than the times. Speed does not depend on what weights hold:
without --model they are random, in WavLM-base's shape.
"""

import argparse
import ctypes
import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForSequenceClassification, pipeline
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
import modeling_edrl_mea  # noqa: E402
from modeling_edrl_mea import load_recording  # noqa: E402
from modeling_edrl_mea.prepared_weights import project  # noqa: E402
from modeling_edrl_mea.recordings import SAMPLING_RATE, find_audio  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TABLES = ["latency", "mixed", "pipeline", "heads", "memory", "uar"]
EMOTIONS = dict(enumerate(["anger", "happiness", "neutral", "sadness"]))
BASELINE = "stock float32"
MEMORY_REPORT = "peak MiB over the loaded model:"
# Lengths in seconds when no recordings are given: EMO-DB's are log-normal with this median and spread.
MEDIAN_SECONDS, LOG_SPREAD, LONGEST_SECONDS = 2.6, 0.37, 9.0

Waveforms = list[np.ndarray]


def load(name: str, directory: str, whole_model: str | None) -> tuple[nn.Module, Wav2Vec2FeatureExtractor]:
    """Model and feature extractor of a contender like `ours bfloat16`; `directory` has the stock weights."""
    kind, dtype = name.split()
    if kind == "stock":
        model = WavLMForSequenceClassification.from_pretrained(directory, num_labels=len(EMOTIONS))
    elif whole_model:
        model = modeling_edrl_mea.EdrlMeaForAudioClassification.from_pretrained(whole_model)
    else:
        model_class = modeling_edrl_mea.EdrlMeaForAudioClassification
        model = model_class.from_backbone(directory, id2label=EMOTIONS, normalize_waveform=False)
    # As in WavLM-base's own preprocessor config; with it stock gets no mask, which is its fastest way.
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=kind == "ours")
    return model.eval().to(DTYPES[dtype]), extractor


def classifier(model: nn.Module, extractor: Wav2Vec2FeatureExtractor, device: str) -> Callable[[Waveforms], None]:
    """Runs one padded batch from waveforms to logits."""
    model.to(device)
    dtype = next(model.parameters()).dtype

    def classify(waveforms: Waveforms) -> None:
        inputs = extractor(waveforms, sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt").to(device)
        inputs["input_values"] = inputs["input_values"].to(dtype)
        with torch.inference_mode():
            model(**inputs)
        if device != "cpu":
            torch.cuda.synchronize()

    return classify


def seconds_of_turns(contenders: dict[str, Callable[[], None]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each contender in each turn; they alternate, after one turn that does not count."""
    times = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def print_times(title: str, times: dict[str, np.ndarray], audio_seconds: float, baseline: str) -> None:
    print(f"\n{title}\n{'':28}{'p50 ms':>10}{'p95 ms':>10}{'x real time':>13}{'x ' + baseline:>38}")
    for name, values in times.items():
        median = np.median(values)
        # The ratio is taken turn by turn: neighbors in time met the same load.
        ratio = np.median(times[baseline] / values)
        p95 = np.percentile(values, 95)
        print(f"{name:28}{1e3 * median:10.0f}{1e3 * p95:10.0f}{audio_seconds / median:13.1f}{ratio:38.2f}")
    sys.stdout.flush()


def print_latency(models: dict, args) -> None:
    for seconds in args.seconds:
        waveform = [noise(seconds)]
        runs = {n: partial(classifier(*m, args.device), waveform) for n, m in models.items()}
        times = seconds_of_turns(runs, args.repeats)
        print_times(f"One recording of {seconds:g} s at a time", times, seconds, BASELINE)
        if BASELINE in models:
            print_least_times(models[BASELINE][0], waveform[0], np.median(times[BASELINE]), args.device)


def print_least_times(stock: nn.Module, waveform: np.ndarray, seconds_of_stock: float, device: str) -> None:
    """What this machine's matrix products alone would take for stock's arithmetic: no program doing the same
    arithmetic can be faster."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # which cannot count in inference mode
        stock(torch.from_numpy(waveform)[None].to(device))
    for name, dtype in DTYPES.items():
        least = counter.get_total_flops() / flops_per_second(dtype, device)
        print(f"{'arithmetic alone ' + name:28}{1e3 * least:10.0f}{'':23}{seconds_of_stock / least:38.2f}", flush=True)


@torch.inference_mode()
def flops_per_second(dtype: torch.dtype, device: str, size: int = 2048, repeats: int = 20) -> float:
    """The best of some matrix products, too large for overhead to count, their weights packed beforehand on the CPU."""
    layer = nn.Linear(size, size, bias=False).to(device, dtype).eval()
    x, best = torch.randn(size, size, device=device, dtype=dtype), np.inf
    clock = time.process_time if device == "cpu" else time.perf_counter  # other work on the machine counts little
    for _ in range(repeats):
        start = clock()
        project(layer, x)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return 2 * size**3 / best


def print_mixed(models: dict, args, folder: str | None) -> None:
    waveforms = [load_recording(path) for path in files_of(folder, args.n_recordings)] or of_mixed_lengths(args)
    total = sum(map(len, waveforms)) / SAMPLING_RATE
    runs = {}
    for name, model in models.items():
        classify = classifier(*model, args.device)
        sizes = [1, args.batch_size] if name.startswith("stock") else [args.batch_size]
        for size in sizes:
            runs[f"{name}, batches of {size}"] = lambda f=classify, s=size: in_batches(f, waveforms, s)
        if name.startswith("ours"):
            by_length = sorted(waveforms, key=len)
            runs[f"{name}, sorted"] = lambda f=classify, w=by_length: in_batches(f, w, args.batch_size)
    times = seconds_of_turns(runs, max(2, args.repeats // 4))
    title = f"{len(waveforms)} recordings of mixed lengths ({folder or 'noise'}), {total:.0f} s in all"
    print_times(title, times, total, f"{BASELINE}, batches of {args.batch_size}")


def in_batches(classify: Callable[[Waveforms], None], waveforms: Waveforms, size: int) -> None:
    for i in range(0, len(waveforms), size):
        classify(waveforms[i : i + size])


def print_pipeline(models: dict, args, folder: str | None) -> None:
    waveforms = [load_recording(path) for path in files_of(folder, args.n_recordings)] or of_mixed_lengths(args)
    total = sum(map(len, waveforms)) / SAMPLING_RATE
    arrays = [{"raw": waveform, "sampling_rate": SAMPLING_RATE} for waveform in waveforms]
    given = files_of(folder, args.n_recordings) or arrays
    runs = {}
    for name, (model, extractor) in models.items():
        if name.startswith("ours"):
            extractor = modeling_edrl_mea.EdrlMeaFeatureExtractor()
        dtype = next(model.parameters()).dtype
        pipe = pipeline(
            "audio-classification", model=model, feature_extractor=extractor, dtype=dtype, device=args.device
        )
        runs[name] = lambda p=pipe: p([dict(one) if isinstance(one, dict) else one for one in given])
    times = seconds_of_turns(runs, max(2, args.repeats // 4))
    kind = f"files of {folder}" if folder else "arrays"
    print_times(f"`pipeline` over a list of {len(waveforms)} {kind}", times, total, BASELINE)


@torch.inference_mode()
def print_heads(models: dict, args) -> None:
    """What comes after the pooled statistics, against the whole, for one recording of 1 s and one of 5 s."""
    print("\nEDRL, MEA and classifier, share of the whole in %, batch 1")
    for name, (model, _) in models.items():
        if not name.startswith("ours"):
            continue
        for seconds in (1, 5):
            waveform = torch.from_numpy(noise(seconds))[None].to(args.device, model.dtype)
            statistics = model.edrl_mea.layer_statistics(waveform)
            runs = {
                "heads": lambda m=model, s=statistics: m(layer_statistics=s),
                "all": lambda m=model, w=waveform: m(w),
            }
            times = seconds_of_turns(runs, 3 * args.repeats)
            share = np.median(times["heads"]) / np.median(times["all"])
            print(f"{name:28}{seconds:4d} s{1e3 * np.median(times['heads']):10.2f} ms{100 * share:10.2f} %", flush=True)


@torch.inference_mode()
def print_uar(args) -> None:
    """UAR of the trained model on a labeled corpus in both precisions; it saw some of the speakers in training."""
    from train.data.corpora import load_corpus
    from train.evaluation.metrics import uar

    corpus = load_corpus(args.corpus, label_scheme=args.label_scheme)
    waveforms = [load_recording(audio) for audio in corpus["audio"]]
    found = {}
    for dtype in DTYPES:
        model = modeling_edrl_mea.EdrlMeaForAudioClassification.from_pretrained(args.model).eval()
        model, extract = model.to(args.device, DTYPES[dtype]), model.feature_extractor()
        rows = (extract(w, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_values"] for w in waveforms)
        found[dtype] = [int(model(row.to(args.device, DTYPES[dtype])).logits.argmax()) for row in rows]
        labels = model.config.labels
    references = [labels.index(corpus.features["label"].names[label]) for label in corpus["label"]]
    changed = sum(a != b for a, b in zip(*found.values(), strict=True))
    values = {dtype: 100 * uar(references, predictions) for dtype, predictions in found.items()}
    print(f"\nUAR % on {len(references)} recordings of {args.corpus}, {changed} predictions changed")
    for dtype, value in values.items():
        print(f"ours {dtype:23}{value:10.2f}{value - values['float32']:+10.2f}", flush=True)


def print_memory(directory: str, args) -> None:
    print(f"\nPeak memory over the loaded model, MiB\n{'':28}" + "".join(f"{s:>9g} s" for s in args.seconds))
    for name in args.contenders:
        peaks = [peak_memory(name, directory, s, args) for s in args.seconds]
        print(f"{name:28}" + "".join(f"{peak:11.0f}" for peak in peaks), flush=True)


def peak_memory(name: str, directory: str, seconds: float, args) -> float:
    command = [sys.executable, __file__, "--measure_memory", name, directory, "--seconds", str(seconds)]
    if args.model:
        command += ["--model", args.model]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split(MEMORY_REPORT)[1])


def measure_memory(name: str, directory: str, args) -> None:
    """In a process of its own: what one recording adds to the memory after a first, short one.

    The short one lets libraries settle; weights that it prepared count as the model's.
    """
    model, extractor = load(name, directory, args.model)
    classify = classifier(model, extractor, "cpu")
    classify([noise(0.5)])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what loading left free would hide what the recording takes
    before = resident_mib()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    classify([noise(args.seconds[0])])
    print(MEMORY_REPORT, peak_resident_mib() - before)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_resident_mib() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def noise(seconds: float) -> np.ndarray:
    n_samples = int(seconds * SAMPLING_RATE)
    return (0.1 * np.random.default_rng(0).standard_normal(n_samples)).astype(np.float32)


def of_mixed_lengths(args) -> Waveforms:
    """Noise of EMO-DB's lengths."""
    lengths = MEDIAN_SECONDS * np.exp(LOG_SPREAD * np.random.default_rng(0).standard_normal(args.n_recordings))
    return [noise(min(length, LONGEST_SECONDS)) for length in lengths]


def files_of(folder: str | None, count: int) -> list[str]:
    """So many recordings of a folder (any depth)."""
    if folder is None:
        return []
    files = find_audio(Path(folder))
    if not files:
        raise SystemExit(f"no audio file under {folder}")
    return [str(files[i]) for i in np.random.default_rng(0).permutation(len(files))[:count]]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="our model directory; stock gets its backbone (default: WavLM-base's shape)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 5, 20, 60])
    parser.add_argument("--contenders", nargs="+", default=[f"{k} {d}" for d in DTYPES for k in ("stock", "ours")])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--recordings", nargs="+", default=[None], help="folders of real recordings for mixed lengths")
    parser.add_argument("--corpus", help="labeled corpus for the table of UAR, as train/run.py takes it")
    parser.add_argument("--label_scheme", default="four_emotions")
    parser.add_argument("--n_recordings", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure_memory", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def save_stock(directory: str, whole_model: str | None) -> None:
    """Stock WavLM with the weights that ours has, for both to load."""
    if whole_model:
        backbone = modeling_edrl_mea.EdrlMeaForAudioClassification.from_pretrained(whole_model).backbone
        backbone.save_pretrained(directory)
    else:
        torch.manual_seed(0)
        WavLMForSequenceClassification(WavLMConfig(num_labels=len(EMOTIONS))).save_pretrained(directory)


def main() -> None:
    args = parse_arguments()
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    if args.measure_memory:
        return measure_memory(*args.measure_memory, args)
    with tempfile.TemporaryDirectory() as directory:
        save_stock(directory, args.model)
        print(f"ours: {args.model or 'WavLM-base shape, random weights'}; stock: its backbone in transformers' WavLM")
        print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, load {os.getloadavg()[0]:.1f}")
        models = {}
        if set(args.tables) - {"memory", "uar"}:
            models = {name: load(name, directory, args.model) for name in args.contenders}
        if "latency" in args.tables:
            print_latency(models, args)
        for folder in args.recordings:
            if "mixed" in args.tables:
                print_mixed(models, args, folder)
        if "pipeline" in args.tables:
            print_pipeline(models, args, args.recordings[0])
        if "heads" in args.tables:
            print_heads(models, args)
        if "memory" in args.tables:
            print_memory(directory, args)
        if "uar" in args.tables and args.model and args.corpus:
            print_uar(args)


if __name__ == "__main__":
    main()
