"""transformers' own common tests on this model. tests/modeling_edrl_mea/test_transformers_common.py runs them, with the
tests of transformers' source distribution beside as the package `transformers_tests`."""

import unittest

import numpy as np
import torch
from transformers import WavLMConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin

from modeling_edrl_mea import EdrlMeaConfig, EdrlMeaFeatureExtractor, EdrlMeaForAudioClassification, EdrlMeaModel
from modeling_edrl_mea.frames import frame_lengths

# From these tables the tests know which class has a loss.
MODEL_MAPPING_NAMES["edrl_mea"] = "EdrlMeaModel"
MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES["edrl_mea"] = "EdrlMeaForAudioClassification"

NO_TOKENS = "recordings are no tokens, and have no embedding table"
LEFT_PADDING = "recordings are padded on the right; a mask that says otherwise is refused"
MORE_THAN_A_HEAD = "EDRL's encoders and decoders depend on the labels as well, and start anew with them"
NO_ALIGNMENT = "this arrangement has no alignment to keep in float32"

PADDED_LEFT = [
    name for name in dir(ModelTesterMixin) if "sdpa_inference" in name and "pad_left" in name and "no_attn" not in name
]


def without(names, reason: str):
    """Class decorator: these tests do not apply, and why."""

    def decorate(test_class):
        for name in names:
            assert hasattr(ModelTesterMixin, name), name
            setattr(test_class, name, unittest.skip(reason)(lambda self: None))
        return test_class

    return decorate


class ModelTester:
    """What the common tests ask of a model: a small config and a batch."""

    batch_size, num_hidden_layers, hidden_size, num_attention_heads = 3, 2, 32, 2
    n_samples, is_training = 1_024, True

    def __init__(self, arrangement: str):
        self.arrangement = arrangement
        backbone = self.get_config().backbone_config
        self.seq_length = self.encoder_seq_length = frame_lengths(backbone, self.n_samples)

    def get_config(self) -> EdrlMeaConfig:
        backbone = WavLMConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=20,
            conv_dim=(32, 32, 32),
            conv_kernel=(8, 8, 8),
            conv_stride=(4, 4, 4),
            feat_extract_norm="layer",
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            layerdrop=0.0,
        )
        labels = {0: "anger", 1: "happiness", 2: "sadness"}
        settings = {"arrangement": self.arrangement, "adapted_speakers": ["Anna"]}
        return EdrlMeaConfig(backbone_config=backbone, id2label=labels, **settings)

    def prepare_config_and_inputs_for_common(self):
        waveforms = 0.1 * torch.randn(self.batch_size, self.n_samples)
        mask = torch.ones(self.batch_size, self.n_samples, dtype=torch.long)
        return self.get_config(), {"input_values": waveforms, "attention_mask": mask}


class Common(ModelTesterMixin):
    all_model_classes = (EdrlMeaModel, EdrlMeaForAudioClassification)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    arrangement: str

    def setUp(self):
        self.model_tester = ModelTester(self.arrangement)


@without(PADDED_LEFT, LEFT_PADDING)
@without(["test_model_get_set_embeddings"], NO_TOKENS)
@without(["test_can_load_ignoring_mismatched_shapes"], MORE_THAN_A_HEAD)
class EdrlMeaTest(Common, unittest.TestCase):
    arrangement = "edrl_mea"
    test_all_params_have_gradient = False  # the classifier behind the alignment is trained once that is fitted

    def test_config(self):
        ConfigTester(self, EdrlMeaConfig, has_text_modality=False, block_size=8).run_common_tests()


@without(PADDED_LEFT, LEFT_PADDING)
@without(["test_model_get_set_embeddings"], NO_TOKENS)
@without(["test_keep_in_fp32_modules_exist"], NO_ALIGNMENT)
class LinearTest(Common, unittest.TestCase):
    arrangement = "linear"


class FeatureExtractorTester:
    batch_size, min_seq_length, max_seq_length, feature_size = 7, 400, 2_000, 1
    padding_value, sampling_rate = 0.0, 16_000
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def prepare_feat_extract_dict(self):
        return {"feature_size": 1, "sampling_rate": 16_000, "padding_value": 0.0, "do_normalize": True}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        generator = np.random.default_rng(0)
        waveforms = [generator.uniform(-1, 1, self.max_seq_length if equal_length else n) for n in lengths]
        return waveforms if numpify else [waveform.tolist() for waveform in waveforms]


class FeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = EdrlMeaFeatureExtractor
    feat_extract_tester = FeatureExtractorTester()
