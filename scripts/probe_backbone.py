#!/usr/bin/env python
"""Judge a backbone by what a linear probe on its frozen features recognizes of emotion.

Features: mean and standard deviation over frames of every layer. Probe: class-balanced logistic regression
whose C is chosen inside the training speakers. It is trained on clean speech and tested, speakers held out,
on clean speech and with unseen noise at 10 and 0 dB; trained on the whole of one corpus, on the others; and trained
on all but one, on that (`adapted`: with class biases from its recordings, without labels).
With `--noisy_copies` there is a row for what EDRL starts from in train/configs/whisper_tiny.yaml: a discriminant on the
first backbone, trained with that many noisy copies too, and adapted as `model.adapt` does.
The same probe on openSMILE's eGeMAPS and ComParE functionals (in the dev extra; left out where it is
not installed) and on an untrained copy of the first backbone shows what the numbers are worth.

    python scripts/probe_backbone.py checkpoints/wavlm-compact --corpora DATA/emodb DATA/ravdess \
        --noise DATA/noise/esc10 --cache /tmp/probe

A corpus is what train/run.py takes; noise files' names start with their fold, as ESC's do. Features are cached: a
second run takes minutes less.
"""

import argparse
import hashlib
import itertools
import os
import sys
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from torch.nn.utils.rnn import pad_sequence
from transformers import WavLMConfig, WavLMModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from modeling_edrl_mea import EdrlMeaConfig  # noqa: E402
from modeling_edrl_mea.backbone import build_backbone, input_settings, load_backbone  # noqa: E402
from modeling_edrl_mea.discriminant import fit_discriminant  # noqa: E402
from modeling_edrl_mea.embeddings import balanced_weights  # noqa: E402
from modeling_edrl_mea.linear_heads import corpus_folds  # noqa: E402
from modeling_edrl_mea.recordings import SAMPLING_RATE, load_recording  # noqa: E402
from modeling_edrl_mea.windows import run_in_windows  # noqa: E402
from train.data.corpora import load_corpus  # noqa: E402
from train.data.files import atomic_write, fingerprint, write_json  # noqa: E402
from train.degradation.augmentation import Augmentation  # noqa: E402
from train.degradation.effects import mix_at_snr  # noqa: E402
from train.degradation.sources import sound_files  # noqa: E402
from train.evaluation.markdown import markdown_table  # noqa: E402
from train.evaluation.metrics import bootstrap_interval, confusion_by_speaker, uar  # noqa: E402
from train.evaluation.unseen_corpora import adapted_logits  # noqa: E402
from train.pretraining.mixtures import normalize  # noqa: E402

CONDITIONS = {"clean": None, "10 dB": 10.0, "0 dB": 0.0}  # signal-to-noise ratios
STRENGTHS = (1.0, 5.0, 25.0, 125.0)  # C times the number of features, so that one grid suits 88 and 6,373
FOLDS = 5
FOLD_DRAWS = 5  # ways to put speakers into folds: of nine speakers, another draw alone moves the UAR by 4 points


@dataclass
class Corpus:
    """Recordings of four emotions of one corpus."""

    name: str
    files: list[str]
    emotions: np.ndarray  # class ids
    speakers: np.ndarray

    def select(self, rows: np.ndarray) -> "Corpus":
        return Corpus(self.name, [self.files[row] for row in rows], self.emotions[rows], self.speakers[rows])


def read_corpus(source: str, at_most: int) -> Corpus:
    """The recordings of four emotions of a corpus; of more than `at_most`, a sample fixed by name."""
    dataset = load_corpus(source, label_scheme="four_emotions")
    folder = source.rpartition("=")[2]
    names = [os.path.relpath(path, folder) for path in dataset["audio"]]
    chosen = sorted(range(len(names)), key=lambda row: zlib.crc32(names[row].encode()))[:at_most]
    rows = dataset.select(sorted(chosen, key=lambda row: names[row]))
    return Corpus(rows["corpus"][0], list(rows["audio"]), np.array(rows["label"]), np.array(rows["speaker"]))


# --- recordings and noise -----------------------------------------------------------------------------------


