"""The WavLM backbone: equal to stock WavLM, and to itself whatever else is in the batch."""

import copy

import numpy as np
import pytest
import torch
from transformers import WavLMConfig, WavLMForCTC, WavLMModel

from modeling_edrl_mea import prepared_weights
from modeling_edrl_mea.frames import receptive_field, samples_per_frame
from modeling_edrl_mea.wavlm import LengthAwareWavLM

KINDS = [("group", False), ("layer", False), ("layer", True), ("group", True)]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]} norm{', stable' * kind[1]}")
def config(request, tiny_backbone_config) -> WavLMConfig:
    norm, stable = request.param
    return changed(tiny_backbone_config, feat_extract_norm=norm, do_stable_layer_norm=stable)


def changed(config: WavLMConfig, **values) -> WavLMConfig:
    return WavLMConfig(**{**config.to_dict(), **values})


def randomized(model):
    """Weights that leave no term of the model at zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def stock(config) -> WavLMModel:
    return randomized(WavLMModel(config))


@pytest.fixture
def backbone(stock) -> LengthAwareWavLM:
    model = LengthAwareWavLM(stock.config).eval()
    model.load_state_dict(stock.state_dict())
    return model


def recordings(config: WavLMConfig, *n_frames: int) -> list[torch.Tensor]:
    """Noise on an offset, each with a few samples left over after its last frame."""
    field, hop = receptive_field(config), samples_per_frame(config)
    return [0.2 * torch.randn(field + (n - 1) * hop + 7 * i) + 0.3 for i, n in enumerate(n_frames)]


def padded(waveforms: list[torch.Tensor], length: int | None = None, filler: float = 0.0):
    length = length or max(len(w) for w in waveforms)
    values, mask = torch.full((len(waveforms), length), filler), torch.zeros(len(waveforms), length)
    for i, waveform in enumerate(waveforms):
        values[i, : len(waveform)], mask[i, : len(waveform)] = waveform, 1
    return values, mask


def stock_hidden_states(stock: WavLMModel, waveforms: torch.Tensor) -> list[torch.Tensor]:
    output = stock(waveforms, output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]


def assert_close(first, second, tolerance=1e-5):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_without_padding_it_equals_stock_wavlm(stock, backbone):
    waveforms = 0.2 * torch.randn(2, 6000) + 0.3
    expected = stock_hidden_states(stock, waveforms)
    assert_close(backbone(waveforms).hidden_states, expected)
    with torch.no_grad():
        assert_close(backbone(waveforms).hidden_states, expected)
    with torch.inference_mode():
        output = backbone(waveforms, torch.ones(2, 6000))
    assert_close(output.hidden_states, expected)
    assert output.frame_mask.all() and output.frame_mask.shape == expected[0].shape[:2]


def test_gradients_equal_those_of_stock_wavlm(stock, backbone):
    waveforms = 0.2 * torch.randn(2, 6000)
    expected, got = stock_hidden_states(stock, waveforms), backbone(waveforms).hidden_states
    directions = [torch.randn_like(h) for h in expected]
    for states in (expected, got):
        sum((h * d).sum() for h, d in zip(states, directions, strict=True)).backward()
    parameters = dict(backbone.named_parameters())
    for name, parameter in stock.named_parameters():
        if parameter.grad is None:
            assert parameters[name].grad is None
        else:
            scale = max(1.0, float(parameter.grad.abs().max()))
            error = (parameters[name].grad - parameter.grad).abs().max()
            assert error <= 1e-4 * scale, name


def test_attentions_are_those_of_stock_and_do_not_change_the_hidden_states(stock, backbone):
    waveforms = 0.2 * torch.randn(2, 6000)
    output = backbone(waveforms, output_attentions=True)
    assert_close(output.hidden_states, backbone(waveforms).hidden_states)
    expected = stock(waveforms, output_attentions=True).attentions  # stock averages them over heads
    assert_close([a.mean(1) for a in output.attentions], [a.mean(1) for a in expected])


@pytest.mark.parametrize("way", ["training", "inference", "inference in one batch"])
def test_hidden_states_do_not_depend_on_padding_or_company(backbone, way, monkeypatch):
    if way == "inference in one batch":  # as on a GPU
        monkeypatch.setattr("modeling_edrl_mea.wavlm.is_plain_inference", lambda x: False)
    waveforms = recordings(backbone.config, 1, 2, 3, 9, 17, 40)
    with torch.set_grad_enabled(way == "training"):
        alone = [backbone(w[None]).hidden_states for w in waveforms]
        longest = max(len(w) for w in waveforms)
        for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [0, 3]):
            for length in (max(len(waveforms[i]) for i in order), longest + 1111):
                output = backbone(*padded([waveforms[i] for i in order], length, filler=float("nan")))
                for row, i in enumerate(order):
                    n_frames = alone[i][0].shape[1]
                    assert output.frame_mask[row].sum() == n_frames and output.frame_mask[row, :n_frames].all()
                    assert_close([h[row, :n_frames] for h in output.hidden_states], [h[0] for h in alone[i]])
                assert all(h.isfinite().all() for h in output.hidden_states)


def test_attention_weights_ignore_padding(backbone):
    waveforms = recordings(backbone.config, 4, 12)
    output = backbone(*padded(waveforms), output_attentions=True)
    for weights in output.attentions:
        assert (weights[0, :, :, 4:] == 0).all()
        torch.testing.assert_close(weights.sum(3), torch.ones_like(weights[..., 0]))


def test_long_recordings_in_pieces_equal_one_pass(stock, backbone, monkeypatch):
    """Feature encoder and attention work piece by piece where memory would be large."""
    monkeypatch.setattr("modeling_edrl_mea.feature_encoder.ENCODER_SAMPLES", 4000)
    monkeypatch.setattr("modeling_edrl_mea.wavlm.is_plain_inference", lambda x: False)
    monkeypatch.setattr("modeling_edrl_mea.wavlm.MIN_QUERIES", 1)
    monkeypatch.setattr("modeling_edrl_mea.wavlm.MAX_MASK_ELEMENTS", 1000)
    waveforms = recordings(backbone.config, 71, 50)
    with torch.no_grad():
        assert_close(backbone(waveforms[0][None]).hidden_states, stock_hidden_states(stock, waveforms[0][None]))
        output = backbone(*padded(waveforms))
        alone = stock_hidden_states(stock, waveforms[1][None])
    assert_close([h[1, :50] for h in output.hidden_states], [h[0] for h in alone])


def test_silence_and_large_offsets_stay_finite(backbone):
    with torch.no_grad():
        for value in (0.0, 1.0, 1e4):
            output = backbone(torch.full((1, 6000), value))
            assert all(h.isfinite().all() for h in output.hidden_states)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_and_autocast_agree_with_float32(backbone, dtype):
    waveforms = recordings(backbone.config, 20, 12)
    values, mask = padded(waveforms)
    with torch.no_grad():
        expected = backbone(values, mask)
        with torch.autocast("cpu", dtype):
            results = [backbone(values, mask)]
        results.append(backbone.to(dtype)(values.to(dtype), mask))
    for output in results:
        for got, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
            error = (got.float() - wanted)[expected.frame_mask].norm()
            assert error < 0.05 * wanted[expected.frame_mask].norm()


def test_half_precision_trains(backbone):
    values, mask = padded(recordings(backbone.config, 20, 12))
    with torch.autocast("cpu", torch.bfloat16):
        output = backbone.train()(values, mask)
    output.hidden_states[-1][output.frame_mask].float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in backbone.parameters())


@pytest.fixture(params=["usual kernels", "packed", "packed, rows padded"])
def kernels(request, monkeypatch):
    """What a processor's kernels ask for: the machine of the tests may have any of them."""
    if request.param != "usual kernels":
        if "AVX" not in torch.backends.cpu.get_cpu_capability():
            pytest.skip("oneDNN packs weights on x86 alone")
        monkeypatch.setattr(prepared_weights, "has_kernels", lambda dtype: dtype == torch.float32)
    if request.param == "packed, rows padded":
        monkeypatch.setattr(prepared_weights, "ROW_MULTIPLES", {torch.float32: 32})


