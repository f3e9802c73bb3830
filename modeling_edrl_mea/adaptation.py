"""Adaptation of a model to the user's own recordings, without labels or with a handful.

It costs no gradient, and no pass of the backbone beyond the one over the recordings. Their speech embedding is
standardized anew; the rest corrects the logits (see correction.py): biases of the classes and of each speaker, a
discriminant that the recordings' own predictions teach, and, where labels are given, weights on EDRL's and MEA's
embeddings, also for labels that the model did not know.
"""

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from transformers import initialization as init

from .correction import AdaptationReport, Correction, Evidence, correct, expected_mix, softmax, strength_of
from .evaluation_mode import evaluating
from .exact_buffers import ExactBuffers
from .recordings import FAINTEST_DB, SHORTEST_SECONDS, find_audio, is_usable, load_recording

FULL_SECONDS = 1.0  # a shorter recording counts as much less than one
EMBEDDED_AT_ONCE = 64  # recordings held as waveforms


class OutputAdaptation(ExactBuffers):
    """The correction of the logits as a part of the model; all zero it changes nothing.

    Buffers: biases (C,), weights (C, E) on the label embedding, speech_weights (C, S) on the speech embedding,
    speaker_biases (speakers, C) beside `biases`.
    Their sizes are in the config: `added_labels` and `adapted_speakers`.
    """

    def __init__(self, config):
        super().__init__()
        self.n_added = len(config.added_labels)
        n_labels, n_speakers = config.num_labels, len(config.adapted_speakers)
        self.register_buffer("biases", torch.zeros(n_labels, dtype=torch.float32))
        self.register_buffer("weights", torch.zeros(n_labels, config.label_embedding_size, dtype=torch.float32))
        self.register_buffer("speech_weights", torch.zeros(n_labels, config.speech_embedding_size, dtype=torch.float32))
        self.register_buffer("speaker_biases", torch.zeros(n_speakers, n_labels, dtype=torch.float32))

    def forward(self, logits, embedding, speech, speakers: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, C trained), label embedding (B, E) and speech embedding (B, S), None where training reads what
        comes behind it, → (B, C). `speakers` (B,): places in the config's `adapted_speakers`, -1 for somebody else."""
        if self.n_added:  # theirs are odds against everything known before
            logits = F.pad(logits.log_softmax(-1), (0, self.n_added))
        correction = self.biases + embedding.to(self.weights.dtype) @ self.weights.T
        if speech is not None:
            correction = correction + speech.to(self.weights.dtype) @ self.speech_weights.T
        if speakers is not None:
            known = F.pad(self.speaker_biases, (0, 0, 0, 1))  # the last row, of somebody else, is zero
            correction = correction + known[speakers]
        return logits + correction.to(logits.dtype)

    def reset(self, module=init) -> None:
        for buffer in self.buffers():
            module.zeros_(buffer)

    @property
    def is_idle(self) -> bool:
        return not any(bool(buffer.any()) for buffer in self.buffers())


