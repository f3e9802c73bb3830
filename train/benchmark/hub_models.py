"""Finished models in the benchmark: any Hub audio-classification model, its labels put under the benchmark's scheme."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification
from transformers.utils import cached_file

from modeling_edrl_mea.recordings import SAMPLING_RATE, resample
from train.data.embeddings import EmbeddingCache
from train.data.emotions import EMOTIONS, LabelError, canonical_emotion, label_under_scheme, nearest_emotion
from train.data.files import fingerprint, fingerprint_of_code, fingerprint_of_weights
from train.data.leaks import short_hash, speaker_identities, speaker_identity
from train.evaluation.calibration import cross_fitted_temperatures
from train.evaluation.predictions import SUFFIXES, AdaptationMode, probabilities_of

from .contenders import BenchmarkData, TrialPredictions, condition_key
from .protocols import Trial

logger = logging.getLogger(__name__)

BATCH = 8  # recordings a forward pass
SHORTEST = 400  # samples: WavLM's, HuBERT's and wav2vec 2.0's convolutions need 25 ms
LONGEST = 30 * SAMPLING_RATE  # samples at once: attention is quadratic; longer recordings are cut, with a warning


class HubModel:
    """A model that is not trained here.

    Args:
        name: what reports call it.
        source: folder or Hub id; EDRL-MEA models share the cached embeddings of their backbone.
        classes: the benchmark's classes in their order; `scheme`: the label scheme that they belong to.
        label_map: the model's labels → emotions, where they are no known words; an empty emotion leaves one out.
        cache: folder of embeddings and scores, addressed by content.
        attributes: that the benchmark has ratings of; a model that rates the same is measured by them too.

    Raises:
        LabelError: labels that do not map, or a class that no label maps to; names them and the remedy.
    """

    def __init__(
        self,
        name: str,
        source: str,
        classes: Sequence[str],
        scheme: str,
        label_map: Mapping[str, str] | None = None,
        cache: str | Path = "cache",
        device: str = "cpu",
        trust_remote_code: bool = False,
        attributes: Sequence[str] = (),
    ):
        self.name, self.source, self.classes = name, str(source), list(classes)
        options = {"trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(source, **options)
        own_labels = [config.id2label[i] for i in range(len(config.id2label))]
        self.class_of_label = map_labels(own_labels, classes, scheme, label_map, self.source)  # before the weights come
        self.model = AutoModelForAudioClassification.from_pretrained(source, **options).to(device).eval()
        self.is_edrl_mea = config.model_type == "edrl_mea"
        self.rates = bool(attributes) and self.is_edrl_mea and config.attribute_names == list(attributes)
        if self.is_edrl_mea:
            self.cache = EmbeddingCache(self.model, cache)
        else:
            self.cache = ScoreCache(StockClassifier(self.model, source, options), cache)

        self.modes: tuple[AdaptationMode, ...] = tuple(SUFFIXES) if self.is_edrl_mea else ("plain",)
        self.trained_on, self.trained_speakers, self.heard, self.own_temperature = _training_of(self.source)
        if getattr(config, "temperature", 1.0) != 1.0:  # its logits are divided by it already
            self.own_temperature = 1.0

    noisy_copies, given_settings = 0, None

    @property
    def temperature_fitted_on(self) -> str:
        if self.own_temperature is not None:
            return "its own validation speakers, as in its report"
        return "clean speech of the half of each corpus's speakers that a recording's own is not in"

    @property
    def embedding_name(self) -> str:
        if self.is_edrl_mea:
            return "speech embedding: mean and deviation of every layer of the backbone"
        return f"scores of {self.name}"

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def folder(self) -> str | None:
        return self.source if Path(self.source).is_dir() else None

    @cached_property
    def settings(self) -> dict:
        """Everything that changes the predictions but the recordings; JSON-able."""
        return {
            "code": fingerprint_of_code(__name__),
            "weights": fingerprint_of_weights(self.model),
            "config": fingerprint(self.model.config.to_json_string(use_diff=False)),
            "embeddings": self.cache.folder.name,
            "classes": [self.classes, self.class_of_label],
            "temperature": self.own_temperature,
            **({"rates": True} if self.rates else {}),
        }

    def trials(self, planned: Sequence[Trial], corpora: Mapping, test_rows: Mapping) -> list[Trial]:
        """One a corpus: the listed rows, without the speakers that the model was trained on."""
        found = []
        for name, dataset in corpora.items():
            rows = test_rows.get(name, np.arange(len(dataset)))
            found.append(Trial("folds", {}, {}, {name: rows[~self.was_heard(dataset)[rows]]}))
        return found

    def was_heard(self, dataset) -> np.ndarray:
        """(N,) whether the model was trained on the speaker of each row: by name, or as a recording of theirs is one
        of those that it was trained on."""
        if not self.trained_speakers:
            return np.zeros(len(dataset), bool)
        speakers = np.array(dataset["speaker"])
        known = {
            speaker
            for speaker, identity in zip(speakers.tolist(), speaker_identities(dataset), strict=True)
            if identity in self.trained_speakers
        }
        if self.heard:
            heard = np.isin([short_hash(recording) for recording in dataset["audio"]], self.heard)
            known |= set(speakers[heard].tolist())
        return np.isin(speakers, list(known))

    def notes(self, corpora: Mapping) -> list[str]:
        if not self.trained_speakers:
            return [f"{self.name}: nothing says what it was trained on; it may know recordings that it is tested with"]
        counts = {name: int(self.was_heard(dataset).sum()) for name, dataset in corpora.items()}
        return [
            f"{self.name}: was trained on speakers of {count} of {len(corpora[name])} recordings of {name}; not tested"
            for name, count in counts.items()
            if count
        ]

    def run(self, trial: Trial, data: BenchmarkData, conditions: Sequence) -> TrialPredictions:
        """Predicts each test of the trial in each condition. ValueError where the model was trained on all of it."""
        found = TrialPredictions()
        for corpus, rows in trial.tests.items():
            if not len(rows):
                raise ValueError(f"{self.name} was trained on every speaker of {corpus}")
            labels, speakers = (np.array(data.corpora[corpus][column])[rows] for column in ("label", "speaker"))
            for condition in conditions if self.rates else ():
                found.rate(self.model, data.statistics(corpus, condition)[torch.from_numpy(rows)], corpus, condition)
            for mode in self.modes:
                for condition in conditions:
                    statistics = data.statistics(corpus, condition)[torch.from_numpy(rows)]
                    probabilities = self.probabilities(statistics, mode, speakers)
                    found.probabilities[mode, corpus, condition_key(condition)] = probabilities
                    temperatures = self.temperatures(labels, probabilities, speakers) if condition is None else None
                    if temperatures is not None:
                        found.temperatures[mode, corpus] = temperatures
        return found

    def probabilities(self, statistics: torch.Tensor, mode: AdaptationMode = "plain", speakers=None) -> np.ndarray:
        """(n, C) over the benchmark's classes, from layer statistics or scores of recordings of `speakers` (n,)."""
        if self.is_edrl_mea:
            own = probabilities_of(self.model, statistics, mode, speakers)
        else:
            own = statistics.double().softmax(-1).numpy()
        return under_classes(own, self.class_of_label, len(self.classes))

    def temperatures(self, references, probabilities, speakers) -> np.ndarray | None:
        """(n,) for predictions on clean speech: the model's own, or cross-fitted over speakers; None for one."""
        if self.own_temperature is not None:
            return np.full(len(references), self.own_temperature)
        if len(set(speakers.tolist())) < 2:
            return None
        return cross_fitted_temperatures(references, probabilities, speakers)


