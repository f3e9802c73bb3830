"""What `train/run.py` takes, from a YAML file and from flags."""

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import HfArg

from modeling_edrl_mea import EdrlMeaConfig
from train.data.emotions import LABEL_SCHEMES

COMPACT_BACKBONE = Path(__file__).resolve().parents[1] / "checkpoints" / "wavlm-compact"
# What the run works out itself, or what would contradict another flag.
NOT_FLAGS = {
    *("backbone_config", "normalize_waveform", "sampling_rate"),
    *("added_labels", "adapted_speakers", "adaptation"),  # what `adapt` of a finished model writes
    *("attribute_names", "attribute_ranges"),  # of the data: `attributes`
    "coverage_thresholds",  # what training finds
}

# Settings that change nothing about the result, so that a run may go on under others.
NOT_PART_OF_THE_RESULT = {
    *("output_dir", "embedding_cache", "logging_dir", "disable_tqdm", "report_to", "run_name", "local_rank"),
    *("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "resume_from_checkpoint", "test_dataset_name"),
    *("save_strategy", "save_steps", "save_total_limit", "logging_strategy", "logging_steps", "project"),
    *("dataloader_num_workers", "dataloader_pin_memory", "log_level", "ddp_backend", "ddp_timeout", "trackio_space_id"),
}

CHOICES = {
    "on_bad_audio": ("error", "skip"),
    "on_leak": ("error", "drop"),
    "label_scheme": LABEL_SCHEMES,
    "problem_type": ("single_label_classification", "regression"),
    **{name: get_args(kind) for name, kind in EdrlMeaConfig.__annotations__.items() if get_origin(kind) is Literal},
}


@dataclass
class DataArguments:
    dataset_name: list[str] = HfArg(
        default_factory=list, help="corpora to train on: folder, name=folder, manifest, or Hub id; several are united"
    )
    test_dataset_name: list[str] = HfArg(default_factory=list, help="other corpora, only tested on; labels must fit")
    attributes: list[str] = HfArg(
        default_factory=list,
        help="what to rate beside the emotion: arousal valence dominance, or columns of a manifest",
    )
    problem_type: str = HfArg(
        default="single_label_classification", help="regression: rate the attributes alone, no emotions"
    )
    soft_labels: bool = HfArg(
        default=False, help="learn the shares of emotions that a table's labels or MSP-Podcast's listeners give"
    )
    label_scheme: str = HfArg(
        default="native",
        help="native, four_emotions, or high/low arousal or valence by emotion (table in train/data/emotions.py)",
    )
    train_split_name: str | None = HfArg(default=None, help="official split to train on; default: the one called train")
    validation_split_name: str | None = HfArg(
        default=None, help="official split for early stopping; default: dev or validation, else of train"
    )
    test_split_name: str | None = HfArg(
        default=None, help="official split to test on; default: the one called test, else split by speaker"
    )
    keep_given_splits: bool = HfArg(
        default=True, help="keep the splits that a corpus gives, so that results compare; False: split by speaker"
    )
    on_leak: str = HfArg(
        default="error",
        help="error: stop where training shares recordings or speakers with a test; drop: leave them out",
    )
    dataset_config_name: str | None = HfArg(default=None, help="config of a Hub dataset, as its language")
    dataset_revision: str | None = HfArg(
        default=None, help="commit, tag or branch of a Hub dataset, so that a run can be repeated"
    )
    audio_column_name: str = HfArg(default="audio", help="of a Hub dataset or manifest")
    label_column_name: str | None = HfArg(default=None, help="of a Hub dataset or manifest")
    speaker_column_name: str | None = HfArg(default=None, help="of a Hub dataset or manifest")
    test_fraction: float = HfArg(default=0.25, help="share of the speakers held out for testing")
    validation_fraction: float = HfArg(default=0.2, help="share of the other speakers for early stopping")
    allow_shared_speakers: bool = HfArg(
        default=False, help="split by recording where speakers are unknown: results come out too good"
    )
    max_length_seconds: float | None = HfArg(
        default=None, help="stage 1 hears a random stretch of at most this of each recording (unfrozen backbone)"
    )
    on_bad_audio: str = HfArg(
        default="error", help="error: list recordings that cannot be used and stop; skip: go on without them"
    )
    noisy_copies: int = HfArg(
        default=0, help="augmented copies of each training recording; 0: trained on clean speech alone"
    )
    noise_dir: str | None = HfArg(default=None, help="noise recordings; half never serve in training")
    rir_dir: str | None = HfArg(default=None, help="room impulse responses; half never serve in training")
    embedding_cache: str | None = HfArg(default=None, help="folder; default: OUTPUT_DIR/embeddings")


@dataclass
class ModelArguments:
    model_name_or_path: str = HfArg(
        default=str(COMPACT_BACKBONE),
        help="WavLM or another speech encoder, or an EDRL-MEA model to go on from: Hub id or folder",
    )
    patience: int = HfArg(default=10, help="epochs without a better validation UAR before stage 1 stops")
    freeze_backbone: bool = HfArg(
        default=True, help="keep the encoder as it is: its embeddings are computed once, and training takes seconds"
    )
    keep_last_n_layers: int = HfArg(
        default=0, help="with freeze_backbone: the last transformer layers that stage 1 trains all the same"
    )
    freeze_feature_encoder: bool = HfArg(
        default=True, help="keep the convolutions under an unfrozen backbone as they are"
    )
    backbone_learning_rate: float = HfArg(
        default=5e-5, help="of what is unfrozen of the backbone; learning_rate is the heads'"
    )


@dataclass
class EdrlMeaTrainingArguments(TrainingArguments):
    output_dir: str = HfArg(default="outputs/edrl-mea", help="where the model and the report go")
    num_train_epochs: float = 8.0
    per_device_train_batch_size: int = 256
    per_device_eval_batch_size: int = 256
    learning_rate: float = HfArg(
        default=1e-4, help="more, where EDRL starts at random (arrangement edrl_mea): 3e-3, and 40 epochs"
    )
    weight_decay: float = 0.1
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = HfArg(default=2, help="one more than is needed: the newest may be damaged")
    logging_strategy: str = "epoch"
    report_to: str = "tensorboard"
    seed: int = 0


def _config_help(name: str) -> str:
    """What the docstring of EdrlMeaConfig says of a field, and its default."""
    text = re.search(rf"^ +{name}: (.*\n(?: {{12}}.*\n)*)", EdrlMeaConfig.__doc__, re.M)[1]
    default = getattr(EdrlMeaConfig, name)
    return f"{' '.join(text.split())} Where not given: {default}, or as in the model gone on from.".replace("%", "%%")


def _config_field(spec: dataclasses.Field):
    kind = spec.type
    if get_origin(kind) in (list, tuple):
        kind = list[str]
    elif spec.name in CHOICES:
        kind = str  # `misspelled` names the choices and the nearest one
    return spec.name, kind | None, HfArg(default=None, help=_config_help(spec.name))


def _own_fields():
    own = set(EdrlMeaConfig.__annotations__) - NOT_FLAGS
    return [_config_field(spec) for spec in dataclasses.fields(EdrlMeaConfig) if spec.name in own]


ConfigArguments = dataclasses.make_dataclass("ConfigArguments", _own_fields())


def parse_arguments(argv: list[str] | None = None):
    """(model, data, config, training) arguments from `[CONFIG.yaml] [--flag value …]`; flags win.

    Exits naming the nearest known key for one that is unknown or misspelled, before anything else happens.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    from_file = []
    if argv and argv[0].endswith((".yaml", ".yml")):
        from_file = _flags_of(Path(argv.pop(0)))
    parser = HfArgumentParser((ModelArguments, DataArguments, ConfigArguments, EdrlMeaTrainingArguments))
    parser.allow_abbrev = False
    known = ["--help_all"] + [flag for action in parser._actions for flag in action.option_strings]
    for flag in (part.partition("=")[0] for part in from_file + argv):
        if flag.startswith("--") and flag not in known:
            nearest = difflib.get_close_matches(flag, known, n=1)
            raise SystemExit(
                f"Unknown setting {flag[2:]!r}." + (f" Did you mean {nearest[0][2:]!r}?" if nearest else "")
            )
    if "--help_all" in argv:
        parser.print_help()
        raise SystemExit
    parser.error = _stop  # argparse's own prints all flags before it says what is wrong
    try:
        arguments = parser.parse_args_into_dataclasses(args=from_file + argv)
    except (ValueError, OSError, ImportError) as error:
        _stop(" ".join(str(error).split()))
    for complaint in contradictions(*arguments):
        raise SystemExit(f"error: {complaint}")
    return arguments


def _stop(message: str):
    raise SystemExit(f"error: {message}")


def contradictions(model, data, config, training) -> Iterator[str]:
    """What these settings cannot mean together, in words that name the remedy."""
    backbone_learns = not model.freeze_backbone or model.keep_last_n_layers > 0
    arrangement = config.arrangement or EdrlMeaConfig.arrangement
    if not model.freeze_backbone and model.keep_last_n_layers:
        yield "keep_last_n_layers says which layers of a frozen backbone learn; with freeze_backbone=False all do."
    if model.freeze_backbone and not model.freeze_feature_encoder:
        yield "freeze_feature_encoder=False needs freeze_backbone=False."
    if data.max_length_seconds is not None and not backbone_learns:
        yield (
            "max_length_seconds cuts what stage 1 hears, but a frozen backbone embeds whole recordings once. Leave it "
            "out, or set freeze_backbone=False or keep_last_n_layers."
        )
    if data.max_length_seconds is not None and not data.max_length_seconds > 0:
        yield f"max_length_seconds={data.max_length_seconds} must be above 0."
    if backbone_learns and arrangement == "linear":
        yield f"arrangement={arrangement} trains nothing by gradients, so the backbone cannot learn. Keep it frozen."
    if data.problem_type == "regression" and not data.attributes:
        yield "problem_type=regression rates attributes: say which, as --attributes arousal valence."
    if data.rir_dir and not data.noisy_copies:
        yield "rir_dir serves noisy copies only. Give noisy_copies too."
    if data.noisy_copies < 0:
        yield f"noisy_copies={data.noisy_copies} must not be negative."
    yield from misspelled(data, config)
    for name in ("noise_dir", "rir_dir"):
        folder = getattr(data, name)
        if folder and not os.path.isdir(folder):
            yield f"{name}={folder} is no folder."
    if training.device.type == "cpu" and (training.bf16_full_eval or training.fp16_full_eval):
        yield "bf16_full_eval and fp16_full_eval need a GPU. Leave them out on a CPU."
    if training.train_sampling_strategy not in ("random", "group_by_length"):
        yield f"train_sampling_strategy={training.train_sampling_strategy}: choose random or group_by_length."
    if training.train_sampling_strategy == "group_by_length" and not backbone_learns:
        yield "group_by_length spares padded waveforms, and a frozen backbone embeds each once. Leave it out."
    if training.push_to_hub and "/" not in (training.hub_model_id or ""):
        yield "push_to_hub needs hub_model_id=ORG/NAME."
    if training.save_total_limit == 1:
        yield "save_total_limit=1 leaves nothing to go on from where the newest checkpoint is damaged. Use 2 or more."


def misspelled(data, config) -> Iterator[str]:
    """Choices of ours that are none."""
    for name, choices in CHOICES.items():
        given = getattr(data, name, None) or getattr(config, name, None) or []
        for value in [given] if isinstance(given, str) else given:
            if value not in choices:
                nearest = difflib.get_close_matches(value, choices, n=1, cutoff=0.4)
                hint = f" Did you mean {nearest[0]}?" if nearest else ""
                yield f"{name}={value}: choose one of {', '.join(choices)}.{hint}"


def _flags_of(path: Path) -> list[str]:
    if not path.is_file():
        raise SystemExit(f"{path}: no such configuration file.")
    flags = []
    try:  # all as text, so that a folder 001 stays 001
        settings = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader) or {}
        for key, value in settings.items():
            values = value if isinstance(value, list) else [value]
            flags += [f"--{key}", *values] if value not in ("", "null", "~", "None") else []
    except (yaml.YAMLError, AttributeError) as error:
        _stop(f"{path} is no YAML of settings, one `name: value` a line: {' '.join(str(error).split())}")
    return flags


def resolved(arguments) -> dict:
    """Every setting that decides the result."""
    model_args, data_args, config_args, training_args = arguments
    every = {**vars(model_args), **vars(data_args), **vars(config_args), **training_args.to_sanitized_dict()}
    return {name: value for name, value in every.items() if name not in NOT_PART_OF_THE_RESULT}


def given_settings(arguments) -> dict:
    """The settings that differ from their defaults, as they would stand in CONFIG.yaml; none that names a place."""
    settings = {}
    for group in arguments:
        for spec in dataclasses.fields(group):
            value, default = getattr(group, spec.name), spec.default
            if spec.default_factory is not dataclasses.MISSING:
                default = spec.default_factory()
            places = spec.name.endswith(("_dir", "_cache", "dataset_name")) or spec.name in NOT_PART_OF_THE_RESULT
            if spec.init and not places and value != default and isinstance(value, (str, int, float, list)):
                settings[spec.name] = Path(value).name if os.path.isdir(str(value)) else value
    return settings