class AdaptationMixin:
    """The adaptation of an `EdrlMeaForAudioClassification`."""

    def adapt(self, recordings, expected="balanced", speakers=None, labels=None, sampling_rate: int | None = None):
        """Adapt to recordings of your own, without labels or with a few. No gradient; save the result like any model.

        Their embedding is standardized anew, one number a class is added to the logits, so that over these recordings
        they predict the expected mix, and a linear discriminant that these predictions teach has a say. Each is as
        strong as there is evidence: see `standardization_prior`, `adaptation_prior`, `self_training` and
        `speaker_prior` of the config, and the report in `adaptation`. Adapting again starts from the trained model, but
        keeps labels that were learned.

        Args:
            recordings: paths, arrays, dicts as `datasets` makes them, in a list, generator or dataset; or a folder.
            expected: how often each emotion occurs in them. "balanced": equally. Shares by label, such as
                `{"neutral": 0.7}`, of which the labels left out have the rest. None: not known, and nothing is
                concluded from recordings without a label.
            speakers: who speaks in each; every speaker then has biases of their own, used where [`forward`] is told
                who speaks.
            labels: the emotion of each, None where not known; or a mapping from paths. Words that the model does not
                know become labels of it; they need recordings of other emotions, or without labels, beside them.
            sampling_rate: Hz of arrays; the model's own by default.

        Returns:
            the model itself.

        Raises:
            ValueError: before anything is embedded, where `expected`, `speakers` or `labels` do not fit, or new labels
                stand alone; no usable recording. RecordingError: one that cannot be read.
        """
        if self.config.is_regression:
            raise ValueError("adapt corrects how often emotions are predicted, and this model rates attributes alone.")
        recordings = _as_list(recordings)
        labels = _labels_of(recordings, labels)
        speakers = _speakers_of(recordings, speakers)
        known = list(dict.fromkeys([*self.config.labels, *(name for name in labels if name is not None)]))
        expected_mix(expected, known)  # before the recordings are read
        self._check_new_labels(labels, expected)
        statistics, kept, weights = _embedded(self, recordings, sampling_rate)
        self.edrl_mea.speech_embedding.forget_adaptation()
        before = softmax(evidence_of(self, statistics).logits).mean(0)
        share = standardize(self, statistics, weights, expected, known)
        evidence = evidence_of(self, statistics, weights)
        evidence.labels = [labels[row] for row in kept]
        evidence.speakers = [speakers[row] for row in kept] if speakers else None
        found = correct(evidence, self.config, expected, self.output_adaptation.weights.double().cpu().numpy())
        found.report.n_left_out = len(recordings) - len(kept)
        found.report.before = dict(zip(self.config.labels, before.round(4).tolist(), strict=False))
        found.report.strength |= {"standardization": round(share, 3)} if share else {}
        install(self, found)
        return self

    def _check_new_labels(self, labels: Sequence[str | None], expected) -> None:
        """Recordings of a new label alone do not tell what is particular to it from what all recordings of there share:
        learned from them, it would be predicted everywhere."""
        trained = self.config.labels[: self.config.n_trained_labels]
        new = {name for name in labels if name is not None and name not in trained}
        if new and not any(name in trained or (name is None and expected is not None) for name in labels):
            raise ValueError(
                f"labels has only {', '.join(sorted(new))}, new to the model: give recordings of other emotions too, "
                'or some without a label (None) and the expected mix, such as expected="balanced".'
            )

    @property
    def adaptation(self) -> AdaptationReport | None:
        """What the last [`adapt`] was given, found and did; None where there was none."""
        return AdaptationReport(**self.config.adaptation) if self.config.adaptation else None

    def forget_adaptation(self) -> None:
        """Predict as trained: no biases, no labels of the user's own."""
        self.edrl_mea.speech_embedding.forget_adaptation()
        _resize(self, self.config.labels[: self.config.n_trained_labels], [])
        self.config.adaptation = None

    def label_embedding(self, output) -> list[torch.Tensor]:
        """Blocks (B, E_b) of its output that weights for labels of the user's own are learned on: the aligned embedding
        and EDRL's, or the speech embedding where the arrangement has neither."""
        blocks = [] if self.alignment is None else [self.aligned_or_zero(output)]
        if output.intra_class_embeddings is not None:
            blocks += [output.shared_embedding, output.intra_class_embeddings.flatten(1)]
        return blocks or [output.speech_embedding]


@torch.no_grad()
def evidence_of(model, statistics: torch.Tensor, weights: np.ndarray | None = None) -> Evidence:
    """Evidence from layer statistics (N, L+1, S'), without labels."""
    logits, blocks, speech = [], [], []
    with evaluating(model):
        for part in statistics.split(EMBEDDED_AT_ONCE * 8):
            output = model.edrl_mea(layer_statistics=part.to(model.device))
            logits.append(model.trained_logits(output).double().cpu().numpy())
            blocks.append([block.double().cpu().numpy() for block in model.label_embedding(output)])
            speech.append(output.speech_embedding.float().cpu().numpy())
    blocks = [np.concatenate(parts) for parts in zip(*blocks, strict=True)]
    weights = np.ones(len(statistics)) if weights is None else weights
    return Evidence(np.concatenate(logits), blocks, np.concatenate(speech), weights, [None] * len(statistics))


def standardization_share(evidence: float, expected, labels: Sequence[str], config) -> float:
    """How far the standardization moves to so many recordings: not at all where the mix that is expected of them is not
    even, since their mean is then not that of recordings in general."""
    mix = expected_mix(expected, labels)
    if mix is None or np.ptp(mix) > 1e-6:
        return 0.0
    strength = config.balanced_strength if expected == "balanced" else 1.0
    return strength * strength_of(evidence, config.standardization_prior)


def standardize(model, statistics: torch.Tensor, weights: np.ndarray, expected, labels=None, config=None) -> float:
    """Move the model's standardization to these recordings, and return how far; not at all where it also rates
    attributes, of which nobody said what to expect."""
    config = config or model.config
    share = standardization_share(float(weights.sum()), expected, labels or list(config.labels), config)
    share = 0.0 if model.config.n_attributes else share
    model.edrl_mea.speech_embedding.adapt(statistics, torch.from_numpy(weights), share)
    return share


