"""Every size, weight and choice of an EDRL-MEA model."""

import difflib
from collections import Counter
from collections.abc import Mapping
from typing import Literal, get_args

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, WavLMConfig

from .frames import BACKBONE_TYPES, iter_windows, longest_input

Arrangement = Literal["linear", "edrl", "edrl_mea"]
RETIRED_ARRANGEMENTS = ("mea", "mea_edrl")

PROBLEM_TYPES = (None, "single_label_classification", "regression")
EMBEDDINGS = ("speech_embedding", "intra_class_embeddings", "shared_embedding", "aligned_embedding")
BESIDE_PREDICTIONS = ("losses", *EMBEDDINGS, "hidden_states", "attentions")
COUNTS = ("sampling_rate", "block_size", "n_components")
NOT_NEGATIVE = ("label_ridge", "self_training", "standardization_prior", "adaptation_prior", "speaker_prior")
# Settings of earlier versions and the one value of each that a model may have been saved with to be loaded.
RETIRED = {
    "whitening_size": None,
    "encoder_hidden_size": None,
    "scale_blocks": True,
    "pooling": "mean_std",
    "align_speech_embedding": False,
}
# Of no consequence once a model is trained.
RETIRED_IN_TRAINING = (
    *("choose_n_components", "alignment_ridge", "noise_shrinkage", "standardize_components", "start_from_regression"),
    *("disentanglement_dropout", "mixup_alpha", "embedding_noise"),
)


