"""One door to a model: recordings in, and for each what was heard, how sure that is, or that nobody speaks; and
what decided for it."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from numbers import Number

import numpy as np
import torch

from .evaluation_mode import evaluating
from .recordings import has_own_rate, is_open_file, is_silent, load_recording, resample
from .speech_gate import SpeechGate

DEVICE_BATCH = 16  # recordings at once off the CPU, where padded batches gain nothing


@dataclass(frozen=True)
class Prediction:
    """What a model hears in one recording.

    emotion: the likeliest label; None where nobody speaks, and of a model that rates attributes alone.
    scores: every label's probability, as `pipeline` gives them, whether somebody speaks or not.
    confidence: the probability of `emotion`, calibrated as far as the model is (`config.temperature`); None where no
        emotion is named.
    speech_share: how much of the recording is speech, 0 to 1; 0 where it is too little to be an utterance.
    emotions: the labels that cover the right one at the coverage asked for, likeliest first; none where nobody speaks;
        None where no coverage was asked for.
    attributes: by name, such as arousal, on the scale of the training data; None where the model has none.
    """

    emotion: str | None
    scores: dict[str, float]
    confidence: float | None
    speech_share: float
    emotions: list[str] | None = None
    attributes: dict[str, float] | None = None

    def to_dict(self) -> dict:
        return asdict(self)


class PredictionMixin:
    """Predictions of an `EdrlMeaForAudioClassification`, and what decided for them."""

    def predict(
        self,
        recordings,
        sampling_rate: int | None = None,
        coverage: float | None = None,
        speech_gate: str | None = "auto",
        batch_size: int | None = None,
    ) -> Prediction | list[Prediction]:
        """What the model hears in a recording, or in each of a list.

        Args:
            recordings: a path, array (n,) or with channels, or what else [`load_recording`] takes; or a list, tuple,
                generator or data set's column of them. Of any length: long ones go through the backbone in windows.
            sampling_rate: Hz of arrays; the model's own by default.
            coverage: how often the right label should be among `emotions`, as 0.9; see [`EdrlMeaConfig`]'s
                `coverage_thresholds`.
            speech_gate: as [`SpeechGate`] takes it; None: an emotion for all that is not silent.
            batch_size: recordings that go through the model at once; by default 1 on the CPU and 16 elsewhere.

        Raises:
            RecordingError: a recording that cannot be read; names it, or its place in the list.
            ValueError: a coverage that the model has no threshold for; an unknown gate.
        """
        hear = Listener(self, coverage, speech_gate)
        if is_one_recording(recordings):
            return hear([hear.load(recordings, sampling_rate)])[0]
        size = batch_size or (1 if self.device.type == "cpu" else DEVICE_BATCH)
        found, batch = [], []
        for place, recording in enumerate(recordings):
            batch.append(hear.load(recording, sampling_rate, f"recording {place}"))
            if len(batch) == size:
                found, batch = found + hear(batch), []
        return found + (hear(batch) if batch else [])

    @torch.no_grad()
    def explain(self, recording, sampling_rate: int | None = None) -> dict:
        """What decided for the winning emotion.

        Returns a dict: `label` (None in silence), `logits` by label, `logit_contributions` by block (for the winning
        label; with the classifier's bias they sum to its logit) and, where the logits come from the alignment,
        `component_contributions` by block, k numbers each.
        """
        if self.config.is_regression:
            raise ValueError("explain tells what decided for an emotion, and this model rates attributes alone.")
        rate = sampling_rate or self.config.sampling_rate
        waveform = load_recording(recording, rate)
        if is_silent(waveform):
            return {"label": None, "logits": dict.fromkeys(self.config.labels, 0.0), "logit_contributions": {}}
        with evaluating(self):  # dropout would explain another recording than it classifies
            statistics = self.embed_recordings([waveform], rate).to(self.device)
            logits = self(layer_statistics=statistics).logits[0].float()
            winner = int(logits.argmax())
            told = {"logit_contributions": {}}
            if winner < self.config.n_trained_labels:
                told = contributions(self, statistics, winner)
            if not self.output_adaptation.is_idle:
                trained = self.trained_logits(self.edrl_mea(layer_statistics=statistics))[0].float()
                own = trained[winner] if winner < len(trained) else 0
                told["logit_contributions"]["adaptation"] = float(logits[winner] - own)
            return {
                "label": self.config.labels[winner],
                "logits": dict(zip(self.config.labels, logits.tolist(), strict=True)),
                **told,
            }


class Listener:
    """A model with a gate and a coverage, which it checks before any recording is read."""

    def __init__(self, model, coverage: float | None = None, speech_gate: str | None = "auto"):
        self.model, self.rate = model, model.config.sampling_rate
        self.gate = SpeechGate(speech_gate, self.rate)
        self.threshold = None if coverage is None else model.config.coverage_threshold(coverage)
        self.extract = model.feature_extractor()

    def load(self, recording, sampling_rate: int | None = None, name: str = "recording") -> np.ndarray:
        """(n,) at the model's rate."""
        if sampling_rate is None or has_own_rate(recording):
            return load_recording(recording, self.rate, name)
        return resample(load_recording(recording, sampling_rate, name), sampling_rate, self.rate, name)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Prediction]:
        """One batch."""
        return self.told(self.forward(waveforms), map(self.gate.share, waveforms))

    @torch.no_grad()
    def forward(self, waveforms: Sequence[np.ndarray]):
        """The model's output for one batch."""
        inputs = self.extract(waveforms, sampling_rate=self.rate, return_tensors="pt").to(self.model.device)
        inputs["input_values"] = inputs["input_values"].to(self.model.dtype)
        with evaluating(self.model):
            return self.model(**inputs)

    def told(self, output, shares: Iterable[float]) -> list[Prediction]:
        """What a model's output says of recordings, of each of which so much is speech."""
        config, scores, attributes = self.model.config, repeat({}), repeat(None)
        if not config.is_regression:
            scores = named(config.labels, output.logits.float().softmax(-1))
        if output.attributes is not None:
            attributes = named(config.attribute_names, output.attributes)
        return list(map(self._prediction, shares, scores, attributes))

    def _prediction(self, share: float, scores: dict[str, float], attributes) -> Prediction:
        ranked, emotions = sorted(scores, key=scores.get, reverse=True), None
        if self.threshold is not None:
            emotions = [label for label in ranked if share and scores[label] >= self.threshold]
        if not share or not scores:
            return Prediction(None, scores, None, share, emotions, attributes)
        return Prediction(ranked[0], scores, scores[ranked[0]], share, emotions, attributes)