@contextmanager
def standardized(model, statistics: torch.Tensor, weights: np.ndarray, expected, config=None) -> Iterator[None]:
    """Within it as [`standardize`] leaves the model, which is then as it was."""
    speech = model.edrl_mea.speech_embedding
    kept = speech.adapted_shift.clone(), speech.adapted_log_spread.clone()
    try:
        standardize(model, statistics, weights, expected, config=config)
        yield
    finally:
        speech.adapted_shift.copy_(kept[0])
        speech.adapted_log_spread.copy_(kept[1])


def install(model, found: Correction) -> None:
    """Put a correction into the model, its sizes and report into the config."""
    _resize(model, found.labels, found.speakers)
    model.config.adaptation = found.report.to_dict()
    for name, buffer in model.output_adaptation.named_buffers():
        buffer.copy_(torch.from_numpy(getattr(found, name)))


def _resize(model, labels: Sequence[str], speakers: Sequence[str]) -> None:
    """A correction of nothing, for these labels and speakers."""
    config = model.config
    added = list(labels)[config.n_trained_labels :]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.added_labels, config.adapted_speakers = added, list(speakers)
    model.output_adaptation = OutputAdaptation(config).to(model.output_adaptation.biases.device)


def _as_list(recordings) -> Sequence:
    if isinstance(recordings, (str, os.PathLike)) and os.path.isdir(recordings):
        recordings = find_audio(recordings)
    elif isinstance(recordings, (str, os.PathLike, bytes, Mapping)) or not isinstance(recordings, Iterable):
        raise ValueError(f"Give a list of recordings, a folder or a dataset, not {recordings!r:.60}.")
    if hasattr(recordings, "column_names"):  # a dataset of the library `datasets`
        if "audio" not in recordings.column_names:
            raise ValueError(f"The dataset has the columns {recordings.column_names}; rename the recordings' to audio.")
        recordings = recordings["audio"]
    return recordings if hasattr(recordings, "__getitem__") and hasattr(recordings, "__len__") else list(recordings)


def _labels_of(recordings: Sequence, labels) -> list[str | None]:
    """One a recording; None where there is none."""
    if labels is None:
        return [None] * len(recordings)
    if isinstance(labels, Mapping):
        paths = [os.fspath(one) if isinstance(one, (str, os.PathLike)) else None for one in recordings]
        given = {os.fspath(path): label for path, label in labels.items()}
        strange = [path for path in given if path not in paths]
        if strange:
            raise ValueError(f"labels names {strange[0]!r}, which is none of the {len(recordings)} recordings.")
        labels = [given.get(path) for path in paths]
    labels = list(labels)
    if len(labels) != len(recordings):
        raise ValueError(
            f"{len(labels)} labels for {len(recordings)} recordings: give one each, None where it is not known, or a "
            "mapping from paths."
        )
    for label in labels:
        if label is not None and not (isinstance(label, str) and label.strip()):
            raise ValueError(f"labels has {label!r}: a label is a word, or None where it is not known.")
    return labels


def _speakers_of(recordings: Sequence, speakers) -> list[str] | None:
    if speakers is None:
        return None
    speakers = list(speakers)
    if len(speakers) != len(recordings) or not all(isinstance(name, Hashable) for name in speakers):
        raise ValueError(f"{len(speakers)} speakers for {len(recordings)} recordings: name one each.")
    return [str(name) for name in speakers]


def _embedded(model, recordings: Sequence, sampling_rate) -> tuple[torch.Tensor, list[int], np.ndarray]:
    """Statistics of the usable recordings, their numbers, and how much each counts."""
    rate = sampling_rate or model.config.sampling_rate
    parts, kept, seconds = [], [], []
    for start in range(0, len(recordings), EMBEDDED_AT_ONCE):
        waveforms = []
        for number in range(start, min(start + EMBEDDED_AT_ONCE, len(recordings))):
            waveform = load_recording(recordings[number], rate, name=f"recording {number}")
            if is_usable(waveform, rate):
                waveforms.append(waveform)
                kept.append(number)
                seconds.append(len(waveform) / rate)
        if waveforms:
            parts.append(model.embed_recordings(waveforms, rate))
    if not kept:
        raise ValueError(
            f"None of the {len(recordings)} recordings can be used: give at least one of {SHORTEST_SECONDS} s or more "
            f"that is louder than {FAINTEST_DB:g} dB of full scale."
        )
    statistics = torch.cat(parts)
    weights = np.minimum(1, np.array(seconds) / FULL_SECONDS) / _copies(statistics)
    return statistics, kept, weights


def _copies(statistics: torch.Tensor) -> np.ndarray:
    """(N,) how often each recording is there."""
    _, places, counts = np.unique(
        statistics.flatten(1).numpy().round(4), axis=0, return_inverse=True, return_counts=True
    )
    return counts[places.ravel()]
