"""How an EDRL-MEA model comes to be and is kept: initialization, loading and saving."""

import contextlib
import json
import os
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .adaptation import OutputAdaptation
from .alignment import EmbeddingAlignment
from .backbone import in_half_where_exact
from .configuration_edrl_mea import EdrlMeaConfig
from .disentanglement import ClassWiseLinear, EmotionDisentanglement, init_class_wise, init_linear
from .feature_extraction_edrl_mea import EdrlMeaFeatureExtractor
from .frames import receptive_field
from .loading import check_checkpoint, check_loaded
from .speech_embedding import SpeechEmbedding

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class EdrlMeaPreTrainedModel(PreTrainedModel):
    config_class = EdrlMeaConfig
    base_model_prefix = "edrl_mea"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["EncoderLayer", "StableEncoderLayer", "EmotionDisentanglement"]
    # The loss is a mean over the batch, so Trainer has to divide it by the steps of gradient accumulation itself.
    accepts_loss_kwargs = False
    # Standardization and PLS rotations do not survive bfloat16.
    _keep_in_fp32_modules_strict = ["alignment", "speech_embedding"]
    # Models saved before there was adaptation are not adapted.
    _keys_to_ignore_on_load_missing = [r"output_adaptation\.", r"speech_embedding\.adapted_"]

    def get_input_embeddings(self):
        """None: speech has no vocabulary. torchao asks."""
        return None

    @property
    def dtype(self) -> torch.dtype:
        """As in transformers; also in a replica of `DataParallel`, whose weights are no parameters."""
        weights = self.parameters()
        if getattr(self, "_is_replica", False):
            weights = (value for module in self.modules() for value in vars(module).values() if torch.is_tensor(value))
        return next(weight.dtype for weight in weights if weight.is_floating_point())

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, ClassWiseLinear):
            init_class_wise(module, init)
        elif isinstance(module, EmbeddingAlignment):
            module.reset()
        elif isinstance(module, SpeechEmbedding):
            module.reset(init)
        elif isinstance(module, OutputAdaptation):
            module.reset()
        elif isinstance(module, nn.Linear):
            init_linear(module, init)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers. With `ignore_mismatched_sizes=True` and other labels (in number, names or order), exactly
        what depends on labels starts anew: see [`forget_labels`]. Without it, as many other names only rename.

        Raises ValueError for what cannot be right, such as missing tensors or NaN: see loading.py. Heads may be missing
        with `ignore_mismatched_sizes=True` or `output_loading_info=True`, which tells of them.
        """
        # The directory's own config: transformers takes out of `kwargs` what it changes.
        where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if pretrained_model_name_or_path is not None:
            check_checkpoint(pretrained_model_name_or_path, where)
        told = kwargs | {"output_loading_info": True}
        model, report = super().from_pretrained(pretrained_model_name_or_path, *args, **told)
        for name, weight in model.named_parameters():
            # transformers initializes the product of a weight norm, and leaves its factors as the memory was.
            if name in report["missing_keys"] and "pos_conv_embed.conv.parametrizations" in name:
                nn.init.normal_(weight)
        # Without a checkpoint, the weights that are given may be a part.
        forgiven = "ignore_mismatched_sizes", "output_loading_info"
        is_forgiving = pretrained_model_name_or_path is None or any(kwargs.get(name) for name in forgiven)
        check_loaded(pretrained_model_name_or_path, model, [] if is_forgiving else report["missing_keys"])
        for module in model.modules():
            if isinstance(module, EmbeddingAlignment) and not module.refresh():
                module.reset()  # all of it, where another label set emptied a part
        if kwargs.get("ignore_mismatched_sizes") and pretrained_model_name_or_path is not None:
            stored = EdrlMeaConfig.from_pretrained(pretrained_model_name_or_path, **where)
            trained = stored.labels[: stored.n_trained_labels], stored.attribute_names
            if trained != (model.config.labels, model.config.attribute_names):
                model.forget_labels()
        return (model, report) if kwargs.get("output_loading_info") else model

    @torch.no_grad()
    def forget_labels(self) -> None:
        """Re-initialize what depends on the labels: the encoders, decoders and classifiers of the emotions, and an
        alignment, which has their embeddings for blocks. The backbone, the speech embedding and the shared
        encoder stay."""
        for module in self.modules():
            if isinstance(module, EmotionDisentanglement):
                module.forget_labels()
            elif isinstance(module, EmbeddingAlignment):
                module.reset()

    def save_pretrained(self, save_directory, *args, state_dict=None, **kwargs):
        """Also writes the feature extractor, so that any saved directory works with `pipeline`; and a backbone that
        float16 holds exactly, as a frozen one that was published so, in float16."""
        state_dict = in_half_where_exact(self.state_dict() if state_dict is None else state_dict)
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
        if kwargs.get("is_main_process", True):
            # Also where this code was itself loaded by `trust_remote_code`: the copy works as the original did.
            EdrlMeaFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
            self.feature_extractor().save_pretrained(save_directory)
            _offer_auto_model(save_directory)
            _let_others_read(save_directory)

    def feature_extractor(self) -> EdrlMeaFeatureExtractor:
        return EdrlMeaFeatureExtractor(
            sampling_rate=self.config.sampling_rate,
            do_normalize=self.config.normalize_waveform,
            minimum_length=receptive_field(self.config.backbone_config),
        )


def _let_others_read(folder: str | os.PathLike) -> None:
    """Give the weights the mode of other new files: safetensors makes them readable by their owner alone."""
    mode = os.stat(os.path.join(folder, "config.json")).st_mode
    for weights in Path(folder).glob("*.safetensors"):
        with contextlib.suppress(OSError):  # a disk that knows no modes
            weights.chmod(mode)


def _offer_auto_model(folder: str | os.PathLike) -> None:
    """Let `AutoModel` find the model without its classifier too, where the directory holds the code."""
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    if "auto_map" in config and "AutoModel" not in config["auto_map"]:
        config["auto_map"]["AutoModel"] = "modeling_edrl_mea.EdrlMeaModel"
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=2, sort_keys=True) + "\n")
