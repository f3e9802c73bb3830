"""Settings: what is wrong is named before anything is computed."""

import json
import re

import pytest

from modeling_edrl_mea import EdrlMeaConfig
from tests.conftest import EMOTIONS


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"arrangement": "edrl_mae"}, "Did you mean 'edrl_mea'"),
        ({"pooling": "mean_and_std"}, "pooling"),
        ({"arrangement": "mea_edrl"}, "train the model anew"),
        ({"arrangement": "edrl_mea", "alignment_target": ["labels"]}, "aligned to labels: train it anew"),
        ({"n_component": 4}, "Did you mean n_components"),
        ({"id2label": {0: "anger", 2: "sadness"}}, r"ids \[0, 2\]"),
        ({"id2label": {1: "anger", 2: "sadness"}}, r"ids \[1, 2\]"),
        ({"id2label": {0: "anger", 1: "anger"}}, "'anger'"),
        ({"id2label": {0: "anger"}}, "at least two emotions"),
        ({"id2label": ["anger", "sadness"]}, "must map ids to names"),
        ({"block_size": 0}, "block_size=0"),
        ({"n_components": -1}, "n_components=-1"),
        ({"whitening_size": 8}, "whitening_size is no longer a setting"),
        ({"sampling_rate": 0}, "sampling_rate=0"),
        ({"reconstruction_weight": -0.1}, "reconstruction_weight"),
        ({"label_ridge": float("nan")}, "label_ridge"),
        ({"standardization_clip": 0.0}, "standardization_clip"),
        ({"adaptation_prior": -1.0}, "adaptation_prior"),
        ({"window_overlap_seconds": 20.0}, "window_overlap_seconds"),
        ({"window_overlap_seconds": 19.99}, "window_overlap_seconds"),
        ({"window_overlap_seconds": -1.0}, "window_overlap_seconds"),
        ({"max_window_seconds": 0.01}, "max_window_seconds"),
        ({"backbone_config": {"model_type": "bert"}}, "bert"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(settings, named):
    with pytest.raises(ValueError, match=named):
        EdrlMeaConfig(**settings)


def test_a_model_without_any_loss_is_refused():
    weights = {name: 0.0 for name in EdrlMeaConfig.__annotations__ if name.endswith("_weight")}
    assert len(weights) == 6
    with pytest.raises(ValueError, match="classification_weight"):
        EdrlMeaConfig(arrangement="edrl", **weights)


def test_settings_survive_saving(tmp_path, tiny_backbone_config):
    config = EdrlMeaConfig(
        backbone_config=tiny_backbone_config, id2label=EMOTIONS, attribute_names=["arousal"], block_size=3
    )
    config.save_pretrained(tmp_path)
    loaded = EdrlMeaConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert loaded.attribute_names == ["arousal"] and loaded.labels == list(EMOTIONS.values())


def test_label_to_id_is_the_inverse_of_id_to_label(tmp_path):
    assert EdrlMeaConfig(id2label=EMOTIONS).label2id == {name: i for i, name in EMOTIONS.items()}
    assert EdrlMeaConfig(label2id={"calm": 1, "fear": 0}).id2label == {0: "fear", 1: "calm"}
    EdrlMeaConfig(id2label=EMOTIONS).save_pretrained(tmp_path)
    other = EdrlMeaConfig.from_pretrained(tmp_path, id2label={"0": "fear", "1": "calm"})
    assert other.label2id == {"fear": 0, "calm": 1} and other.labels == ["fear", "calm"]


def test_what_loading_overrides_is_checked_too(tmp_path):
    EdrlMeaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'edrl'"):
        EdrlMeaConfig.from_pretrained(tmp_path, arrangement="erdl")


def test_sizes_follow_from_the_settings(tiny_backbone_config):
    settings = {"backbone_config": tiny_backbone_config, "id2label": EMOTIONS}
    one_layer = 2 * tiny_backbone_config.hidden_size  # mean and standard deviation
    assert EdrlMeaConfig(**settings).speech_embedding_size == one_layer
    assert EdrlMeaConfig(**settings).block_names == ["shared", *EMOTIONS.values()]
    wide = EdrlMeaConfig(layer_combination="concatenate", **settings)
    assert wide.speech_embedding_size == 3 * one_layer


def test_a_configuration_of_an_earlier_version_loads_without_what_is_gone(tmp_path):
    EdrlMeaConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    gone = {"whitening_size": None, "choose_n_components": True, "alignment_target": ["labels"], "noise_shrinkage": 10}
    file.write_text(json.dumps(json.loads(file.read_text()) | gone))
    assert not gone.keys() & EdrlMeaConfig.from_pretrained(tmp_path).to_dict().keys()


def test_every_setting_says_why_in_help():
    documented = set(re.findall(r"^        (\w+): ", EdrlMeaConfig.__doc__, re.M))
    assert documented == set(EdrlMeaConfig.__annotations__) - {"model_type"}
