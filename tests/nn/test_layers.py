"""Layers: shapes, gradients of modules, and what every module must survive."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import odenet
from odenet.nn import Augmented, ConvField, MLPField, NeuralODE, classifier
from odenet.nn.fields import TimeConv2d
from slow_cases import slow_unless
from torch_versions import needs_tracing


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


def test_a_layer_tells_how_its_solve_ended() -> None:
    layer = NeuralODE(lambda t, y: y**2, ts=(0.0, 2.0), per_sample=True, on_failure="return")
    layer(torch.tensor([[0.1], [1.0]]))
    assert [odenet.Status(int(x)) for x in layer.status] == [odenet.Status.SUCCESS, odenet.Status.BLOW_UP]
    layer = NeuralODE(lambda t, y: -y)
    layer(torch.ones(2))
    assert layer.status == odenet.Status.SUCCESS
    torch.func.vmap(layer)(torch.ones(3, 2))
    assert torch.equal(copy.deepcopy(layer).status, torch.zeros(3, dtype=layer.status.dtype))


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


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint"])
def test_training_reduces_a_loss(gradient: str) -> None:
    """A rotation by a quarter turn is learned from its end points."""
    torch.manual_seed(0)
    layer = NeuralODE(MLPField(2, hidden=(16,)), method="rk4", step=0.25, gradient=gradient)
    x = torch.randn(32, 2)
    target = torch.stack([-x[:, 1], x[:, 0]], 1)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = ((layer(x) - target) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_layer_is_the_solve() -> None:
    """Options, args and times go through; its time has the state's own precision."""
    seen = set()

    def f(t: torch.Tensor, y: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        seen.add(t.dtype)
        return -k * y

    layer = NeuralODE(f, ts=(1.0, 0.0), method="dopri8", rtol=1e-9, atol=1e-9)
    k = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64)
    out = layer(y0, args=(k,))
    sol = odenet.solve(f, y0, [1.0, 0.0], args=(k,), method="dopri8", rtol=1e-9, atol=1e-9)
    assert torch.equal(out, sol.y1) and layer.stats.nfe == sol.stats.nfe and seen == {torch.float64}
    out.sum().backward()
    assert k.grad is not None and float(k.grad) == pytest.approx(2 * float(torch.exp(k.detach())))
    seen.clear()
    NeuralODE(f)(torch.ones(2, dtype=torch.float32), args=(torch.tensor(1.0, dtype=torch.float32),))
    assert seen == {torch.float32}
    assert "method='dopri8'" in repr(layer) and "ts=(1.0, 0.0)" in repr(layer)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look at it
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")  # dynamo's own too
@needs_tracing
@pytest.mark.parametrize("gradient", slow_unless(["discrete", "backprop", "adjoint"], "discrete"))
def test_inside_a_compiled_model(gradient: str) -> None:
    """`torch.compile` of a model makes one graph of it, solve and all."""
    torch.manual_seed(0)
    layer = NeuralODE(MLPField(4, hidden=(8,)), gradient=gradient)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), layer, torch.nn.Linear(4, 1))
    x = torch.randn(5, 2)
    out = model(x)
    expected = torch.autograd.grad(out.sum(), tuple(model.parameters()))
    compiled = torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, out)
    assert layer.stats.nfe > 0
    for a, b in zip(torch.autograd.grad(compiled.sum(), tuple(model.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_pickle_after_backward_and_shared_field() -> None:
    """A used layer can still be copied, and the copy's parameters are its own."""
    layer = NeuralODE(MLPField(3))
    x = torch.randn(2, 3)
    layer(x).sum().backward()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not torch.equal(layer(x), x) and torch.equal(other(x), x)


def test_mlp_field_shapes_and_time() -> None:
    torch.manual_seed(0)
    field, still = MLPField(3, hidden=(8,)), MLPField(3, hidden=(), time=False)
    y = torch.randn(2, 5, 3)
    assert field(torch.tensor(0.5), y).shape == still(torch.tensor(0.5), y).shape == y.shape
    rows = field(torch.tensor([0.5, 2.0]), y)
    torch.testing.assert_close(rows[1], field(torch.tensor(2.0), y[1]))
    torch.testing.assert_close(rows[0], field(torch.tensor(0.5), y[0]))
    assert not torch.allclose(rows[1], field(torch.tensor(0.5), y[1]))
    assert torch.equal(still(torch.tensor(0.0), y), still(torch.tensor(9.0), y))
    with pytest.raises(ValueError, match=r"activation='rleu' is unknown.*'relu'"):
        MLPField(3, activation="rleu")


@pytest.mark.parametrize("time", [False, True])
def test_conv_field_shapes_and_time(time: bool) -> None:
    """One t a sample is that sample's t; group norm takes the groups that divide."""
    torch.manual_seed(0)
    field = ConvField(6, hidden=4, groups=2, activation="softplus", time=time).double()
    y, t = torch.randn(3, 6, 5, 4).double(), torch.tensor([0.1, 0.5, 2.0]).double()
    rows = field(t, y)
    assert rows.shape == y.shape
    for i in range(3):
        torch.testing.assert_close(rows[i : i + 1], field(t[i], y[i : i + 1]))
    assert torch.allclose(field(t[0], y), field(t[2], y)) != time
    with pytest.raises(ValueError, match="groups=4, channels=6"):
        ConvField(6, groups=4)


def test_time_conv_per_sample_time_and_gradient() -> None:
    """As an ordinary convolution over [t, y] also in t of its own for each image, and in every gradient."""
    torch.manual_seed(0)
    conv = TimeConv2d(2, 3).double()
    t, y = torch.rand(4).double().requires_grad_(), torch.randn(4, 2, 5, 6).double()
    assert conv.time_weight is not None and conv.conv.bias is not None
    weight = torch.cat([conv.time_weight, conv.conv.weight], 1)
    plane = t.view(4, 1, 1, 1).expand(4, 1, 5, 6)
    expected = torch.nn.functional.conv2d(torch.cat([plane, y], 1), weight, conv.conv.bias, padding=1)
    torch.testing.assert_close(conv(t, y), expected)
    inputs = (t, conv.time_weight, conv.conv.weight, conv.conv.bias)
    mine = torch.autograd.grad((conv(t, y) ** 2).sum(), inputs)
    for a, b in zip(mine, torch.autograd.grad((expected**2).sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("per_sample", [False, True])
def test_augmented_trajectory(per_sample: bool) -> None:
    """The extra channels start at zero, reach the field, and are taken off at every time."""
    widths = []

    def f(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        widths.append(y.shape[1])
        return torch.ones_like(y) * y[:, 3:].sum(1, keepdim=True) + 1

    layer = Augmented(NeuralODE(f, per_sample=per_sample), extra=2)
    x = torch.randn(4, 3)
    out = layer(x, ts=[0.0, 0.0, 1.0])
    assert out.shape == ((4, 3, 3) if per_sample else (3, 4, 3)) and set(widths) == {5}
    first = out[:, 0] if per_sample else out[0]
    assert torch.equal(first, x) and layer(x).shape == x.shape
    with pytest.raises(ValueError, match="extra must be at least 1; got 0"):
        Augmented(layer, extra=0)


def test_one_time_is_none() -> None:
    with pytest.raises(ValueError, match="ts must hold at least two times"):
        NeuralODE(lambda t, y: -y, ts=(0.0,))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"foo": 3}, TypeError, "option='foo' is unknown"),
        ({"max_step": 3}, TypeError, r"Did you mean 'controller=odenet\.PID\(max_step=\.\.\.\)'"),
        ({"args": (1,)}, TypeError, "option='args' is unknown"),
        ({"method": "tsitt5"}, ValueError, "Did you mean 'tsit5'"),
        ({"method": "rk4"}, ValueError, "step is required"),
        ({"step": "a"}, TypeError, "step must be one positive number"),
        ({"gradient": "exact"}, ValueError, "gradient='exact' is unknown"),
        ({"rtol": -1}, ValueError, "rtol must be zero or positive"),
        ({"atol": float("nan")}, ValueError, "atol must be a number"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
        ({"per_sample": 1}, TypeError, "per_sample must be True or False"),
        ({"on_failure": None}, TypeError, "on_failure must be a name, one of raise, return; got NoneType None"),
        ({"event": 3}, TypeError, "event must be an Event"),
        ({"callbacks": 3}, TypeError, "callbacks must be a Callbacks instance"),
        ({"progress": 3}, TypeError, "progress must be True, False or a callable"),
        ({"rtol": "a"}, TypeError, "rtol must be a number"),
        ({"atol": True}, TypeError, "atol must be a number"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_when_the_layer_is_made(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        NeuralODE(lambda t, y: -y, **options)