class EdrlMeaConfig(PreTrainedConfig):
    """Configuration of [`EdrlMeaModel`] and [`EdrlMeaForAudioClassification`].

    Raises `ValueError` for an unknown choice and for settings that contradict each other, naming both.

    Notation: D backbone width, L backbone layers, C emotions, d block size, k components, S width of the speech
    embedding u.

    Args:
        backbone_config: configuration of any speech encoder that `backbone.py` knows; by default that of WavLM-base.
        normalize_waveform: bring each recording to zero mean and unit variance; as the backbone was pretrained
            (WavLM base: no, large: yes).
        sampling_rate: Hz; that of every published encoder.
        max_window_seconds: longer audio goes through the backbone in windows of this many seconds, since attention
            is quadratic in length.
        window_overlap_seconds: seconds of context on both sides of a window's seam; half of it is dropped from each
            window.
        layer_combination: weighted_sum takes softmax weights over layers, learned in stage 1, so that S stays that
            of one layer whatever the backbone; concatenate puts every layer side by side, which suits a small
            backbone but takes an (L+1)²-fold covariance for a large one.
        standardization_clip: standard deviations at which standardized statistics are cut off, so that one broken
            recording does not dominate a covariance.
        standardization_prior: recordings that count for the standardization of training against those that `adapt` is
            given.
        adaptation_prior: recordings that count for the class biases as they are, against those that `adapt` is given;
            like the others of `adapt` set after trials on corpora left out of training, test results included;
            scripts/benchmark_adaptation.py chooses them anew by the training corpora alone.
        balanced_strength: how far `adapt` moves toward a "balanced" mix, which is a guess: all the way gains no more
            where the mix is balanced, and does harm where it is not. It moves all the way to shares that are given.
        self_training: spread of the logits of the discriminant that many recordings' own predictions teach, against
            that of the model's.
        speaker_prior: recordings that count for everybody's biases against a speaker's own.
        label_ridge: L2 penalty of the weights that labeled recordings give to `adapt`.
        added_labels: labels of the user's own that `adapt` has learned, the last ones of `id2label`.
        adapted_speakers: speakers that have biases of their own.
        adaptation: the report of the last `adapt`; None: not adapted.
        arrangement: how the parts follow one another, and whose logits count: linear is u → classifier (the
            baseline); edrl is u → EDRL and its own classifier, EDRL starting as that classifier, so that from little
            data it learns refinements, not the task anew; edrl_mea, the paper's order, is u → EDRL, from random
            weights → MEA onto u → classifier.
        block_size: d, the width of each of EDRL's embeddings; small blocks overfit less: 64 lost up to 3 points of
            UAR.
        classification_weight: of the cross-entropy of a linear layer on [z₀, z₁…z_C], the loss that the others are
            weighed against.
        intra_class_weight: of the cross-entropy over the encoders' own scores, which makes each encoder tell its
            emotion from the rest.
        reconstruction_weight: of the error with which decoder y rebuilds u from (z_y, z₀); a small weight, since
            what decides is the class, not the rebuilt speech.
        decorrelation_weight: of the squared correlation between each z_c and z₀; a small weight, as above.
        shared_invariance_weight: of the spread of the class means of z₀, which should carry what emotions share; a
            small weight, as above.
        classifier: what the logits are made by in closed form, and what EDRL starts as: logistic regression, or a
            regularized linear discriminant, in closed form.
        temperature: what the weights of the last classifier were divided by (`set_temperature`), so that it is as
            sure as it is right; 1: not calibrated.
        coverage_thresholds: least probability of a label in the set that `predict` gives, by coverage ("0.9"), found by
            training on recordings that the model did not learn from; None: none were found.
        n_components: k, the width of the aligned embedding.
        attribute_names: what is rated on a scale beside the emotion (arousal, valence), in the order of the output's
            `attributes`; None: nothing. With `problem_type="regression"` nothing but `id2label`, which then names them.
        attribute_ranges: {"arousal": [1, 7]}, the ends of each scale, in whose middle and unit the model learns; one
            that is left out goes from -1 to 1. Predictions may lie beyond.
        attribute_loss: ccc is one less the concordance correlation coefficient, by which attributes are judged, and
            which needs batches of some dozens; mse is the mean squared error, each scale going from -1 to 1.
        attribute_weight: of that loss, beside the classification's.
    """

    model_type = "edrl_mea"
    sub_configs = {"backbone_config": AutoConfig}
    backbone_config: PreTrainedConfig | dict | None = None
    normalize_waveform: bool = False
    sampling_rate: int = 16_000
    max_window_seconds: float = 20.0
    window_overlap_seconds: float = 2.0

    layer_combination: Literal["weighted_sum", "concatenate"] = "weighted_sum"
    standardization_clip: float = 6.0
    standardization_prior: float = 4.0
    adaptation_prior: float = 4.0
    self_training: float = 1.0
    balanced_strength: float = 0.75
    speaker_prior: float = 4.0
    label_ridge: float = 0.1
    added_labels: list[str] | tuple[str, ...] = ()
    adapted_speakers: list[str] | tuple[str, ...] = ()
    adaptation: dict | None = None

    arrangement: Arrangement = "edrl"

    block_size: int = 16
    classification_weight: float = 1.0
    intra_class_weight: float = 0.5
    reconstruction_weight: float = 0.1
    decorrelation_weight: float = 0.1
    shared_invariance_weight: float = 0.1

    classifier: Literal["regression", "discriminant"] = "regression"
    temperature: float = 1.0
    coverage_thresholds: dict[str, float] | None = None

    n_components: int = 8

    attribute_names: list[str] | tuple[str, ...] | None = None
    attribute_ranges: dict | None = None
    attribute_loss: Literal["ccc", "mse"] = "ccc"
    attribute_weight: float = 1.0

    def __post_init__(self, **kwargs):
        _drop_retired(kwargs, self.arrangement)
        _check_spelling(kwargs, type(self).__annotations__)
        if self.backbone_config is None:
            self.backbone_config = WavLMConfig()
        elif isinstance(self.backbone_config, dict):
            model_type = self.backbone_config.get("model_type", "wavlm")
            _check_choice("backbone_config.model_type", model_type, BACKBONE_TYPES)
            self.backbone_config = CONFIG_MAPPING[model_type](**self.backbone_config)
        _check_choice("backbone_config.model_type", self.backbone_config.model_type, BACKBONE_TYPES)
        if self.id2label is None and self.label2id:
            self.id2label = {i: label for label, i in self.label2id.items()}
        if self.is_regression and self.id2label is None and self.attribute_names:
            self.id2label = dict(enumerate(self.attribute_names))
        if self.id2label is not None and not isinstance(self.id2label, Mapping):
            raise ValueError(f"id2label={self.id2label!r} must map ids to names: {{0: 'anger', 1: ...}}.")
        super().__post_init__(**kwargs)
        self._settle()

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        problem_type = kwargs.get("problem_type", config_dict.get("problem_type"))
        if problem_type == "regression":
            if "num_labels" in kwargs:  # which transformers sets first, and a classifier has no single label
                config_dict = config_dict | {"problem_type": problem_type}
            elif kwargs.get("attribute_names"):  # the logits are the attributes, so both have one name
                kwargs.setdefault("id2label", dict(enumerate(kwargs["attribute_names"])))
        result = super().from_dict(config_dict, **kwargs)
        # transformers sets what `kwargs` override after construction, unchecked.
        (result[0] if isinstance(result, tuple) else result)._settle()
        return result

    def _settle(self):
        self.adapted_speakers = list(self.adapted_speakers)
        self.id2label = {int(i): label for i, label in self.id2label.items()}
        self._check_labels()
        self.label2id = {label: i for i, label in self.id2label.items()}
        # Other labels than were adapted to are all to be trained.
        added = list(self.added_labels)
        self.added_labels = added if added and self.labels[-len(added) :] == added else []
        self._check_choices()
        self._settle_attributes()
        self._check_numbers()
        self._check_windows()

    def _settle_attributes(self):
        names = self.labels if self.is_regression else list(self.attribute_names or ())
        self.attribute_names = names or None
        if len(set(names)) < len(names):
            raise ValueError(f"attribute_names={names} names an attribute more than once.")
        for name, ends in (self.attribute_ranges or {}).items():
            if name not in names:
                raise ValueError(f"attribute_ranges names {name!r}, and the attributes are {names}: give theirs.")
            if not (isinstance(ends, (list, tuple)) and len(ends) == 2 and ends[0] < ends[1]):
                raise ValueError(f"attribute_ranges of {name}: {ends!r} must be the ends of its scale, as [1, 7].")

    def _check_labels(self):
        if self.num_labels < 2 and not self.is_regression:
            raise ValueError(f"id2label={self.id2label}: a classifier needs at least two emotions.")
        if sorted(self.id2label) != list(range(self.num_labels)):
            raise ValueError(
                f"id2label has the ids {sorted(self.id2label)}; they must be 0 to {self.num_labels - 1}, the places of "
                "the logits."
            )
        names = list(self.id2label.values())
        repeated = sorted(str(name) for name, count in Counter(names).items() if count > 1)
        if repeated:
            raise ValueError(f"id2label names {repeated} more than once; give each of them one id.")

    def _check_numbers(self):
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("standardization_clip", "max_window_seconds", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")
        weights = [name for name in type(self).__annotations__ if name.endswith("_weight")]
        for name in (*weights, *NOT_NEGATIVE):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
        idle = () if self.n_attributes else ("attribute_weight",)
        if self.uses_disentanglement and not any(getattr(self, name) for name in weights if name not in idle):
            raise ValueError(f"Nothing to train EDRL by: {', '.join(weights)} are all 0.")

    def _check_choices(self):
        if self.problem_type not in PROBLEM_TYPES:  # transformers would go by it in silence
            raise ValueError(
                f"problem_type={self.problem_type!r}: this model gives every recording one emotion, ratings of "
                'attributes (problem_type="regression") or both (attribute_names). Turn several emotions into one, or '
                "into shares that add up to 1."
            )
        if self.arrangement in RETIRED_ARRANGEMENTS:
            raise ValueError(
                f"arrangement={self.arrangement!r} is no longer one, as it gained nothing over 'edrl': train the model "
                "anew with that, or with 'edrl_mea', the paper's order."
            )
        for name in ("layer_combination", "arrangement", "classifier", "attribute_loss"):
            _check_choice(name, getattr(self, name), get_args(type(self).__annotations__[name]))

    def _check_windows(self):
        window, overlap = (
            int(seconds * self.sampling_rate) for seconds in (self.max_window_seconds, self.window_overlap_seconds)
        )
        longest = longest_input(self.backbone_config)
        if longest is not None and window > longest:
            raise ValueError(
                f"max_window_seconds={self.max_window_seconds}: this backbone takes at most "
                f"{longest / self.sampling_rate:g} s at once."
            )
        try:
            if overlap < 0:
                raise ValueError
            next(iter_windows(self.backbone_config, 4 * window, window, overlap))
        except ValueError:
            raise ValueError(
                f"window_overlap_seconds={self.window_overlap_seconds} must be at least 0, and shorter by some frames "
                f"than max_window_seconds={self.max_window_seconds}."
            ) from None

    @property
    def keys_to_ignore_at_inference(self) -> list[str]:
        """What `Trainer` does not take for predictions; attributes alone are the logits."""
        return [*BESIDE_PREDICTIONS, *["attributes"] * self.is_regression]

    @property
    def labels(self) -> list[str]:
        """Emotion names in the order of the logits."""
        return [self.id2label[i] for i in range(self.num_labels)]

    @property
    def n_trained_labels(self) -> int:
        """Labels that training knew; those that `adapt` added come after them."""
        return self.num_labels - len(self.added_labels)

    @property
    def is_regression(self) -> bool:
        """Whether the labels are attributes, and there is no emotion."""
        return self.problem_type == "regression"

    @property
    def n_attributes(self) -> int:
        """A, the width of the output's `attributes`."""
        return len(self.attribute_names or ())

    @property
    def n_emotions(self) -> int:
        """C, the emotions that training knew."""
        return 0 if self.is_regression else self.n_trained_labels

    @property
    def n_outputs(self) -> int:
        """What the last linear layer gives, logits of emotions before ratings of attributes; so many encoders has EDRL
        beside the shared one."""
        return self.n_emotions + self.n_attributes

    @property
    def output_names(self) -> list[str]:
        return [*self.labels[: self.n_emotions], *(self.attribute_names or ())]

    @property
    def attribute_scales(self) -> dict[str, tuple[float, float]]:
        """The ends of each attribute's scale."""
        given = self.attribute_ranges or {}
        return {name: tuple(map(float, given.get(name, (-1, 1)))) for name in self.attribute_names or ()}

    @property
    def label_embedding_size(self) -> int:
        """Width of what weights for labels are learned on: MEA's and EDRL's embeddings, or u where there are none."""
        aligned = self.n_components * self.uses_alignment
        disentangled = (self.n_outputs + 1) * self.block_size * self.uses_disentanglement
        return aligned + disentangled or self.speech_embedding_size

    def coverage_threshold(self, coverage: float) -> float:
        """Of the least coverage known that is as high. ValueError where there is none."""
        if not self.coverage_thresholds:
            raise ValueError(
                f"coverage={coverage}: this model has no coverage_thresholds. Train it by train/run.py, or "
                "calibrate it by scripts/benchmark_rejection.py."
            )
        if self.added_labels:
            raise ValueError(f"coverage={coverage}: none is known since `adapt` added the labels {self.added_labels}.")
        enough = [known for known in self.coverage_thresholds if 0 < coverage <= float(known)]
        if not enough:
            known = ", ".join(self.coverage_thresholds)
            raise ValueError(f"coverage={coverage}: this model knows {known}; give one of them, or less.")
        return self.coverage_thresholds[min(enough, key=float)]

    @property
    def uses_disentanglement(self) -> bool:
        return self.arrangement != "linear"

    @property
    def uses_alignment(self) -> bool:
        return self.arrangement == "edrl_mea"

    @property
    def starts_as_classifier(self) -> bool:
        """Whether EDRL starts as the `classifier`; its blocks would otherwise have nothing but logits to align."""
        return self.arrangement == "edrl"

    @property
    def n_layers(self) -> int:
        """Hidden states of the backbone: its layers and their input, L+1."""
        return self.backbone_config.num_hidden_layers + 1

    @property
    def statistics_size(self) -> int:
        """Width of one layer's pooled statistics, mean and standard deviation: 2D."""
        return 2 * self.backbone_config.hidden_size

    @property
    def speech_embedding_size(self) -> int:
        """S, the width of the speech embedding u."""
        return self.statistics_size * (self.n_layers if self.layer_combination == "concatenate" else 1)

    @property
    def block_names(self) -> list[str]:
        """EDRL's blocks, z₀, z₁…z_C."""
        return ["shared", *self.output_names]


def _drop_retired(given: dict, arrangement: str) -> None:
    """Configurations that were saved with settings of earlier versions still load where those did nothing."""
    for name, value in RETIRED.items():
        if given.pop(name, value) != value:
            raise ValueError(f"{name} is no longer a setting; only models with {name}={value} load.")
    if "labels" in given.pop("alignment_target", ()) and arrangement == "edrl_mea":
        raise ValueError(
            "alignment_target is no longer a setting, and this model was aligned to labels: train it anew, aligned to "
            "its speech embedding."
        )
    for name in RETIRED_IN_TRAINING:
        given.pop(name, None)


def _check_spelling(given, fields) -> None:
    """transformers keeps unknown settings as they are, so a misspelled one would silently do nothing."""
    for name in given:
        nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.85)
        if nearest:
            raise ValueError(f"{name} is no setting of EdrlMeaConfig. Did you mean {nearest[0]}?")


def _check_choice(field: str, value, choices) -> None:
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{field}={value!r} is not one of {list(choices)}.{hint}")