def named(names: Sequence[str], rows: torch.Tensor) -> list[dict[str, float]]:
    return [dict(zip(names, row, strict=True)) for row in rows.float().cpu().tolist()]


def is_one_recording(recordings) -> bool:
    """Whether it is no list of them: arrays and tensors are one, whatever their shape, and so are numbers in a list."""
    if isinstance(recordings, Iterator):
        return False
    if isinstance(recordings, (str, os.PathLike, bytes, Mapping, np.ndarray)) or is_open_file(recordings):
        return True
    if hasattr(recordings, "detach") or hasattr(recordings, "get_all_samples") or not hasattr(recordings, "__len__"):
        return True
    return len(recordings) > 0 and isinstance(recordings[0], Number)


# --- what decided ---


def contributions(model, layer_statistics: torch.Tensor, label: int) -> dict[str, dict]:
    """By block: what it adds to one recording's logit of a label, and what it adds to the aligned embedding where the
    logit is made of that.

    Args:
        layer_statistics: (1, L+1, S').
    """
    u = model.edrl_mea.speech_embedding(layer_statistics)
    disentangled, _ = model.edrl_mea.disentangle_and_align(u)
    if model.ends_in_disentanglement:
        weights = model.edrl_mea.disentanglement.classifier.weight[label].float().split(model.config.block_size)
        shares = [float(block[0].float() @ w) for block, w in zip(disentangled.blocks, weights, strict=True)]
        return {"logit_contributions": dict(zip(model.config.block_names, shares, strict=True))}
    weights = model.classifier.weight[label].float()
    if model.alignment is None:
        return {"logit_contributions": {"speech": float(u[0] @ weights)}}
    names = model.config.block_names
    moved = model.alignment.contributions(disentangled.blocks)[0]
    return {
        "component_contributions": dict(zip(names, moved.tolist(), strict=True)),
        "logit_contributions": dict(zip(names, (moved @ weights).tolist(), strict=True)),
    }
