"""What is probed of recordings: a backbone's statistics, or openSMILE's functionals; computed once and cached."""

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_edrl_mea import EdrlMeaConfig
from modeling_edrl_mea.backbone import build_backbone, input_settings, load_backbone
from modeling_edrl_mea.recordings import SAMPLING_RATE, load_recording
from modeling_edrl_mea.windows import run_in_windows
from train.data.files import atomic_write, fingerprint
from train.degradation.augmentation import Augmentation
from train.pretraining.mixtures import normalize

from .recordings import CONDITIONS, Corpus, noisy


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
            return np.stack(list(pool.map(_smile_functionals, jobs, chunksize=8)))


def _smile_functionals(job: tuple[str, np.ndarray]) -> np.ndarray:
    import opensmile

    global _smile  # one a process and feature set: it is slow to make
    feature_set, signal = job
    if "_smile" not in globals() or _smile.feature_set.name != feature_set:
        _smile = opensmile.Smile(opensmile.FeatureSet[feature_set], opensmile.FeatureLevel.Functionals)
    return np.nan_to_num(_smile.process_signal(signal, SAMPLING_RATE).to_numpy(np.float32)[0])


def features_of(corpus: Corpus, condition: str, extract, noise: list[str], cache: Path) -> np.ndarray:
    """(files, features) of a corpus in one condition, from the cache where it has them."""
    parts = (extract.key, condition, *corpus.files, *noise)
    return _cached(cache, parts, corpus, extract, lambda path: noisy(path, noise, CONDITIONS[condition]))


def features_of_copies(corpus: Corpus, number: int, extract, augmentation: Augmentation, cache: Path) -> np.ndarray:
    """(files, features) of the noisy copies of that number."""
    parts = (extract.key, augmentation.fingerprint, str(number), *corpus.files)
    return _cached(
        cache,
        parts,
        corpus,
        extract,
        lambda path: augmentation(load_recording(path), f"{Path(path).name} {number}"),
    )


def _cached(cache: Path, parts: tuple, corpus: Corpus, extract, signal_of) -> np.ndarray:
    stored = cache / f"{fingerprint(parts, 40)}.npy"
    if not stored.exists():
        signals = [signal_of(path) for path in corpus.files]
        features = extract(signals)
        with atomic_write(stored) as temporary, open(temporary, "wb") as file:
            np.save(file, features)
    return np.load(stored)
