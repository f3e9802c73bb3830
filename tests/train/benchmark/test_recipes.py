"""Recipes in the benchmark: what may take part, and what their predictions depend on."""

import pytest
import yaml

from tests.support.tones import EMOTIONS, write_backbone
from train.benchmark.recipes import Recipe, RecipeError


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tiny_backbone_config):
    return write_backbone(tmp_path_factory.mktemp("backbone"), tiny_backbone_config)


def recipe(folder, backbone, scheme="four_emotions", **settings) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(yaml.safe_dump({"model_name_or_path": str(backbone), **settings}))
    return Recipe("r", folder / "r.yaml", list(EMOTIONS), scheme, folder / "cache")


def test_a_recipe_that_trains_the_backbone_is_refused(tmp_path, backbone):
    with pytest.raises(RecipeError, match="trains the backbone"):
        recipe(tmp_path, backbone, arrangement="edrl", keep_last_n_layers=1)


def test_its_settings_tell_what_it_predicts_and_not_where_it_lies(tmp_path, backbone):
    first = recipe(tmp_path / "one", backbone, arrangement="linear", dataset_name="somewhere")
    again = recipe(tmp_path / "two", backbone, arrangement="linear")
    assert first.settings == again.settings != recipe(tmp_path / "two", backbone, arrangement="edrl").settings
    assert first.given_settings == {"model_name_or_path": backbone.name, "arrangement": "linear"}
    assert first.cache.folder.name == again.cache.folder.name
