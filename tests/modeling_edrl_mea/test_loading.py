"""Saved models that cannot be right are refused by name, in time; those that are right load as ever."""

import contextlib
import json
import os
import shutil
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TorchAoConfig

from modeling_edrl_mea import EdrlMeaForAudioClassification
from modeling_edrl_mea.loading import check_checkpoint, not_finite
from tests.conftest import inputs_of, noise_recordings


@pytest.fixture
def folder(model_folder, tmp_path):
    """A saved model to be damaged."""
    return shutil.copytree(model_folder, tmp_path / "model")


def change(path, **values) -> None:
    """Values of a JSON file, those of its "backbone_config" by names with a dot."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        within, _, key = name.rpartition("__")
        (content[within] if within else content)[key] = value
    path.write_text(json.dumps(content))


def change_weights(folder, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def refused(folder, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EdrlMeaForAudioClassification.from_pretrained(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["classifier.weight", "edrl_mea.alignment.rotations", "edrl_mea.speech_embedding.mean"]
)
def test_one_number_that_is_none_is_named(folder, name, number):
    def edit(weights):
        name_there = next(there for there in weights if there.startswith(name))
        weights[name_there].view(-1)[-1] = number

    change_weights(folder, edit)
    refused(folder, f"NaN or infinite numbers in {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_numbers_are_no_infinite_ones(dtype):
    layer = torch.nn.Linear(64, 64, dtype=dtype)
    torch.nn.init.constant_(layer.weight, torch.finfo(dtype).max)  # whose sum is infinite
    assert not_finite(layer) == []
    layer.weight.data[3, 5] = float("nan")
    assert not_finite(layer) == ["weight"]


@pytest.mark.parametrize(
    "part", ["classifier.", "disentanglement.", "alignment.", "backbone.encoder.layers.0.attention"]
)
def test_missing_tensors_are_named(folder, part):
    def edit(weights):
        for name in [name for name in weights if part in name]:
            del weights[name]

    change_weights(folder, edit)
    refused(folder, f"lacks .*{part}.*ignore_mismatched_sizes")


def test_new_heads_on_purpose_are_no_damage(folder):
    change_weights(folder, lambda weights: weights.pop("classifier.weight"))
    _, report = EdrlMeaForAudioClassification.from_pretrained(folder, output_loading_info=True)
    assert report["missing_keys"] == {"classifier.weight"}
    EdrlMeaForAudioClassification.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_a_stage_that_is_not_fitted_is_no_damage(tiny_model, tmp_path):
    tiny_model("edrl_mea", fitted=False).save_pretrained(tmp_path)
    assert not EdrlMeaForAudioClassification.from_pretrained(tmp_path).alignment.is_fitted


@pytest.mark.parametrize(("name", "value"), [("sampling_rate", 8_000), ("do_normalize", True)])
def test_a_preprocessor_that_hears_otherwise_is_refused(folder, name, value):
    change(folder / "preprocessor_config.json", **{name: value})
    refused(folder, f"preprocessor_config.json has {name}={value}")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"backbone_config__num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, more than its weights can fill"),
        ({"backbone_config__num_hidden_layers": 3}, "asks for 3 layers .* the weights have 2"),
        ({"backbone_config__hidden_size": 10**12}, "hidden_size=10"),
        ({"backbone_config__conv_dim": [16, 16, 16, 10**9]}, "conv_dim=10"),
        ({"backbone_config__num_buckets": 10**10}, "num_buckets=10"),
        ({"num_labels": 10**9}, "num_labels=10"),
        ({"n_components": 10**11}, "n_components=10"),
        ({"id2label": {str(i): f"emotion {i}" for i in range(50_000)}}, "asks for 50000 labels"),
        ({"temperature": float("nan")}, "temperature=nan must be above 0"),
        ({"max_window_seconds": float("inf")}, "config.json is damaged .*infinity"),
        ({"sampling_rate": None}, "config.json is damaged .*NoneType"),
        ({"backbone_config__conv_kernel": "ten"}, "conv_kernel"),
    ],
)
def test_an_absurd_config_is_refused_quickly(folder, values, named):
    change(folder / "config.json", **values)
    start = time.process_time()
    with pytest.raises((ValueError, RuntimeError), match=named):
        EdrlMeaForAudioClassification.from_pretrained(folder)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["[]", "5", "null", '"a"', "[" * 100_000, '{"a":' * 100_000, "{", ""])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_file_of_settings_that_holds_none_is_refused(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises((ValueError, OSError), match=name):
        check_checkpoint(folder, {})


@pytest.mark.parametrize("value", [True, -1, 2.5, float("nan"), "", [], [[]], {}, {"a": None}, {"0": 1}, {"1": "a"}])
@pytest.mark.parametrize("name", ["id2label", "backbone_config", "sampling_rate", "attribute_names", "adaptation"])
def test_odd_settings_are_refused_in_words_or_harmless(folder, name, value):
    change(folder / "config.json", **{name: value})
    with contextlib.suppress(ValueError):
        check_checkpoint(folder, {})


def test_a_cut_file_of_weights_is_refused(folder):
    os.truncate(folder / "model.safetensors", 20_000)
    refused(folder, "model.safetensors is damaged")


def test_what_may_be_missing_is_drawn_anew_whatever_the_memory_held(folder):
    save_file({"another": torch.zeros(2)}, folder / "model.safetensors")
    for _ in range(4):
        stale = [torch.full((size,), float("nan")) for size in (64, 512, 4096, 16 * 8 * 32)]
        del stale
        model, told = EdrlMeaForAudioClassification.from_pretrained(folder, output_loading_info=True)
        assert told["missing_keys"] and not not_finite(model)


def test_a_pointer_of_git_lfs_is_told_from_damage(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 17\n"
    (folder / "model.safetensors").write_text(pointer)
    refused(folder, "git lfs pull")


@pytest.mark.parametrize("settings", [{"dtype": torch.bfloat16}, {"dtype": "auto"}, {"device_map": "cpu"}])
def test_what_is_right_loads_in_every_way(folder, settings):
    model = EdrlMeaForAudioClassification.from_pretrained(folder, **settings).eval()
    inputs = inputs_of(model, noise_recordings(2))
    inputs["input_values"] = inputs["input_values"].to(model.dtype)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_shards_are_checked_as_one_file_is(tiny_model, tmp_path):
    tiny_model("edrl_mea").save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    EdrlMeaForAudioClassification.from_pretrained(tmp_path)
    change(tmp_path / "config.json", backbone_config__num_hidden_layers=10**9)
    refused(tmp_path, "num_hidden_layers=1000000000")


def test_what_was_offloaded_is_not_looked_at():
    assert not_finite(torch.nn.Linear(3, 3, device="meta")) == []


# --- quantized ------------------------------------------------------------------------------------------------


def quantized(folder):
    torchao = pytest.importorskip("torchao.quantization")
    settings = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    return EdrlMeaForAudioClassification.from_pretrained(folder, quantization_config=settings, device_map="cpu")


def test_a_quantized_model_is_loaded_saved_and_loaded(folder, tmp_path):
    model = quantized(folder)
    whole = EdrlMeaForAudioClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "quantized")
    again = EdrlMeaForAudioClassification.from_pretrained(tmp_path / "quantized", device_map="cpu")
    inputs = inputs_of(whole, noise_recordings(2))
    with torch.no_grad():
        answers = [each.eval()(**inputs).logits for each in (whole, model, again)]
    torch.testing.assert_close(answers[1], answers[0], atol=0.1, rtol=0.1)
    torch.testing.assert_close(answers[2], answers[1], atol=0, rtol=0)


def test_a_scale_that_is_no_number_is_named(folder, tmp_path):
    quantized(folder).save_pretrained(tmp_path / "quantized")
    file = tmp_path / "quantized" / "model.safetensors"
    with safe_open(file, "pt") as weights:
        metadata, tensors = weights.metadata(), load_file(file)
    scale = next(name for name in tensors if "backbone" in name and name.endswith("scale"))
    tensors[scale].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match="NaN or infinite numbers in .*backbone"):
        EdrlMeaForAudioClassification.from_pretrained(tmp_path / "quantized", device_map="cpu")


class Packed(torch.Tensor):
    """As quantization libraries have them: it can be turned back and little else."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), settings=None):
        if function is torch.Tensor.sum:
            raise NotImplementedError
        return super().__torch_function__(function, types, arguments, settings or {})

    def dequantize(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize(("number", "named"), [(1.0, []), (float("nan"), ["weight"])])
def test_quantized_numbers_are_looked_at_as_what_they_stand_for(number, named):
    layer = torch.nn.Linear(4, 4, bias=False)
    layer.weight = torch.nn.Parameter(torch.full((4, 4), number).as_subclass(Packed), requires_grad=False)
    assert not_finite(layer) == named
    eight_bits = torch.nn.Linear(4, 4, bias=False).requires_grad_(False)
    eight_bits.weight.data = torch.full((4, 4), number).to(torch.float8_e4m3fn)
    assert not_finite(eight_bits) == named
