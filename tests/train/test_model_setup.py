"""The model that a run trains: of a backbone, or of a model to go on from."""

from types import SimpleNamespace

import pytest

from tests.support.tones import write_backbone
from train.model_setup import ModelError, build_model, freeze

LABELS = ["anger", "neutral"]


def settings(**given) -> SimpleNamespace:
    return SimpleNamespace(**{"arrangement": None, "n_components": 4} | given)


def test_the_layers_named_learn_and_nothing_below_them(tmp_path, tiny_backbone_config):
    model = build_model(str(write_backbone(tmp_path / "b", tiny_backbone_config)), LABELS, settings())
    assert model.is_backbone_frozen and model.config.n_components == 4
    freeze(model, SimpleNamespace(freeze_backbone=True, keep_last_n_layers=1, freeze_feature_encoder=True))
    learns = {name for name, weight in model.backbone.named_parameters() if weight.requires_grad}
    assert learns and all(name.startswith("encoder.layers.1.") for name in learns)
    freeze(model, SimpleNamespace(freeze_backbone=False, keep_last_n_layers=0, freeze_feature_encoder=True))
    frozen = {name for name, weight in model.backbone.named_parameters() if not weight.requires_grad}
    assert frozen and all(name.startswith("feature_extractor.") for name in frozen)


def test_a_model_to_go_on_from_keeps_its_weights_and_forgets_its_adaptation(tmp_path, tiny_model):
    former = tiny_model("linear")
    former.output_adaptation.biases.fill_(1.0)
    former.save_pretrained(tmp_path)
    model = build_model(str(tmp_path), former.config.labels, settings())
    assert (model.classifier.weight == former.classifier.weight).all() and model.output_adaptation.is_idle
    other = build_model(str(tmp_path), LABELS, settings())
    assert other.config.labels == LABELS and other.classifier.weight.shape[0] == 2


def test_a_source_that_is_no_model_is_told_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="No model can be made of .*bert"):
        build_model(str(tmp_path), LABELS, settings())