def _training_of(source: str) -> tuple[tuple[str, ...], frozenset[str], list[str], float | None]:
    """From a model's own report: corpora, speakers and recordings that it was trained on, its temperature."""
    file = cached_file(source, "report.json", _raise_exceptions_for_missing_entries=False)
    if file is None:
        return (), frozenset(), [], None
    report = json.loads(Path(file).read_text(encoding="utf-8"))
    training = report.get("training") or {}
    splits = training.get("splits") or {}
    corpora = tuple(corpus["name"] for corpus in training.get("corpora", []))
    speakers = frozenset(
        speaker_identity(speaker, next((name for name in corpora if speaker.startswith(f"{name}_")), ""))
        for part in ("train", "validation")
        for speaker in splits.get(part, [])
    )
    calibration = next((model.get("calibration") for model in report.get("models") or []), None) or {}
    return corpora, speakers, training.get("heard") or [], calibration.get("temperature")


def map_labels(labels: Sequence[str], classes: Sequence[str], scheme: str, label_map, source: str) -> list[int | None]:
    """The class of each of a model's labels, None for one outside the scheme, which is left out."""
    label_map = {key.lower(): value for key, value in (label_map or {}).items()}
    unused = set(label_map) - {label.lower() for label in labels}
    if unused:
        raise LabelError(f"{source} has no label {', '.join(sorted(unused))} to map; its labels are {list(labels)}.")
    emotions = [label_map.get(label.lower(), label) for label in labels]
    strange = [
        label
        for label, emotion in zip(labels, emotions, strict=True)
        if emotion and canonical_emotion(emotion) is None and emotion not in classes
    ]
    if strange:
        near = nearest_emotion(label_map.get(strange[0].lower(), strange[0])) or "anger"
        raise LabelError(
            f"{source}: the labels {strange} stand for no known emotion ({', '.join(EMOTIONS)}). "
            f"Name them: --label_map {strange[0]}={near} …, or {strange[0]}= to leave it out."
        )
    found = [
        emotion if emotion in classes else label_under_scheme(emotion, scheme) if emotion else None
        for emotion in emotions
    ]
    missing = [name for name in classes if name not in found]
    if missing:
        raise LabelError(
            f"{source} cannot predict {', '.join(missing)}: its labels are {list(labels)}. Use a label_scheme whose "
            f"classes it has, or --label_map LABEL={missing[0]}."
        )
    outside = [label for label, name in zip(labels, found, strict=True) if name not in classes]
    if outside:
        logger.warning("%s: labels outside the classes are left out: %s", source, ", ".join(outside))
    return [list(classes).index(name) if name in classes else None for name in found]


