"""Training loops where f can reach what belongs to the graph of the last step train as with backpropagation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captured.ways import SETTINGS, WITHOUT_COMPILING, D, Way, native
from odenet.errors import CaptureError
from odenet.nn import NeuralODE

Weights = list[list[float]]


class Net(nn.Module):
    """tanh of a linear layer, made by `made`. `during` gets the module and what it computed, in every evaluation."""

    def __init__(self, made: Callable[[nn.Linear], nn.Module], during: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.during = made(nn.Linear(2, 2, dtype=D)), during
        self.kept: list[Tensor] = []
        self.named: dict[str, Tensor] = {}

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out = torch.tanh(self.linear(y))
        self.during(self, out)
        return out


def trained(f: Net, solve: Callable[[Any, Tensor], Tensor], after: Callable[[Any, Tensor], None]) -> Weights:
    """The parameters after each of three steps. `after` gets the module and the loss."""
    optimizer, found = torch.optim.SGD(f.parameters(), 0.1), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = solve(f, torch.ones(3, 2, dtype=D)).square().sum()
        loss.backward()
        optimizer.step()
        after(f, loss)
        found.append([x for p in f.parameters() for x in p.detach().flatten().tolist()])
    return found


def nothing(f: Net, x: Tensor) -> None:
    pass


def plain(layer: nn.Linear) -> nn.Module:
    return layer


def keep_loss(f: Any, x: Tensor) -> None:
    f.loss = x


def append(f: Any, x: Tensor) -> None:
    f.kept.append(x)


def name(f: Any, x: Tensor) -> None:
    f.named["last"] = x


KEPT: dict[str, tuple[Any, Any, Any]] = {
    "the loss": (plain, nothing, keep_loss),
    "a list of losses": (plain, nothing, append),
    "a dict of losses": (plain, nothing, name),
    "a feature": (plain, keep_loss, nothing),
    "a list of features": (plain, append, nothing),
    "weight_norm": (nn.utils.parametrizations.weight_norm, nothing, nothing),
    "old weight_norm": (nn.utils.weight_norm, nothing, nothing),
    "old spectral_norm": (lambda layer: nn.utils.spectral_norm(layer).eval(), nothing, nothing),
    "spectral_norm": (lambda layer: nn.utils.parametrizations.spectral_norm(layer).eval(), nothing, nothing),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("way", [w for w in WITHOUT_COMPILING if w.name != "backprop, joint"], ids=str)
@pytest.mark.parametrize("kept", KEPT)
def test_what_is_kept_does_not_matter(kept: str, way: Way) -> None:
    made, during, after = KEPT[kept]
    expected = trained(Net(made, during), native("backprop").solve, after)
    mine = trained(Net(made, during), way.solve, after)
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:gradient='reversible':UserWarning")
@pytest.mark.parametrize("normed", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("way", WITHOUT_COMPILING, ids=str)
def test_power_iterations_go_on_in_every_evaluation(way: Way, normed: Any) -> None:
    """In training mode f is another function at each evaluation, which comes to rest as the iterations do."""
    f = Net(normed, nothing)
    with torch.no_grad():
        for _ in range(100):
            f(torch.zeros((), dtype=D), torch.ones(3, 2, dtype=D))
    start = [p.detach().clone() for p in f.parameters()]
    found = trained(f, way.solve, keep_loss)
    other = Net(normed, nothing)
    other.load_state_dict(f.state_dict())
    with torch.no_grad():
        for p, x in zip(other.parameters(), start, strict=True):
            p.copy_(x)
    expected = trained(other, native("backprop").solve, nothing)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
def test_a_layer_trains_too(gradient: Any) -> None:
    def weights(gradient: Any) -> Weights:
        layer = NeuralODE(Net(plain, keep_loss), rtol=1e-9, atol=1e-11, gradient=gradient)
        return trained(layer.field, lambda f, y0: layer(y0), append)

    expected = torch.tensor(weights("backprop"))
    torch.testing.assert_close(torch.tensor(weights(gradient)), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gradient", [g for g in SETTINGS if g != "backprop"], ids=str)
def test_a_recurrent_state(gradient: Any) -> None:
    """Each solve starts from where the last one ended, with a rate made from its end: one graph for all of them."""

    def of(gradient: Any) -> Tensor:
        k = torch.tensor(0.3, dtype=D, requires_grad=True)
        y, rate = torch.ones(2, 1, dtype=D), k * 1.0
        for _ in range(3):
            y = native(gradient).solve(partial(lambda rate, t, y: -rate * y, rate), y)
            rate = k * y.mean()
        return torch.autograd.grad(y.sum(), k)[0]

    torch.testing.assert_close(of(gradient), of("backprop"), rtol=1e-6, atol=0.0)


def test_a_recurrent_state_of_f() -> None:
    """The same kept in f, where the next solve finds another one before the backward pass: the graphs are kept too."""

    def of(gradient: Any) -> Tensor:
        k = torch.tensor(0.3, dtype=D, requires_grad=True)
        y, hidden = torch.ones(2, 1, dtype=D), {"rate": k * 1.0}
        for _ in range(3):
            y = native(gradient).solve(lambda t, y: -hidden["rate"] * y, y)
            hidden["rate"] = k * y.mean()
        return torch.autograd.grad(y.sum(), k)[0]

    torch.testing.assert_close(of("discrete"), of("backprop"), rtol=1e-9, atol=0.0)
    for gradient in ("adjoint", "gauss", "reversible"):
        with pytest.raises(CaptureError, match="computed outside f"):
            of(gradient)
