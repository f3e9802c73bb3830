"""Prepared weights give what a call of the layer gives, also after somebody changed them behind the counter."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm

from modeling_edrl_mea.prepared_weights import forget_changed_weights, project, project_all

X = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_is_what_the_layers_give_one_by_one(dtype):
    layers, x = [nn.Linear(24, width).to(dtype) for width in (8, 5)], X.to(dtype)
    found = [*project_all(layers, x), project(layers[0], x, nn.GELU())]
    expected = [layers[0](x), layers[1](x), nn.GELU()(layers[0](x))]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=2e-2)


@torch.no_grad()
def test_a_convolution_over_windows_is_the_convolution():
    conv, x = nn.Conv1d(6, 9, kernel_size=4), X[0]  # four taps of six channels
    windows = x.unflatten(1, (4, 6)).transpose(1, 2)
    torch.testing.assert_close(project(conv, x), conv(windows)[..., 0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_weights_written_by_way_of_data_are_noticed_in_the_next_pass():
    model = nn.Sequential(nn.Linear(24, 8))
    project(model[0], X)
    model[0].weight.data.mul_(-1)
    forget_changed_weights(model)
    torch.testing.assert_close(project(model[0], X), model[0](X), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_weight_that_is_computed_is_not_computed_in_every_pass(tiny_model, monkeypatch):
    model, waveform = tiny_model("linear").eval(), torch.randn(1, 4_000)
    expected = model(waveform).logits
    monkeypatch.setattr(_WeightNorm, "forward", None)  # of the positional convolution
    torch.testing.assert_close(model(waveform).logits, expected)


def test_with_gradients_the_layer_itself_is_called():
    layer = nn.Linear(24, 8)
    project(layer, X).sum().backward()
    assert layer.weight.grad is not None