def test_kernels_change_no_hidden_state(stock, backbone, kernels):
    waveforms = 0.2 * torch.randn(3, 6000)
    with torch.inference_mode():
        together = backbone(waveforms).hidden_states
        assert_close(together, stock_hidden_states(stock, waveforms))
        for row, waveform in enumerate(waveforms):
            assert_close([layer[row] for layer in together], [h[0] for h in backbone(waveform[None]).hidden_states])


def test_changed_weights_are_never_stale(backbone, kernels):
    """Prepared weights follow every way in which weights change, `.data` included."""
    waveforms = torch.randn(1, 6000)
    attention, feed_forward = backbone.encoder.layers[0].attention, backbone.encoder.layers[0].feed_forward
    conv = backbone.feature_extractor.conv_layers[-1].conv
    with torch.no_grad():
        for weight in (feed_forward.intermediate_dense.weight, attention.v_proj.weight, conv.weight):
            other = torch.randn_like(weight)
            for change in (
                lambda w=weight: w.mul_(1.5),
                lambda w=weight: w.data.mul_(1.5),
                lambda w=weight, o=other: w.data.copy_(o),
            ):
                before = backbone(waveforms).hidden_states[1]
                change()
                after = backbone(waveforms).hidden_states[1]
                assert not torch.allclose(before, after)
        assert_close([after], [copy.deepcopy(backbone)(waveforms).hidden_states[1]])