def noisy(path: str, noise: list[str], snr: float | None) -> np.ndarray:
    """The recording with a stretch of noise at `snr` dB; which one depends on the file's name alone."""
    signal = load_recording(path)
    if snr is None:
        return signal
    rng = np.random.default_rng(zlib.crc32(Path(path).name.encode()))
    stretch = np.zeros(1)
    while stretch.var() < 1e-8:  # ESC clips are padded with silence
        recording = load_recording(noise[rng.integers(len(noise))])
        recording = np.tile(recording, -(-len(signal) // len(recording)) + 1)
        start = rng.integers(len(recording) - len(signal) + 1)
        stretch = recording[start : start + len(signal)]
    return mix_at_snr(signal, stretch, snr)


# --- features -----------------------------------------------------------------------------------------------


class BackboneFeatures:
    """What a model pools: mean and standard deviation over frames of every layer, (files, (layers + 1) * 2 * hidden).

    Of any speech encoder that the package takes as a backbone, by folder or Hub id.
    """

    def __init__(self, checkpoint: str, untrained: bool = False):
        self.model = load_backbone(checkpoint)
        self.normalized = input_settings(checkpoint, self.model.config)["normalize_waveform"]
        if untrained:
            torch.manual_seed(0)
            self.model = build_backbone(self.model.config).eval()
        self.config = EdrlMeaConfig(backbone_config=self.model.config)

    @property
    def key(self) -> str:
        digest = hashlib.sha1(f"{self.normalized} {self.model.config.to_json_string()}".encode())
        for value in self.model.state_dict().values():
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def __call__(self, signals: list[np.ndarray], batch_size: int = 16) -> np.ndarray:
        signals = [normalize(signal) for signal in signals] if self.normalized else signals
        order = np.argsort([len(signal) for signal in signals])
        batches = np.array_split(order, -(-len(order) // batch_size))
        features = np.concatenate([self.pooled([signals[i] for i in batch]) for batch in batches])
        return features[order.argsort()]

    def pooled(self, signals: list[np.ndarray]) -> np.ndarray:
        rows = [torch.from_numpy(signal).float() for signal in signals]
        waveforms, mask = pad_sequence(rows, True), pad_sequence([torch.ones(len(row)) for row in rows], True)
        statistics, _ = run_in_windows(self.model, self.config, waveforms, mask.long())
        return statistics.flatten(1).numpy()


class SmileFeatures:
    """openSMILE functionals, (files, 88) of eGeMAPS or (files, 6373) of ComParE."""

    def __init__(self, feature_set: str):
        self.key = feature_set

    def __call__(self, signals: list[np.ndarray]) -> np.ndarray:
        jobs = [(self.key, signal) for signal in signals]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            return np.stack(list(pool.map(smile_functionals, jobs, chunksize=8)))


def smile_functionals(job: tuple[str, np.ndarray]) -> np.ndarray:
    import opensmile

    global _smile  # one a process and feature set: it is slow to make
    feature_set, signal = job
    if "_smile" not in globals() or _smile.feature_set.name != feature_set:
        _smile = opensmile.Smile(opensmile.FeatureSet[feature_set], opensmile.FeatureLevel.Functionals)
    return np.nan_to_num(_smile.process_signal(signal, SAMPLING_RATE).to_numpy(np.float32)[0])


def features_of(corpus: Corpus, condition: str, extract, noise: list[str], cache: Path) -> np.ndarray:
    """(files, features) of a corpus in one condition, from the cache where it has them."""
    parts = (extract.key, condition, *corpus.files, *noise)
    return cached(cache, parts, corpus, extract, lambda path: noisy(path, noise, CONDITIONS[condition]))


def features_of_copies(corpus: Corpus, number: int, extract, augmentation: Augmentation, cache: Path) -> np.ndarray:
    """(files, features) of the noisy copies of that number."""
    parts = (extract.key, augmentation.fingerprint, str(number), *corpus.files)
    return cached(
        cache,
        parts,
        corpus,
        extract,
        lambda path: augmentation(load_recording(path), f"{Path(path).name} {number}"),
    )


def cached(cache: Path, parts: tuple, corpus: Corpus, extract, signal_of) -> np.ndarray:
    stored = cache / f"{fingerprint(parts, 40)}.npy"
    if not stored.exists():
        signals = [signal_of(path) for path in corpus.files]
        features = extract(signals)
        with atomic_write(stored) as temporary, open(temporary, "wb") as file:
            np.save(file, features)
    return np.load(stored)


# --- probe --------------------------------------------------------------------------------------------------


class Probe:
    """Logistic regression on standardized features clipped at 6, rotated to their row space (which changes no
    prediction of an L2-penalized model, and makes 6,373 features as fast as there are recordings)."""

    def fit(self, features, emotions, speakers):
        self.mean, self.scale = features.mean(0), features.std(0) + 1e-6
        values = self.standardize(features)
        _, spread, rotation = np.linalg.svd(values, full_matrices=False)
        self.rotation = rotation[spread > 1e-5 * spread[0]].T
        rotated = values @ self.rotation
        self.strength = self.choose_strength(rotated, emotions, speakers)
        self.classifier = self.regression(self.strength).fit(rotated, emotions)
        return self

    def standardize(self, features):
        values = np.clip((features - self.mean) / self.scale, -6, 6)
        return (values / np.sqrt(values.shape[1])).astype(np.float64)

    @staticmethod
    def regression(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, class_weight="balanced", max_iter=300, tol=1e-3)

    def choose_strength(self, rotated, emotions, speakers) -> float:
        folds = list(GroupKFold(min(3, len(set(speakers)))).split(rotated, emotions, speakers))
        scores = []
        for strength in STRENGTHS:
            predicted = np.empty_like(emotions)
            for train, test in folds:
                model = self.regression(strength).fit(rotated[train], emotions[train])
                predicted[test] = model.predict(rotated[test])
            scores.append(uar(emotions, predicted))
        return STRENGTHS[int(np.argmax(scores))]

    def predict(self, features):
        return self.classifier.predict(self.standardize(features) @ self.rotation)

    def predict_adapted(self, features):
        """With a bias for each class, so that the mean prediction over these features is uniform."""
        logits = self.classifier.decision_function(self.standardize(features) @ self.rotation)
        for _ in range(100):  # each step brings the mean prediction nearer to uniform, as Sinkhorn's do
            logits = logits - np.log(softmax(logits, axis=1).mean(0))
        return self.classifier.classes_[logits.argmax(1)]


class NoisyDiscriminant:
    """The regularized discriminant on standardized features of recordings and their noisy copies, every corpus counting
    the same; class ids as predictions."""

    def fit(self, features, emotions, corpora):
        self.mean, self.scale = features.mean(0), features.std(0) + 1e-6
        labels, folds = torch.from_numpy(emotions), corpus_folds(list(corpora))
        weights = balanced_weights(labels, list(corpora))
        self.config = EdrlMeaConfig(id2label={i: str(i) for i in range(1 + int(emotions.max()))})
        self.head = fit_discriminant(
            torch.from_numpy(self.standardize(features)), labels, weights, self.config.num_labels, folds
        )
        return self

    def standardize(self, features):
        return np.clip((features - self.mean) / self.scale, -6, 6).astype(np.float64)

    def logits(self, standardized):
        return self.head.logits(torch.from_numpy(standardized)).numpy()

    def predict(self, features):
        return self.logits(self.standardize(features)).argmax(1)

    def predict_adapted(self, features):
        return adapted_logits(self.standardize(features), self.logits, self.config).argmax(1)


def interval(emotions, predicted, speakers) -> dict:
    """UAR and its 95% interval from resampling speakers, per cent."""
    counts, _ = confusion_by_speaker(emotions, predicted, speakers, 1 + int(max(emotions.max(), predicted.max())))
    estimate, low, high = bootstrap_interval("uar", counts)
    return {"uar": 100 * estimate, "interval": (100 * low, 100 * high)}


def fit_clean(corpora: list[Corpus], features: list[np.ndarray]) -> Probe:
    """Of clean recordings, whose features are given by corpus."""
    speakers = [f"{corpus.name} {speaker}" for corpus in corpora for speaker in corpus.speakers]
    emotions = np.concatenate([corpus.emotions for corpus in corpora])
    return Probe().fit(np.concatenate(features), emotions, np.array(speakers))


def fit_with_copies(corpora: list[Corpus], features: list[np.ndarray]) -> NoisyDiscriminant:
    """Of recordings and their copies, whose features (files, copies + 1, size) are given by corpus."""
    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in features])
    n_each = features[0].shape[1]
    emotions = np.concatenate([corpus.emotions for corpus in corpora]).repeat(n_each)
    return NoisyDiscriminant().fit(rows, emotions, [corpus.name for corpus in corpora for _ in corpus.files * n_each])


def within_corpus(corpus: Corpus, features: dict[str, np.ndarray], train_features, fit=fit_clean) -> dict[str, dict]:
    """UAR and its interval in each condition, over FOLD_DRAWS ways to put speakers into folds; every speaker is tested
    by probes that were not trained on them."""
    predicted = {condition: np.empty((FOLD_DRAWS, len(corpus.files)), int) for condition in features}
    folds = min(FOLDS, len(set(corpus.speakers)))
    for draw in range(FOLD_DRAWS):
        splitter = GroupKFold(folds, shuffle=True, random_state=draw)
        for train, test in splitter.split(corpus.files, corpus.emotions, corpus.speakers):
            probe = fit([corpus.select(train)], [train_features[train]])
            for condition, values in features.items():
                predicted[condition][draw, test] = probe.predict(values[test])
    emotions, speakers = np.tile(corpus.emotions, FOLD_DRAWS), np.tile(corpus.speakers, FOLD_DRAWS)
    return {
        condition: interval(emotions, found.ravel(), speakers)  # the mean over draws: each has the same emotions
        for condition, found in predicted.items()
    }


def across_corpora(corpora: list[Corpus], clean: list[np.ndarray]) -> dict[str, float]:
    """UAR for each `trained > tested` pair of corpora."""
    scores = {}
    for i, trained in enumerate(corpora):
        probe = Probe().fit(clean[i], trained.emotions, trained.speakers)
        for j, tested in enumerate(corpora):
            if i != j:
                scores[f"{trained.name} > {tested.name}"] = 100 * uar(tested.emotions, probe.predict(clean[j]))
    return scores


def left_out(corpora: list[Corpus], per_corpus: list[dict[str, np.ndarray]], train_features, fit=fit_clean) -> dict:
    """UAR on each corpus, clean and in noise, of a probe trained on all others; as it is and adapted."""
    scores = {}
    for i, tested in enumerate(corpora):
        others = [j for j in range(len(corpora)) if j != i]
        probe = fit([corpora[j] for j in others], [train_features[j] for j in others])
        scores[tested.name] = {
            f"{condition}{suffix}": 100 * uar(tested.emotions, predict(per_corpus[i][condition]))
            for condition in ("clean", "0 dB")
            for suffix, predict in (("", probe.predict), (" adapted", probe.predict_adapted))
        }
    return scores


def judge(corpora: list[Corpus], extract, noise: list[str], cache: Path, augmentation=None, n_copies: int = 0) -> dict:
    """All protocols for one kind of features; with copies those that train on recordings beside such copies."""
    per_corpus = [{c: features_of(corpus, c, extract, noise, cache) for c in CONDITIONS} for corpus in corpora]
    trained, fit = [features["clean"] for features in per_corpus], fit_clean
    across = across_corpora(corpora, trained) if len(corpora) > 1 and not n_copies else {}
    if n_copies:
        fit = fit_with_copies
        for place, corpus in enumerate(corpora):
            copies = [features_of_copies(corpus, n, extract, augmentation, cache) for n in range(n_copies)]
            trained[place] = np.stack([trained[place], *copies], 1)
    within = {
        corpus.name: within_corpus(corpus, *features, fit)
        for corpus, *features in zip(corpora, per_corpus, trained, strict=True)
    }
    apart = left_out(corpora, per_corpus, trained, fit) if len(corpora) > 2 else {}
    return {"features": per_corpus[0]["clean"].shape[1], "within": within, "across": across, "left_out": apart}


# --- speed --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def seconds_of(models: dict[str, torch.nn.Module], duration: float = 5.0, repeats: int = 7) -> dict[str, float]:
    """Median processor time of one forward pass over `duration` seconds of audio; the models take turns."""
    signal = torch.randn(1, int(duration * SAMPLING_RATE))
    times = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            started = time.process_time()
            model(signal)
            times[name].append(time.process_time() - started)
    return {name: float(np.median(taken[1:])) for name, taken in times.items()}  # the first warms up


def measure_speed(kinds: dict) -> dict[str, float]:
    """Seconds for 5 s of audio by each backbone, and by transformers' WavLM-base (random weights cost the same)."""
    backbones = {name: kind.model for name, kind in kinds.items() if isinstance(kind, BackboneFeatures)}
    return seconds_of({"WavLM-base": WavLMModel(WavLMConfig()).eval()} | backbones)


# --- report -------------------------------------------------------------------------------------------------


def table(report: dict, corpora: list[Corpus]) -> str:
    """Markdown tables, UAR in per cent."""
    names = [corpus.name for corpus in corpora]
    columns = [f"{name} {condition}" for condition in CONDITIONS for name in names]
    means = [f"mean {condition}" for condition in CONDITIONS]
    lines = []
    for kind, found in report.items():
        cells = [found["within"][n][c] for c in CONDITIONS for n in names]
        shown = [f"{cell['uar']:.1f} [{cell['interval'][0]:.0f}–{cell['interval'][1]:.0f}]" for cell in cells]
        average = [np.mean([found["within"][n][c]["uar"] for n in names]) for c in CONDITIONS]
        lines.append([kind, str(found["features"]), *shown, *(f"{mean:.1f}" for mean in average)])
    tables = [markdown_table(["features", "size", *columns, *means], lines)]
    if len(names) > 1:
        pairs = [f"{a} > {b}" for a, b in itertools.permutations(names, 2)]
        scores = {kind: [found["across"][pair] for pair in pairs] for kind, found in report.items() if found["across"]}
        lines = [[kind, *(f"{score:.1f}" for score in [*found, np.mean(found)])] for kind, found in scores.items()]
        tables.append(markdown_table(["across corpora, clean", *pairs, "mean"], lines))
    if len(names) > 2:
        protocols = list(next(iter(report.values()))["left_out"][names[0]])
        columns = [f"{protocol}: {' / '.join(names)}; mean" for protocol in protocols]
        tables.append(markdown_table(["left out of training", *columns], left_out_rows(report, names, protocols)))
    return "\n\n".join(tables)


def left_out_rows(report: dict, names: list[str], protocols: list[str]) -> list[list[str]]:
    rows = []
    for kind, found in report.items():
        scores = [[found["left_out"][name][protocol] for name in names] for protocol in protocols]
        rows.append([kind, *(" / ".join(f"{s:.1f}" for s in some) + f"; {np.mean(some):.1f}" for some in scores)])
    return rows


def kinds_of_features(args) -> dict:
    named = {Path(directory).resolve().name for directory in args.backbones}
    short = len(named) == len(args.backbones)  # runs of pretraining all call theirs `backbone`
    kinds = {Path(d).resolve().name if short else d: BackboneFeatures(d) for d in args.backbones}
    if args.untrained:
        kinds["untrained"] = BackboneFeatures(args.backbones[0], untrained=True)
    if args.opensmile:
        try:
            import opensmile  # noqa: F401

            kinds["eGeMAPS"] = SmileFeatures("eGeMAPSv02")
            kinds["ComParE"] = SmileFeatures("ComParE_2016")
        except ImportError:
            print("opensmile is not installed: eGeMAPS and ComParE are left out", file=sys.stderr)
    return kinds


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("backbones", nargs="+", help="folders or Hub ids of speech encoders")
    add("--corpora", nargs="+", required=True, help="as train/run.py's --dataset_name")
    add("--noise", type=Path, required=True)
    add(
        "--noisy_copies",
        type=int,
        default=0,
        help="also train a discriminant on the first backbone with so many copies",
    )
    add("--noise_folds", nargs="+", default=["4", "5"], help="folds of noise never used in training")
    add("--at_most", type=int, default=500, help="recordings per corpus")
    add("--cache", type=Path, default=Path("probe_cache"))
    add("--report", type=Path, help="write all numbers here as JSON")
    add("--untrained", action=argparse.BooleanOptionalAction, default=True)
    add("--opensmile", action=argparse.BooleanOptionalAction, default=True)
    add("--speed", action="store_true", help="also time the backbones against WavLM-base")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    args.cache.mkdir(parents=True, exist_ok=True)
    corpora = [read_corpus(folder, args.at_most) for folder in args.corpora]
    prefixes = tuple(f"{fold}-" for fold in args.noise_folds)
    noise = [str(path) for path in sound_files(args.noise) if path.name.startswith(prefixes)]
    if not noise:
        raise ValueError(f"no noise of folds {', '.join(args.noise_folds)} below {args.noise}")
    for corpus in corpora:
        print(f"{corpus.name}: {len(corpus.files)} recordings, {len(set(corpus.speakers))} speakers")
    print(
        f"noise: {len(noise)} recordings; probe: trained clean, {FOLD_DRAWS} draws of {FOLDS} speaker folds, "
        f"at most {args.at_most} recordings a corpus; UAR % [95% interval over speakers]\n",
        flush=True,
    )
    kinds = kinds_of_features(args)
    report = {kind: judge(corpora, extract, noise, args.cache) for kind, extract in kinds.items()}
    if args.noisy_copies:
        first, augmentation = next(iter(kinds)), Augmentation(args.noise, seed=0)
        name = f"{first}, discriminant with {args.noisy_copies} noisy copies"
        report[name] = judge(corpora, kinds[first], noise, args.cache, augmentation, args.noisy_copies)
    print(table(report, corpora))
    if args.speed:
        speed = report["speed"] = measure_speed(kinds)
        print(f"\n5 s of audio, processor seconds, {torch.get_num_threads()} threads")
        for name, seconds in speed.items():
            print(f"{name}: {seconds:.4f}, {speed['WavLM-base'] / seconds:.1f} times as fast as WavLM-base")
    if args.report:
        write_json(args.report, report)


if __name__ == "__main__":
    main()
