"""The model that a run trains: new heads around a backbone, or a trained model to go on from."""

from safetensors import SafetensorError
from transformers import AutoConfig

from modeling_edrl_mea import EdrlMeaForAudioClassification


class ModelError(ValueError):
    """There is no model of this source and these settings."""


def build_model(
    source: str, labels: list[str], config_args, ranges: dict[str, list[float]] | None = None
) -> EdrlMeaForAudioClassification:
    """New heads around a speech encoder, or an EDRL-MEA model with these labels; the backbone is frozen. ModelError
    where the source or the settings do not allow it.

    ranges: the ends of the scale of each attribute to rate; without labels they are all that there is.
    """
    settings = {name: value for name, value in vars(config_args).items() if value is not None}
    settings |= {"attribute_names": list(ranges or ()) or None, "attribute_ranges": ranges or None}
    settings["problem_type"] = None if labels else "regression"
    try:
        model = _model_of(source, dict(enumerate(labels or ranges)), settings)
    except (ValueError, OSError, SafetensorError) as error:  # of transformers, and of the config
        raise ModelError(f"No model can be made of {source}: {' '.join(str(error).split())}") from error
    model.freeze_backbone()
    return model


def _model_of(source: str, id2label: dict[int, str], settings: dict) -> EdrlMeaForAudioClassification:
    config = AutoConfig.from_pretrained(source)
    if config.model_type == "edrl_mea":
        model = EdrlMeaForAudioClassification.from_pretrained(
            source, id2label=id2label, ignore_mismatched_sizes=True, added_labels=[], adapted_speakers=[], **settings
        )
        model.forget_adaptation()  # of the model that it starts from
        return model
    return EdrlMeaForAudioClassification.from_backbone(source, id2label=id2label, **settings)


def freeze(model: EdrlMeaForAudioClassification, args) -> None:
    if args.freeze_backbone:
        model.freeze_backbone(args.keep_last_n_layers)
        return
    model.requires_grad_(True)
    if args.freeze_feature_encoder:
        model.freeze_feature_encoder()