def under_classes(probabilities: np.ndarray, class_of_label: Sequence[int | None], n_classes: int) -> np.ndarray:
    """Probabilities (N, labels) summed by class and, without labels outside, scaled to add up to 1: (N, C)."""
    summed = np.zeros((len(probabilities), n_classes))
    for label, place in enumerate(class_of_label):
        if place is not None:
            summed[:, place] += probabilities[:, label]
    total = summed.sum(1, keepdims=True)
    return np.where(total > 1e-12, summed / np.maximum(total, 1e-12), 1 / n_classes)


class ScoreCache(EmbeddingCache):
    """`EmbeddingCache` of a stock classifier's logits (N, labels) in place of layer statistics."""

    bytes_of_a_recording = 0  # next to none

    def __init__(self, classifier: "StockClassifier", folder: str | Path):
        self.model, self.processes = classifier, None
        self.folder = Path(folder) / classifier.fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)


class StockClassifier:
    """A transformers audio classifier behind the two methods that `EmbeddingCache` needs."""

    def __init__(self, model, source: str, options: Mapping):
        self.model = model
        self.extract = AutoFeatureExtractor.from_pretrained(source, **options)

    @property
    def fingerprint(self) -> str:
        settings = repr(sorted(self.extract.to_dict().items(), key=str))
        return f"scores-{fingerprint_of_weights(self.model, settings=settings)}"

    @torch.no_grad()
    def embed_recordings(self, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
        """Logits (N, labels) of waveforms (n,) at 16 kHz."""
        if max(map(len, waveforms)) > LONGEST:
            logger.warning("Recordings longer than %d s are cut.", LONGEST // SAMPLING_RATE)
        waveforms = [np.pad(wave[:LONGEST], (0, max(0, SHORTEST - len(wave)))) for wave in waveforms]
        rate = getattr(self.extract, "sampling_rate", SAMPLING_RATE)
        waveforms = [resample(wave, SAMPLING_RATE, rate) for wave in waveforms]
        logits = []
        for batch in self._batches(waveforms):
            inputs = self.extract(batch, sampling_rate=rate, padding=True, return_tensors="pt").to(self.model.device)
            logits.append(self.model(**inputs).logits.float().cpu())
        return torch.cat(logits)

    def _batches(self, waveforms):
        # Without a mask (base models, whose first layer normalizes over time) padding would change the scores.
        size = BATCH if getattr(self.extract, "return_attention_mask", False) else 1
        for start in range(0, len(waveforms), size):
            yield [np.asarray(wave, dtype=np.float32) for wave in waveforms[start : start + size]]
