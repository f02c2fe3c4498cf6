"""Layers: shapes, gradients of modules, and what every module must survive."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from odenet.nn import Augmented, ConvField, MLPField, NeuralODE, classifier
from odenet.nn.fields import TimeConv2d


def test_neural_ode_is_a_module_like_any() -> None:
    torch.manual_seed(0)
    layer = NeuralODE(MLPField(3), rtol=1e-4, atol=1e-4, gradient="adjoint")
    x = torch.randn(5, 3)
    y = layer(x)
    assert y.shape == x.shape and layer.stats.nfe > 0
    y.sum().backward()
    assert layer.stats.backward_nfe > 0 and all(p.grad is not None for p in layer.parameters())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), y)
    fresh = NeuralODE(MLPField(3), rtol=1e-4, atol=1e-4)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), y)
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer(x.double(), ts=[0.0, 0.5, 1.0]).shape == (3, 5, 3)


@pytest.mark.parametrize("per_sample", [False, True])
def test_conv_field_and_augmented(per_sample: bool) -> None:
    layer = Augmented(NeuralODE(ConvField(8), per_sample=per_sample, rtol=1e-3, atol=1e-3), extra=3)
    assert layer(torch.randn(4, 5, 6, 6)).shape == (4, 5, 6, 6)


def test_time_channel_is_a_constant_channel() -> None:
    conv, t, y = TimeConv2d(2, 3), torch.tensor(0.7), torch.randn(4, 2, 5, 5)
    assert conv.time_weight is not None
    weight = torch.cat([conv.time_weight, conv.conv.weight], 1)
    joined = torch.cat([torch.full((4, 1, 5, 5), 0.7), y], 1)
    expected = torch.nn.functional.conv2d(joined, weight, conv.conv.bias, padding=1)
    torch.testing.assert_close(conv(t, y), expected)


def test_sizes_of_the_papers_nets() -> None:
    count = {k: sum(p.numel() for p in classifier(k).parameters()) for k in ("resnet", "rknet", "odenet")}
    assert count["rknet"] == count["odenet"]
    assert count["resnet"] / 1e6 == pytest.approx(0.60, abs=0.03)
    assert count["odenet"] / 1e6 == pytest.approx(0.22, abs=0.015)
