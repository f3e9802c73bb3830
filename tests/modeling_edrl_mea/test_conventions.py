"""What users of transformers, peft and accelerate expect to work on any model."""

import copy
import warnings

import pytest
import torch
from transformers import AutoModelForAudioClassification, WavLMModel

from modeling_edrl_mea import EdrlMeaForAudioClassification, prepared_weights
from tests.conftest import inputs_of, noise_recordings


@pytest.fixture
def recordings():
    return noise_recordings(3, seed=1)


@pytest.fixture
def kernels(monkeypatch):
    """The CPU's own way at inference, which some machines are spared, and which shortcuts some modules' calls."""
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("oneDNN packs weights on x86 alone")
    monkeypatch.setattr(prepared_weights, "has_kernels", lambda dtype: dtype == torch.float32)


# Adapters and quantization


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]},
        {"target_modules": r".*backbone\.(encoder|feature_projection).*(proj|dense|projection)"},
        {"target_modules": r".*conv_layers.*conv"},
    ],
    ids=["attention", "and a classifier", "every linear of the backbone", "convolutions"],
)
def test_low_rank_adapters_train_merge_and_come_back(kernels, tiny_model, tmp_path, recordings, settings):
    peft = pytest.importorskip("peft")
    base = tiny_model("edrl_mea")
    untouched = copy.deepcopy(base)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False, **settings)).eval()
    inputs = inputs_of(untouched, recordings)
    logits = model(**inputs).logits
    assert not torch.allclose(logits, untouched(**inputs).logits, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-4, rtol=1e-3)
    model.train()(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    assert adapters and all(p.grad is not None and p.grad.isfinite().all() for p in adapters)
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(untouched, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, logits, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(again.merge_and_unload()(**inputs).logits, logits, atol=1e-4, rtol=1e-3)


def test_all_linear_layers_take_adapters(tiny_model, recordings):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("linear"), peft.LoraConfig(r=2, target_modules="all-linear")).train()
    model(**inputs_of(model, recordings), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert any("intermediate_dense.lora_B" in name and p.grad.any() for name, p in model.named_parameters())


@pytest.mark.parametrize("arrangement", ["linear", "edrl", "edrl_mea"])
def test_dynamic_quantization_answers_nearly_alike(kernels, tiny_model, recordings, arrangement):
    model = tiny_model(arrangement)
    inputs = inputs_of(model, recordings)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        difference = (quantized(**inputs).logits.softmax(-1) - model(**inputs).logits.softmax(-1)).abs().max()
    assert 0 < difference < 0.1


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_forward_hooks_fire_at_inference_and_change_nothing(kernels, tiny_backbone_config, norm):
    from modeling_edrl_mea.backbone import LengthAwareWavLM

    config = copy.deepcopy(tiny_backbone_config)
    config.feat_extract_norm = norm
    model, fired = LengthAwareWavLM(config).eval(), {}
    waveforms = 0.1 * torch.randn(1, 8_000)
    with torch.no_grad():
        expected = model(waveforms).hidden_states[-1]
        for name, module in model.named_modules():
            module.register_forward_hook(lambda module, args, output, name=name: fired.setdefault(name, output))
        torch.testing.assert_close(model(waveforms).hidden_states[-1], expected, atol=1e-4, rtol=1e-3)
    for name in ("feature_extractor.conv_layers.0.conv", "feature_extractor.conv_layers.1.conv"):
        assert fired[name].shape[1] == 16, name  # (batch, channels, time), as transformers has it
    for part in ("feed_forward", "feed_forward.intermediate_act_fn", "feed_forward.output_dense", "attention.q_proj"):
        assert f"encoder.layers.1.{part}" in fired
    assert "encoder.pos_conv_embed.conv" in fired


# What is returned


def test_the_config_says_what_is_returned(tiny_model, tmp_path, recordings):
    tiny_model("edrl_mea").save_pretrained(tmp_path)
    settings = {"output_hidden_states": True, "output_attentions": True, "attn_implementation": "eager"}
    model = EdrlMeaForAudioClassification.from_pretrained(tmp_path, **settings)
    inputs = inputs_of(model, recordings)
    output = model(**inputs)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    assert model(**inputs, output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple) and not isinstance(model(**inputs, return_dict=True), tuple)


@pytest.mark.parametrize("arrangement", ["linear", "edrl", "edrl_mea"])
def test_outputs_are_indexed_as_those_of_transformers(tiny_model, recordings, arrangement):
    """People write `loss, logits = model(…)[:2]`, and the stock Trainer `outputs[0]` of a tuple."""
    model = tiny_model(arrangement)
    inputs, labels = inputs_of(model, recordings), torch.tensor([0, 1, 2])
    expected = model(**inputs, labels=labels)
    assert model(**inputs)[0].equal(expected.logits)
    for loss, logits in (expected[:2], model(**inputs, labels=labels, return_dict=False)[:2]):
        assert loss.equal(expected.loss) and logits.equal(expected.logits)


def test_a_traced_model_says_what_the_model_does(tiny_model, recordings):
    model = tiny_model("edrl_mea", return_dict=False)
    first, other = (inputs_of(model, given).values() for given in (recordings, recordings[::-1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace holds for one shape
        traced = torch.jit.trace(model, tuple(first), strict=False)
    torch.testing.assert_close(traced(*other)[0], model(*other)[0])


def test_long_recordings_have_hidden_states_and_attentions_too(tiny_model):
    whole = tiny_model("linear")
    cut = tiny_model("linear", max_window_seconds=0.5, window_overlap_seconds=0.1)
    inputs = inputs_of(whole, noise_recordings(2, seconds=1.3))
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected, found = whole(**inputs, **asked), cut(**inputs, **asked)
    for name in ("hidden_states", "attentions"):
        shapes = [[layer.shape for layer in output[name]] for output in (expected, found)]
        assert shapes[0] == shapes[1], name
    weights = found.attentions[-1]
    own = weights.sum(-1) > 0
    torch.testing.assert_close(weights.sum(-1)[own], torch.ones_like(weights.sum(-1)[own]))
    assert cut(**inputs).hidden_states is None


def test_attentions_are_those_that_the_scores_come_from(tiny_model, recordings):
    model = tiny_model("edrl")
    output = model(**inputs_of(model, recordings), output_attentions=True)
    for weights in output.attentions:
        weights.retain_grad()
    output.logits.sum().backward()
    assert all(weights.grad is not None and weights.grad.any() for weights in output.attentions)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_attention_implementation_may_be_named(tiny_model, tmp_path, recordings, implementation):
    model = tiny_model("edrl_mea")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path, attn_implementation=implementation)
    inputs = inputs_of(model, recordings)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)


# Training, precision, placement


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_of_either_kind_trains_every_layer(tiny_model, recordings, use_reentrant):
    model = tiny_model("edrl").train()
    inputs = inputs_of(model, recordings)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        torch.manual_seed(7)
        model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("by_name", [False, True])
def test_reentrant_checkpointing_trains_layers_above_frozen_ones(tiny_model, recordings, by_name):
    model = tiny_model("edrl")
    model.freeze_backbone(keep_last_n_layers=2)
    if by_name:  # transformers' way, which the convolutions remember
        model.freeze_feature_encoder()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()(**inputs_of(model, recordings), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(p.grad is not None for p in model.backbone.encoder.layers.parameters())


@pytest.mark.parametrize("arrangement", ["linear", "edrl_mea"])
def test_a_bfloat16_model_from_a_config_keeps_exact_buffers(tiny_model, arrangement):
    config = tiny_model(arrangement).config
    from_config = AutoModelForAudioClassification.from_config(config, dtype=torch.bfloat16)
    for model in (from_config, tiny_model(arrangement).bfloat16()):
        assert model.dtype == torch.bfloat16
        exact = ("speech_embedding", "alignment", "output_adaptation")
        buffers = {name: buffer.dtype for name, buffer in model.named_buffers() if any(part in name for part in exact)}
        assert len(buffers) >= 6 and set(buffers.values()) == {torch.float32}


def test_weights_may_stay_off_the_device(tiny_model, recordings):
    from accelerate import cpu_offload

    model = tiny_model("edrl_mea")
    inputs = inputs_of(model, recordings)
    with torch.no_grad():
        expected = model(**inputs).logits
        offloaded = cpu_offload(model, execution_device=torch.device("cpu"))
        assert offloaded.backbone.encoder.layers[0].attention.q_proj.weight.is_meta
        torch.testing.assert_close(offloaded(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow  # the compiler takes its time
@pytest.mark.parametrize("arrangement", ["linear", "edrl_mea"])
def test_a_compiled_model_is_one_graph_for_recordings_of_any_length(tiny_model, arrangement):
    model = tiny_model(arrangement)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for seconds in (0.3, 0.5):
            (waveform,) = noise_recordings(1, seconds)
            inputs = {"input_values": torch.from_numpy(waveform)[None]}
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)


def replica_of(model):
    """What `DataParallel` makes of a model for each GPU: its weights are tensors, and no parameters."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        replica._modules = {name: replicas.get(child) for name, child in module._modules.items()}
        replica._buffers = dict(module._buffers)
        for name, weight in module._parameters.items():
            setattr(replica, name, None if weight is None else weight.clone())
    return replicas[model]


@pytest.mark.parametrize("arrangement", ["linear", "edrl_mea"])
def test_the_replicas_of_data_parallel_say_and_learn_what_the_model_does(tiny_model, recordings, arrangement):
    model = tiny_model(arrangement)
    inputs, labels = inputs_of(model, recordings), torch.tensor([0, 1, 2])
    output, of_replica = model(**inputs, labels=labels), replica_of(model)(**inputs, labels=labels)
    torch.testing.assert_close(of_replica.logits, output.logits)
    of_replica.loss.backward()
    assert model.backbone.encoder.layers[0].attention.q_proj.weight.grad.any()


@pytest.mark.parametrize("arrangement", ["linear", "edrl", "edrl_mea"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_any_precision_takes_what_the_feature_extractor_gives(tiny_model, recordings, arrangement, dtype):
    model = tiny_model(arrangement)
    inputs = inputs_of(model, recordings)
    expected = model(**inputs).logits.softmax(-1)
    for training in (False, True):  # which take different ways on the CPU
        with torch.set_grad_enabled(training):
            found = copy.deepcopy(model).to(dtype)(**inputs).logits
            torch.testing.assert_close(found.double().softmax(-1), expected.double(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "waveforms", [torch.zeros(8_000), torch.zeros(1, 1, 8_000), torch.zeros(1, 8_000, dtype=torch.int16)]
)
def test_what_is_no_batch_of_waveforms_is_refused_in_one_line(tiny_model, waveforms):
    with pytest.raises(
        ValueError, match=r"input_values of shape .* and type .*: give floats \(batch, samples\)"
    ) as refused:
        tiny_model("linear")(waveforms)
    assert "\n" not in str(refused.value)


def test_layers_may_lie_on_the_disk_and_none_is_split(tiny_model, tmp_path, recordings):
    from accelerate import infer_auto_device_map
    from accelerate.utils import compute_module_sizes

    model = tiny_model("edrl_mea")
    model.save_pretrained(tmp_path / "model")
    inputs, sizes = inputs_of(model, recordings), compute_module_sizes(model)
    layers = [f"edrl_mea.backbone.encoder.layers.{place}" for place in (0, 1)]
    room = {"cpu": sizes[""] - sizes[layers[1]], "disk": 10**9}
    places = infer_auto_device_map(model, room, no_split_module_classes=model._no_split_modules)
    assert "disk" in places.values() and len(set(places.values())) == 2
    apart = tuple(f"{layer}." for layer in layers) + ("edrl_mea.disentanglement.",)
    assert not [name for name in places if name.startswith(apart)]
    loaded = EdrlMeaForAudioClassification.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
    )
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)


def test_a_bare_backbone_is_refused_with_the_way_to_use_it(tiny_backbone_config, tmp_path):
    WavLMModel(tiny_backbone_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="wavlm model.*from_backbone"):
        EdrlMeaForAudioClassification.from_pretrained(tmp_path)
