"""What `train/run.py` takes, from a YAML file and from flags."""

import dataclasses
import difflib
import os
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments

from modeling_edrl_mea import EdrlMeaConfig

COMPACT_BACKBONE = Path(__file__).resolve().parents[1] / "checkpoints" / "wavlm-compact"
# What the run works out itself, or what would contradict another flag.
NOT_FLAGS = {
    *("backbone_config", "normalize_waveform", "sampling_rate"),
    *("added_labels", "adapted_speakers", "adaptation"),  # what `adapt` of a finished model writes
}

# Settings that change nothing about the result, so that a run may go on under others.
NOT_PART_OF_THE_RESULT = {
    *("output_dir", "embedding_cache", "logging_dir", "disable_tqdm", "report_to", "run_name", "local_rank"),
    *("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "resume_from_checkpoint", "test_dataset_name"),
    *("save_strategy", "save_steps", "save_total_limit", "logging_strategy", "logging_steps", "project"),
    *("dataloader_num_workers", "dataloader_pin_memory", "log_level", "ddp_backend", "ddp_timeout", "trackio_space_id"),
}


@dataclass
class DataArguments:
    dataset_name: list[str] = field(
        default_factory=list,
        metadata={"help": "corpora to train on: folder, name=folder, manifest, or Hub id; several are united"},
    )
    test_dataset_name: list[str] = field(
        default_factory=list, metadata={"help": "other corpora, only tested on; labels must fit"}
    )
    label_scheme: str = field(
        default="native",
        metadata={"help": "native, four_emotions, arousal or valence (table in train/data/emotions.py)"},
    )
    train_split_name: str | None = field(default=None, metadata={"help": "official split to train on; default: all"})
    audio_column_name: str = field(default="audio", metadata={"help": "of a Hub dataset or manifest"})
    label_column_name: str | None = field(default=None, metadata={"help": "of a Hub dataset or manifest"})
    speaker_column_name: str | None = field(default=None, metadata={"help": "of a Hub dataset or manifest"})
    test_fraction: float = field(default=0.25, metadata={"help": "share of the speakers held out for testing"})
    validation_fraction: float = field(default=0.2, metadata={"help": "share of the other speakers for early stopping"})
    allow_shared_speakers: bool = field(
        default=False,
        metadata={"help": "split by recording where speakers are unknown: results come out too good"},
    )
    max_length_seconds: float | None = field(
        default=None,
        metadata={"help": "stage 1 hears a random stretch of at most this of each recording (unfrozen backbone)"},
    )
    on_bad_audio: str = field(
        default="error",
        metadata={"help": "error: list recordings that cannot be used and stop; skip: go on without them"},
    )
    noisy_copies: int = field(
        default=0,
        metadata={"help": "augmented copies of each training recording; 0: trained on clean speech alone"},
    )
    noise_dir: str | None = field(default=None, metadata={"help": "noise recordings; half never serve in training"})
    rir_dir: str | None = field(default=None, metadata={"help": "room impulse responses; half never serve in training"})
    embedding_cache: str | None = field(default=None, metadata={"help": "folder; default: OUTPUT_DIR/embeddings"})


@dataclass
class ModelArguments:
    model_name_or_path: str = field(
        default=str(COMPACT_BACKBONE),
        metadata={"help": "WavLM checkpoint, or an EDRL-MEA model to go on from: Hub id or folder"},
    )
    patience: int = field(default=10, metadata={"help": "epochs without a better validation UAR before stage 1 stops"})
    freeze_backbone: bool = field(
        default=True,
        metadata={"help": "keep WavLM as it is: its embeddings are computed once, and training takes seconds"},
    )
    keep_last_n_layers: int = field(
        default=0,
        metadata={"help": "with freeze_backbone: the last transformer layers that stage 1 trains all the same"},
    )
    freeze_feature_encoder: bool = field(
        default=True, metadata={"help": "keep the convolutions under an unfrozen backbone as they are"}
    )
    backbone_learning_rate: float = field(
        default=5e-5, metadata={"help": "of what is unfrozen of the backbone; learning_rate is the heads'"}
    )


@dataclass
class EdrlMeaTrainingArguments(TrainingArguments):
    output_dir: str = field(default="outputs/edrl-mea", metadata={"help": "where the model and the report go"})
    num_train_epochs: float = field(default=8.0)
    per_device_train_batch_size: int = field(default=256)
    per_device_eval_batch_size: int = field(default=256)
    learning_rate: float = field(
        default=1e-4,
        metadata={"help": "more, where EDRL starts at random (start_from_regression): 3e-3, and 40 epochs"},
    )
    weight_decay: float = field(default=0.1)
    eval_strategy: str = field(default="epoch")
    save_strategy: str = field(default="epoch")
    save_total_limit: int | None = field(
        default=2, metadata={"help": "one more than is needed: the newest may be damaged"}
    )
    logging_strategy: str = field(default="epoch")
    report_to: str = field(default="tensorboard")
    seed: int = field(default=0)


def _config_field(spec: dataclasses.Field):
    kind = spec.type
    if typing.get_origin(kind) in (list, tuple) or spec.name == "alignment_target":
        kind = list[str]
    elif spec.name in ("pooling", "layer_combination", "arrangement"):
        kind = str  # the config itself names the choices and the nearest one
    return (
        spec.name,
        kind | None,
        field(default=None, metadata={"help": "field of EdrlMeaConfig, with its default"}),
    )


def _own_fields():
    own = set(EdrlMeaConfig.__annotations__) - NOT_FLAGS
    return [_config_field(spec) for spec in dataclasses.fields(EdrlMeaConfig) if spec.name in own]


ConfigArguments = dataclasses.make_dataclass("ConfigArguments", _own_fields())


def parse_arguments(argv: list[str] | None = None):
    """(model, data, config, training) arguments from `[CONFIG.yaml] [--flag value …]`; flags win.

    Exits naming the nearest known key for one that is unknown or misspelt, before anything else happens.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    from_file = []
    if argv and argv[0].endswith((".yaml", ".yml")):
        from_file = _flags_of(Path(argv.pop(0)))
    parser = HfArgumentParser((ModelArguments, DataArguments, ConfigArguments, EdrlMeaTrainingArguments))
    parser.allow_abbrev = False
    known = [flag for action in parser._actions for flag in action.option_strings]
    for flag in (part.partition("=")[0] for part in from_file + argv):
        if flag.startswith("--") and flag not in known:
            nearest = difflib.get_close_matches(flag, known, n=1)
            raise SystemExit(
                f"Unknown setting {flag[2:]!r}." + (f" Did you mean {nearest[0][2:]!r}?" if nearest else "")
            )
    arguments = parser.parse_args_into_dataclasses(args=from_file + argv)
    for complaint in contradictions(*arguments):
        raise SystemExit(f"error: {complaint}")
    return arguments


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
    if backbone_learns and "edrl" not in arrangement:
        yield f"arrangement={arrangement} trains nothing by gradients, so the backbone cannot learn. Keep it frozen."
    if data.rir_dir and not data.noisy_copies:
        yield "rir_dir serves noisy copies only. Give noisy_copies too."
    if data.noisy_copies < 0:
        yield f"noisy_copies={data.noisy_copies} must not be negative."
    if data.on_bad_audio not in ("error", "skip"):
        yield f"on_bad_audio={data.on_bad_audio}: choose error or skip."
    if training.push_to_hub and "/" not in (training.hub_model_id or ""):
        yield "push_to_hub needs hub_model_id=ORG/NAME."
    if training.save_total_limit == 1:
        yield "save_total_limit=1 leaves nothing to go on from where the newest checkpoint is damaged. Use 2 or more."


def _flags_of(path: Path) -> list[str]:
    if not path.is_file():
        raise SystemExit(f"{path}: no such configuration file.")
    flags = []
    for key, value in (yaml.safe_load(path.read_text()) or {}).items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{key}", *(str(part) for part in values)] if value is not None else []
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
