import numpy as np
import torch
from transformers import AutoFeatureExtractor, WavLMModel

from modeling_edrl_mea.frames import frame_lengths
from tests.support.pretraining import CONFIG, TINY, tone
from train.pretraining.student import backbone_config
from train.pretraining.targets import HOP
from train.pretraining.training_run import export


def test_padding_does_not_change_the_compact_backbone(tmp_path):
    config = backbone_config(**TINY)
    directory = export(config, WavLMModel(config).state_dict(), tmp_path)
    model = WavLMModel.from_pretrained(directory).eval()
    extractor = AutoFeatureExtractor.from_pretrained(directory)
    assert extractor.do_normalize and extractor.return_attention_mask
    signals = [tone(150, 0.7), tone(200, 1.3)]
    together = extractor(signals, sampling_rate=16000, padding=True, return_tensors="pt")
    alone = extractor(signals[0], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        padded, short = model(**together).last_hidden_state[0], model(**alone).last_hidden_state[0]
    torch.testing.assert_close(padded[: len(short)], short, atol=1e-5, rtol=1e-4)


def test_the_compact_backbone_is_small_and_steps_20_ms():
    model = WavLMModel(backbone_config())
    assert sum(p.numel() for p in model.parameters()) < 6e6
    for samples in (745, 16000, 31999, 48000):
        assert model._get_feat_extract_output_lengths(samples) == frame_lengths(CONFIG, samples)
    assert np.prod(model.config.conv_stride) == HOP