def test_one_weight_changed_behind_the_version_counter_is_heard(backbone, kernels):
    waveforms = torch.randn(1, 6000)
    layers = [
        module
        for module in backbone.modules()
        if type(module) in (torch.nn.Linear, torch.nn.Conv1d) and len(module.weight) > 8
    ]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            before = backbone(waveforms).hidden_states[-1]
            values = layer.weight.detach().numpy()
            row, column = number % values.shape[0], (7 * number + 3) % values.shape[1]
            values[row, column] += 1.0
            assert not torch.equal(before, backbone(waveforms).hidden_states[-1]), number


def test_replaced_layers_are_heard(backbone, kernels):
    waveforms = torch.randn(1, 6000)
    attention = backbone.encoder.layers[0].attention
    with torch.no_grad():
        before = backbone(waveforms).hidden_states[1]
        attention.k_proj = copy.deepcopy(attention.q_proj)
        assert not torch.allclose(before, backbone(waveforms).hidden_states[1])


def test_gradient_checkpointing_changes_no_gradient(config):
    config = changed(config, mask_time_prob=0.3, mask_time_length=4, mask_feature_prob=0.2, layerdrop=0.3)
    config = changed(config, mask_feature_length=2)
    model = LengthAwareWavLM(config).train()
    values, mask = padded(recordings(config, 20, 12))

    def gradients():
        torch.manual_seed(1)
        np.random.seed(1)
        model.zero_grad()
        output = model(values, mask)
        output.hidden_states[-1][output.frame_mask].square().sum().backward()
        assert len(output.hidden_states) == config.num_hidden_layers + 1
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert_close(gradients(), plain)


def test_training_masks_frames_and_spares_recordings_shorter_than_a_mask(config):
    config = changed(config, mask_time_prob=0.9, mask_time_length=5, mask_time_min_masks=1)
    model = LengthAwareWavLM(config).train()
    short, long = recordings(config, 2, 30)
    assert all(h.isfinite().all() for h in model(short[None]).hidden_states)
    model.zero_grad()
    model(long[None]).hidden_states[-1].square().sum().backward()
    assert model.masked_spec_embed.grad.abs().sum() > 0


@pytest.mark.parametrize("published", [WavLMModel, WavLMForCTC])
def test_published_checkpoints_load_completely(config, tmp_path, published):
    stock = randomized(published(changed(config, vocab_size=8)))
    stock.save_pretrained(tmp_path)
    model, report = LengthAwareWavLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert all(name.startswith("lm_head") for name in report["unexpected_keys"])
    waveforms = torch.randn(1, 6000)
    assert_close(model(waveforms).hidden_states, stock_hidden_states(getattr(stock, "wavlm", stock), waveforms))


def test_its_checkpoints_load_in_stock_wavlm(stock, backbone, tmp_path):
    backbone.save_pretrained(tmp_path)
    model, report = WavLMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_recordings_without_a_frame_are_refused(backbone):
    shortest = receptive_field(backbone.config)
    with pytest.raises(ValueError, match=f"pad to {shortest}"):
        backbone(torch.randn(1, shortest - 1))
    with pytest.raises(ValueError, match="recording 1 of the batch"):
        backbone(*padded([torch.randn(6000), torch.randn(shortest - 1)]))


@pytest.mark.parametrize("shape", [(2, 6001), (1, 6000), (6000,), (2, 6000, 1)])
def test_a_mask_of_another_shape_is_refused(backbone, shape):
    with pytest.raises(ValueError, match="attention_mask has the shape"):
        backbone(torch.randn(2, 6000), torch.ones(shape))


def test_padding_on_the_left_is_refused(backbone):
    mask = torch.ones(1, 6000)
    mask[:, :100] = 0
    with pytest.raises(ValueError, match="right padding"):
        backbone(torch.randn(1, 6000), mask)


def test_it_compiles_to_one_graph(tiny_backbone_config):
    """Without a mask there is no control flow that depends on data."""
    model = LengthAwareWavLM(tiny_backbone_config).eval()
    waveforms = torch.randn(1, 6000)
    with torch.no_grad():
        compiled = torch.compile(lambda x: model(x).hidden_states, fullgraph=True, backend="eager")
        assert_close(compiled(waveforms), model(waveforms).hidden_states)


def test_positional_convolution_by_spectra_equals_the_convolution(backbone):
    layer = backbone.encoder.pos_conv_embed
    for n_frames in (1, 2, 15, 16, 17, 18, 33, 100):
        x = torch.randn(2, n_frames, backbone.config.hidden_size)
        with torch.no_grad():
            by_spectra = layer(x)
        assert_close([by_spectra], [layer(x)])


def test_a_copy_made_after_inference_works(backbone):
    """Prepared weights stay out of the model."""
    waveforms = torch.randn(1, 6000)
    with torch.no_grad():
        expected = backbone(waveforms).hidden_states
        assert_close(copy.deepcopy(backbone)(waveforms).hidden_states, expected)
