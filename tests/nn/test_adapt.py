"""adapt: networks in the styles of flow-matching, diffusion and neural-ODE code, against their rows one by one."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from odenet.nn import adapt
from torch_versions import needs_tracing

HIDDEN = 8


def embedding(t: Tensor) -> Tensor:
    """Sines and cosines of t (B,), (B, HIDDEN)."""
    assert t.ndim == 1
    frequencies = torch.exp(torch.linspace(0.0, 2.0, HIDDEN // 2, dtype=t.dtype))
    angles = t[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], -1)


class Style(nn.Module):
    """Layers that the networks below share, for x (B, dim)."""

    def __init__(self, dim: int = 2, extra: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim + extra, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, dim))
        self.labels = nn.Embedding(5, dim)


class ColumnTime(Style):
    def forward(self, x_t, t):
        return self.net(torch.cat((x_t, t), dim=1))


class VectorTime(Style):
    def forward(self, x, t):
        return self.net(torch.cat([x, t[:, None]], -1))


class OnesTimesT(Style):
    def forward(self, t, y):
        return self.net(torch.cat([torch.ones_like(y[:, :1]) * t, y], 1))


class Reshaped(Style):
    def forward(self, x, t, **extras):
        v = self.net(torch.cat([x, t.reshape(-1, 1).to(x.dtype).expand(x.shape[0], 1)], -1))
        return v + extras["shift"] if "shift" in extras else v


class OneTensor(Style):
    def forward(self, x):
        return self.net(x)


class TorchWrapper(nn.Module):
    """Repeats a scalar time, so that a time for each sample fails."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, t, x, *args, **kwargs):
        return self.model(torch.cat([x, t.repeat(x.shape[0])[:, None]], 1))


class Labels(Style):
    def forward(self, x, t, y):
        return self.net(torch.cat([x + self.labels(y), t[:, None]], -1))


class TimeFirstLabels(Style):
    def forward(self, t, x, y=None, *args, **kwargs):
        while t.dim() > 1:
            t = t[:, 0]
        if t.dim() == 0:
            t = t.repeat(x.shape[0])
        shift = 0 if y is None else self.labels(y)
        return self.net(torch.cat([x + shift, t[:, None]], -1))


class ConditionBetween(Style):
    def forward(self, x, y, tx):
        return self.net(torch.cat([x + y, tx.view(-1, 1)], 1))


class KeywordsOnly(Style):
    def forward(self, *, x, t, cond=None):
        return self.net(torch.cat([x if cond is None else x + cond, t[:, None]], -1))


class Dynamics(Style):
    """torchdyn's vector fields have an `args` that is not used."""

    def forward(self, t, x, args={}):  # noqa: B006
        return self.net(torch.cat([x, t.expand(x.shape[:-1])[..., None]], -1))


class HyperNetwork(nn.Module):
    """Weights made of a scalar time, as in continuous normalising flows."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 4))

    def forward(self, t, z):
        w = self.weights(t.reshape(1, 1)).reshape(2, 2)
        return torch.tanh(z @ w)


class UNet(nn.Module):
    """Image network with an embedding of the time; zero: with a last layer that is zero at first."""

    def __init__(self, zero: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, HIDDEN, 3, padding=1), nn.Conv2d(HIDDEN, 3, 3, padding=1)
        self.norm, self.time = nn.GroupNorm(2, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.classes, self.text = nn.Embedding(5, HIDDEN), nn.Linear(4, HIDDEN)
        if zero:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def image(self, x, t, more=0.0):
        h = self.norm(self.first(x)) + (self.time(embedding(t)) + more)[:, :, None, None]
        return self.last(torch.nn.functional.silu(h))

    def forward(self, x, timesteps, y=None):
        return self.image(x, timesteps, 0.0 if y is None else self.classes(y))


class DiffusersUNet(UNet):
    def forward(self, sample, timestep, encoder_hidden_states, class_labels=None, return_dict=True):
        more = self.text(encoder_hidden_states).mean(1)
        out = self.image(sample, timestep, more if class_labels is None else more + self.classes(class_labels))
        return SimpleNamespace(sample=out) if return_dict else (out,)


class DiffusersClasses(UNet):
    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        out = self.image(sample, timestep, 0.0 if class_labels is None else self.classes(class_labels))
        return SimpleNamespace(sample=out) if return_dict else (out,)


class Transformer(UNet):
    def forward(self, hidden_states, encoder_hidden_states=None, pooled=None, timestep=None, return_dict=False):
        return (self.image(hidden_states, timestep, self.text(encoder_hidden_states).mean(1)),)


class NoiseLabels(UNet):
    def forward(self, x, noise_labels, class_labels, augment_labels=None):
        return self.image(x, noise_labels, self.classes(class_labels))


class Sigma(UNet):
    def forward(self, x, sigma):
        return self.image(x, sigma.log())


class ImageTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x, t):
        return self.conv(torch.cat([x, t * torch.ones_like(x[:, :1])], 1))


class TimePlane(ImageTime):
    def forward(self, input):
        return self.conv(input)


class Tokens(nn.Module):
    """Attention along the tokens of x (B, S, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(2, 1, batch_first=True), nn.LayerNorm(2)
        self.time = nn.Linear(HIDDEN, 2)

    def forward(self, x, t):
        h = self.norm(x) + self.time(embedding(t))[:, None]
        return self.attention(h, h, h, need_weights=False)[0]


class Regularised(Style):
    """Dropout and batch norm, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Dropout(0.5), nn.Linear(HIDDEN, 2))
        self.net[2].eval()

    def forward(self, x, t):
        return self.net(torch.cat([x, t[:, None]], -1))


class Energy(Style):
    """The gradient of a potential, by autograd inside."""

    def forward(self, x, t):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.net(torch.cat([x, t[:, None]], -1)).square().sum()
            return -torch.autograd.grad(energy, x, create_graph=True)[0]


@dataclass
class Case:
    """A network and what it gives for one row: x (1, ...), t () and the context of the row."""

    make: Callable[[], Callable[..., Any]]
    row: Callable[..., Tensor]
    form: str
    shape: tuple[int, ...] = (2,)
    context: Callable[[int], Any] | None = None
    options: dict[str, Any] | None = None
    dtype: torch.dtype | None = None


def many_labels(batch: int) -> Tensor:
    return torch.arange(batch) % 5


def text(batch: int) -> Tensor:
    return torch.linspace(-1, 1, batch * 12).sin().view(batch, 3, 4)


def shift(batch: int) -> Tensor:
    return torch.linspace(-1, 1, batch * 2).exp().view(batch, 2)


IMAGE = (3, 4, 3)
BOUND = VectorTime()
CASES = {
    "ones like x times t": Case(OnesTimesT, lambda n, x, t: n(t, x), "(B, 1)"),
    "x_t and a column": Case(ColumnTime, lambda n, x, t: n(x, t.view(1, 1)), "(B, 1)"),
    "vector": Case(VectorTime, lambda n, x, t: n(x, t[None]), "(B,)"),
    "reshape and extras": Case(Reshaped, lambda n, x, t: n(x=x, t=t), "(B,)"),
    "extras by keyword": Case(
        Reshaped, lambda n, x, t, c: n(x, t, shift=c), "(B,)", context=shift, options={"context": "shift"}
    ),
    "extras in a dict": Case(
        Reshaped,
        lambda n, x, t, c: n(x=x, t=t, **c),
        "(B,)",
        context=lambda b: {"shift": shift(b)},
        options={"order": "x=x, t=t, **context"},
    ),
    "one tensor": Case(OneTensor, lambda n, x, t: n(torch.cat([x, t.view(1, 1)], -1)), "cat"),
    "sequential": Case(lambda: OneTensor().net, lambda n, x, t: n(torch.cat([x, t.view(1, 1)], -1)), "cat"),
    "no time": Case(lambda: nn.Linear(2, 2), lambda n, x, t: n(x), "none"),
    "time that is not used": Case(lambda: lambda t, y: -y, lambda n, x, t: -x, "(B,)"),
    "torch wrapper": Case(lambda: TorchWrapper(OneTensor()), lambda n, x, t: n(t, x), "()"),
    "hypernetwork": Case(HyperNetwork, lambda n, x, t: n(t, x), "()"),
    "labels": Case(Labels, lambda n, x, t, c: n(x, t[None], c), "(B,)", context=many_labels),
    "time first, no labels": Case(TimeFirstLabels, lambda n, x, t: n(t, x), "(B,)"),
    "time first, labels": Case(TimeFirstLabels, lambda n, x, t, c: n(t, x, c), "(B,)", context=many_labels),
    "condition between": Case(ConditionBetween, lambda n, x, t, c: n(x, c, t), "(B,)", context=shift),
    "keywords only": Case(KeywordsOnly, lambda n, x, t, c: n(x=x, t=t[None], cond=c), "(B,)", context=shift),
    "torchdyn": Case(Dynamics, lambda n, x, t: n(t, x), "(B,)"),
    "partial": Case(
        lambda: functools.partial(Labels(), y=torch.tensor(3)), lambda n, x, t: n(x, t[None]), "(B,)"
    ),
    "function": Case(lambda: lambda z, time: BOUND(z, time), lambda n, x, t: BOUND(x, t[None]), "(B,)"),
    "method": Case(lambda: BOUND.forward, lambda n, x, t: BOUND(x, t[None]), "(B,)"),
    "ADM": Case(UNet, lambda n, x, t: n(x, t[None]), "(B,)", IMAGE),
    "ADM, zero at first": Case(lambda: UNet(zero=True), lambda n, x, t: n(x, t[None]), "(B,)", IMAGE),
    "ADM, labels": Case(UNet, lambda n, x, t, c: n(x, t[None], c), "(B,)", IMAGE, many_labels),
    "diffusers": Case(
        DiffusersUNet,
        lambda n, x, t, c: n(x, 1000 * t[None], c).sample,
        "(B,)",
        IMAGE,
        text,
        {"time_scale": 1000.0},
    ),
    "diffusers classes": Case(
        DiffusersClasses, lambda n, x, t, c: n(x, t[None], class_labels=c).sample, "(B,)", IMAGE, many_labels
    ),
    "SD3": Case(
        Transformer,
        lambda n, x, t, c: -n(x, encoder_hidden_states=c, timestep=1000 * (1 - t[None]))[0],
        "(B,)",
        IMAGE,
        text,
        {"time_scale": 1000, "reverse": True},
    ),
    "EDM": Case(NoiseLabels, lambda n, x, t, c: n(x, t[None], c), "(B,)", IMAGE, many_labels),
    "sigma": Case(Sigma, lambda n, x, t: n(x, t[None]), "(B,)", IMAGE),
    "image time": Case(ImageTime, lambda n, x, t: n(x, t.view(1, 1, 1, 1)), "(B, 1, ...)", IMAGE),
    "plane of time": Case(
        TimePlane, lambda n, x, t: n(torch.cat([x, t.expand(1, 1, 4, 3)], 1)), "channel", IMAGE
    ),
    "tokens": Case(Tokens, lambda n, x, t: n(x, t[None]), "(B,)", (5, 2)),
    "dropout and batch norm": Case(Regularised, lambda n, x, t: n(x, t[None]), "(B,)"),
    "energy": Case(Energy, lambda n, x, t: n(x, t[None]), "(B,)"),
    "numbers": Case(lambda: lambda t, y: y * t, lambda n, x, t: x * t, "(B,)", ()),
    "complex": Case(
        lambda: lambda t, y: 1j * y * t, lambda n, x, t: 1j * x * t, "(B, 1)", dtype=torch.complex64
    ),
}  # fmt: skip


def data(case: Case, batch: int) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(batch)
    dtype = case.dtype or torch.get_default_dtype()
    x = torch.randn(batch, *case.shape, generator=generator, dtype=dtype)
    t = torch.randint(5, 60, (batch,), generator=generator).double() / 64  # 1000 t has no rounding
    return t, x, () if case.context is None else (case.context(batch),)


def row_by_row(case: Case, network: Any, t: Tensor, x: Tensor, context: tuple[Any, ...]) -> Tensor:
    index = [torch.tensor([i]) for i in range(len(x))]
    rows = [torch.utils._pytree.tree_map(lambda c, i=i: c[i], context) for i in index]
    t = t.to(x.real.dtype)
    return torch.cat([case.row(network, x[i], t[i][0], *c) for i, c in zip(index, rows, strict=True)])


@pytest.mark.parametrize("first", [1, 2, 3, 5], ids=lambda b: f"first batch {b}")
@pytest.mark.parametrize("name", CASES)
def test_row_by_row(name: str, first: int) -> None:
    """Whatever the first batch is, whether its time is one or many; then with any other."""
    torch.manual_seed(0)
    case = CASES[name]
    network = case.make()
    f = adapt(network, **(case.options or {}))
    t, x, context = data(case, first)
    f.eval()
    f(t if first % 2 else t[0], x, *context)
    assert f'time="{case.form}" (detected)' in repr(f)
    if isinstance(network, nn.Module) and "zero" in name:
        nn.init.normal_(network.last.weight)  # trained since
    for batch in (1, 2, 3, 4):
        t, x, context = data(case, batch)
        expected = row_by_row(case, network, t, x, context)
        out = f(t, x, *context)
        assert out.dtype == x.dtype
        torch.testing.assert_close(out, expected)
        together = row_by_row(case, network, t[:1].expand(batch), x, context)
        torch.testing.assert_close(f(t[0], x, *context), together)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", ["torch wrapper", "one tensor", "labels", "vector", "hypernetwork"])
def test_solves(name: str, per_sample: bool) -> None:
    """States and gradients of the parameters are those of a field written by hand."""
    torch.manual_seed(0)
    case = CASES[name]
    network = case.make().double()
    _, x, context = data(case, 4)
    x = x.double()

    def by_hand(t, y, *context):
        return row_by_row(case, network, t.expand(len(y)), y, context)

    found = []
    for f in (adapt(network), by_hand):
        sol = odenet.solve(f, x, [0.0, 1.0], args=context, per_sample=per_sample, rtol=1e-8, atol=1e-8)
        found.append(
            (sol.y1, *torch.autograd.grad(sol.y1.square().sum(), list(network.parameters()), allow_unused=True))
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_a_layer() -> None:
    layer = odenet.nn.NeuralODE(adapt(VectorTime()))
    layer(torch.ones(3, 2)).sum().backward()
    assert all(p.grad is not None for n, p in layer.named_parameters() if "net." in n)
    f = layer.field
    for other in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert repr(other) == repr(f) and torch.equal(other(0.5, torch.ones(2, 2)), f(0.5, torch.ones(2, 2)))
    fresh = adapt(VectorTime())
    fresh.load_state_dict(f.state_dict())
    assert torch.equal(fresh(0.5, torch.ones(2, 2)), f(0.5, torch.ones(2, 2)))
    assert f.double()(0.5, torch.ones(2, 2).double()).dtype == torch.float64


# Each gives a result of the right shape for t of shape (B,), and a wrong one.
TRAPS: dict[str, tuple[Callable[[int], Callable[..., Any]], str]] = {
    "t along the last axis": (lambda b: lambda t, x: x * t, "(B, 1)"),
    "t is averaged": (lambda b: lambda t, x: x * t.mean(), "()"),
    "first time": (lambda b: lambda t, x: x * t.reshape(-1)[0], "()"),
    "a table of (B, B)": (lambda b: lambda t, x: x + (x[:, :1] * t).mean(1, keepdim=True), "(B, 1)"),
    "a size of the state": (lambda b: lambda t, x: x * t.expand(b), "()"),
    "all times": (lambda b: lambda t, x: x + torch.outer(t.reshape(-1), t.reshape(-1)).mean(), "()"),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TRAPS)
def test_silent_errors(name: str, batch: int) -> None:
    make, form = TRAPS[name]
    network = make(batch)
    f = adapt(network)
    x, t = torch.randn(batch, batch), torch.linspace(0.1, 0.9, batch)
    f(t, x)
    assert f'time="{form}"' in repr(f)
    torch.testing.assert_close(f(t, x), torch.cat([network(t[i], x[i : i + 1]) for i in range(batch)]))


def test_images_of_three_channels() -> None:
    """Three trial rows and three channels, or a width of three."""
    for axes in [(slice(None), None, None), (None, slice(None), None), (None, None, slice(None)), ()]:
        f = adapt(lambda t, x, axes=axes: x * t[axes] if t.ndim == 1 else x * t)
        x, t = torch.randn(3, 3, 3, 3), torch.rand(3)
        torch.testing.assert_close(f(t, x), x * t.view(3, 1, 1, 1))


@pytest.mark.parametrize("zero", ["last", "time", "gate"])
def test_parameters_that_are_zero_at_first(zero: str) -> None:
    """A network whose last layer or gate is zero shows no time before training: noise on the parameters does."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time, self.last, self.gate = nn.Linear(1, 3), nn.Linear(3, 3), nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            h = x * t  # along the wrong axis for t (B,) with three rows
            return self.last(h) * self.gate + self.time(t.reshape(-1, 1)).mean() * 0

    network = Network()
    with torch.no_grad():
        for p in [network.gate] if zero == "gate" else getattr(network, zero).parameters():
            p.zero_()
    before = copy.deepcopy(network.state_dict())
    f = adapt(network)
    f(0.5, torch.ones(3, 3))
    assert 'time="(B, 1)"' in repr(f)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_time_that_shows_later() -> None:
    """A function of the time that is the same for all times tried, differentiable or not."""
    w = torch.zeros(())
    for network in (lambda t, x: w * x * t, lambda t, x: x * (t > 0.95)):
        with pytest.raises(ValueError, match=r"another time does not change the result.*time=\"\(B,\)\""):
            adapt(network)(0.5, torch.ones(3, 3))
    assert torch.equal(adapt(lambda t, x: w * x * t, time="(B, 1)")(0.5, torch.ones(3, 3)), torch.zeros(3, 3))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision(kind: torch.dtype) -> None:
    f = adapt(VectorTime().to(kind))
    x = torch.randn(4, 2, dtype=kind)
    assert f(torch.rand(4, dtype=torch.float64), x).dtype == kind and 'time="(B,)"' in repr(f)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_network_is_left_alone(wrapped: bool) -> None:
    """Training flags, running statistics, parameters, gradients and random numbers; also behind a function."""
    network = Regularised()
    seen: list[bool] = []
    network.register_forward_pre_hook(lambda m, _: seen.append(m.training or m.net[1].training))
    flags, before = [m.training for m in network.modules()], copy.deepcopy(network.state_dict())
    f = adapt((lambda x, t: network(x, t)) if wrapped else network)
    t, x = torch.tensor([0.1, 0.5, 0.7, 0.3]), torch.ones(4, 2)
    f(t, x)
    assert len(seen) > 3 and not any(seen[:-1]) and seen[-1]  # tried in eval mode, then called as it was
    assert [m.training for m in network.modules()] == flags
    after = copy.deepcopy(network.state_dict())
    assert after["net.1.num_batches_tracked"] == before["net.1.num_batches_tracked"] + 1  # by the call itself
    with pytest.raises(ValueError, match="no form of the time"):
        adapt(network)(t, torch.ones(4, 5))
    assert [m.training for m in network.modules()] == flags
    network.eval()
    random = torch.get_rng_state()
    adapt(network)(t, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, after[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_buffers_are_left_alone() -> None:
    """Counters and moving averages, in place or not."""

    class Counting(VectorTime):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x, t):
            self.calls += 1
            self.mean = 0.5 * self.mean + 0.5 * x.mean()
            return super().forward(x, t)

    network = Counting()
    calls = network.calls
    adapt(network)(0.5, torch.ones(4, 2))
    assert network.calls is calls and calls == 1 and network.mean == 0.5


def test_numbers_beside_which_time_is_small() -> None:
    """Autocast rounds to three digits, and x may be large."""
    x, t = torch.randn(4, 2), torch.rand(4)
    f = adapt(VectorTime())
    with torch.autocast("cpu", torch.bfloat16):
        assert f(t, x).dtype == x.dtype
    assert 'time="(B,)"' in repr(f)
    for network in (lambda x, t: x + t.view(-1, 1), Tokens(), TimeFirstLabels()):
        f = adapt(network)
        f(t, 1e8 * (x if not isinstance(network, Tokens) else x[:, None]))
        assert 'time="(B,)"' in repr(f)


def test_a_batch_of_no_samples() -> None:
    f = adapt(VectorTime())
    assert f(0.5, torch.ones(0, 2)).shape == (0, 2) and "at the first call" in repr(f)


def test_noise_inside() -> None:
    """Dropout that eval mode does not end: no form can be found, but named; the random numbers are as before."""
    network = lambda t, x: torch.nn.functional.dropout(x * t, 0.5)  # noqa: E731
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match="rows of a batch differ by"):
        adapt(network)(0.5, torch.ones(4, 20))
    assert torch.equal(torch.get_rng_state(), random)
    adapt(network, time="(B, 1)")(0.5, torch.ones(4, 20))


def test_shared_context() -> None:
    """A context without the batch, also of size B; a function that gets it by vmap as well."""
    for network in (
        lambda x, t, c: x * t[:, None] * c,
        lambda t, x, c: x * t.item() * c if not torch._C._functorch.is_batchedtensor(t) else x * t * c,
    ):
        for batch in (2, 3, 4):
            f, c = adapt(network), torch.tensor([2.0, -1.0, 0.5])
            x, t = torch.randn(batch, 3), torch.rand(batch)
            torch.testing.assert_close(f(t, x, c), x * t[:, None] * c)


def test_one_time_that_cannot_be_mapped() -> None:
    """t.item() has no vmap: one time works, a time for each sample is an error that says why."""
    f = adapt(lambda t, x: -t.item() * x)
    x = torch.ones(3, 2)
    torch.testing.assert_close(f(torch.tensor(0.5), x), -0.5 * x)
    with pytest.raises(ValueError, match=r"one time for the whole batch.*vmap.*item.*let it take t of shape \(B,\)"):
        f(torch.rand(3), x)
    torch.testing.assert_close(odenet.solve(f, x, [0.0, 1.0]).y1, math.exp(-0.5) * x, rtol=1e-4, atol=1e-4)


def test_numbers_of_axes_are_told_apart() -> None:
    """What is right for (B, D) need not be for (B, C, H, W)."""
    f = adapt(lambda t, x: x * t)
    for shape in ((2, 2), (2, 2, 2, 2), (2, 2, 2)):
        t, x = torch.rand(2), torch.randn(shape)
        torch.testing.assert_close(f(t, x), x * t.view(-1, *[1] * (x.ndim - 1)))


ORDERS: dict[str, tuple[Callable[..., Any], str]] = {
    "odenet": (lambda t, y: y, "t, x"),
    "x first": (lambda x, t, y=None: x, "x, t, context"),
    "unknown state": (lambda t, particles: particles, "t, x"),
    "unknown condition": (lambda t, x, weather: x, "t, x, context"),
    "optional time last": (
        lambda hidden_states, context=None, timestep=None: hidden_states, "x, context, timestep=t"
    ),
    "optional sigma": (lambda t, x, y=None, sigma=None: x, "t, x, context"),
    "options between": (lambda x, mask=None, t=None, c=None: x, "x, t=t, c=context"),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_orders(name: str) -> None:
    network, order = ORDERS[name]
    assert f'order="{order}"' in repr(adapt(network))


AMBIGUOUS: dict[str, tuple[Callable[..., Any], str]] = {
    "unknown names": (lambda a, b: a, "none is known as the state"),
    "args": (lambda *args: args[0], "none is known as the state"),
    "time in args": (lambda x, *args: x, "none is known as the time"),
    "unknown time": (lambda x, noise_variances=None: x, "none is known as the time"),
    "two times": (lambda x, t, sigma: x, "t, sigma may each be the time"),
    "two states": (lambda t, y, x: x, "y, x may each be the state"),
    "more": (lambda t, x, y, mask: x, r"it also needs mask.*\*\*context"),
    "time alone": (lambda t: t, "none is known as the state"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_names(name: str) -> None:
    network, message = AMBIGUOUS[name]
    with pytest.raises(ValueError, match=rf"do not tell how to call it.*{message}"):
        adapt(network)


def test_order_by_hand() -> None:
    x, t = torch.randn(4, 3), torch.rand(4)
    torch.testing.assert_close(adapt(lambda a, b: a * b, order="x, t")(t, x), x * t[:, None])
    torch.testing.assert_close(adapt(lambda a, b: b * a[:, None], order="t, x")(t, x), x * t[:, None])
    torch.testing.assert_close(adapt(lambda *a, **k: a[0] * k["s"], order="x, s=t")(t, x), x * t[:, None])
    c = torch.rand(4, 1)
    torch.testing.assert_close(adapt(lambda *a: a[0] * a[1] * a[2], order="context, x, t")(t, x, c), c * x * t[:, None])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no order": ({"order": 3}, "order must be the arguments.*got int 3"),
    "unknown role": ({"order": "x, y"}, "'y' is none of t, x, context"),
    "no state": ({"order": "t"}, "must have x once"),
    "twice": ({"order": "t, x, t"}, "must have x once, and t and context at most once"),
    "place after keyword": ({"order": "x=x, t"}, "positional argument after a keyword"),
    "unpacked state": ({"order": "**x, t"}, "none of t, x"),
    "unknown form": ({"time": "(B)"}, r"time='\(B\)' is unknown.*\(B,\)"),
    "form of one tensor": ({"time": "cat"}, r"time='cat' does not fit a network called as \"x, t\""),
    "form of two": ({"order": "x", "time": "(B,)"}, "does not fit a network called as \"x\""),
    "unknown parameter": ({"context": "label"}, "context='label' is no parameter of the network, which has x, t"),
    "no name": ({"context": 3}, "context must be the name of a parameter"),
    "two contexts": ({"order": "x, t, context", "context": "c"}, "has a place for the context already"),
    "scale": ({"time_scale": 0}, "time_scale must be finite and not 0"),
    "scale of text": ({"time_scale": "x"}, "time_scale must be a number"),
    "reverse": ({"reverse": 1}, "reverse must be True or False"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(name: str) -> None:
    options, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=message):
        adapt(VectorTime(), **options)


def test_wrong_calls() -> None:
    with pytest.raises(TypeError, match="network must be callable"):
        adapt(3)
    f, x = adapt(VectorTime()), torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(B,\) = \(3,\); got \(2,\)"):
        f(torch.ones(2), x)
    with pytest.raises(TypeError, match=r"y must be a tensor \(B, ...\)"):
        f(0.5, torch.ones(()))
    with pytest.raises(TypeError, match=r"got a context, but adapt found no parameter.*context="):
        f(0.5, x, x)
    with pytest.raises(TypeError, match=r"takes one context.*got 2"):
        f(0.5, x, x, x)
    with pytest.raises(TypeError, match=r"needs a context.*args=\(context,\)"):
        adapt(Labels())(0.5, x)
    with pytest.raises(TypeError, match="takes a context that is a dict; got Tensor"):
        adapt(Reshaped(), order="x, t, **context")(0.5, x, x)
    with pytest.raises(ValueError, match=r"returned shape \(3, 1\) for x of shape \(3, 2\)"):
        adapt(lambda t, x: x[:, :1], time="(B,)")(0.5, x)
    with pytest.raises(ValueError, match="returned a tuple: adapt takes a tensor"):
        adapt(lambda t, x: (x, x))(0.5, x)


def test_no_form_is_right() -> None:
    """The error lists what was tried, with the reason of each, and names the options."""
    tried = r".*".join(rf"time=\"{form}\": \w+" for form in (r"\(B,\)", r"\(B, 1\)", r"\(\)"))
    with pytest.raises(ValueError, match=rf"as \"x, t\".*{tried}.*order=.*time=") as caught:
        adapt(VectorTime(dim=3))(0.5, torch.ones(4, 2))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ValueError, match="rows of a batch differ by"):
        adapt(lambda t, x: (x - x.mean(0)) * t.sum())(0.5, torch.randn(4, 2))  # mixes samples
    with pytest.raises(ValueError, match="not finite"):
        adapt(lambda t, x: x / (0 * t))(0.5, torch.randn(4, 2))


@pytest.mark.parametrize("make", [VectorTime, lambda: TorchWrapper(OneTensor())], ids=["vector", "scalar"])
def test_inside_transforms(make: Any) -> None:
    """Detection needs values; after it, the field is a plain call."""
    x, t = torch.randn(3, 4, 2), torch.rand(3)
    f = adapt(make())
    for first in (
        lambda: torch.func.vmap(f)(t, x),
        lambda: torch.func.jacrev(lambda x: f(0.5, x))(x[0]),
        lambda: torch.func.jvp(lambda x: f(0.5, x), (x[0],), (x[0],)),
    ):
        with pytest.raises(RuntimeError, match=r"call the adapted field once.*time=\"\(B,\)\""):
            first()
    f(0.5, x[0])
    expected = torch.stack([f(a, b) for a, b in zip(t, x, strict=True)])
    torch.testing.assert_close(torch.func.vmap(f)(t, x), expected)
    jacobian = torch.func.jacrev(lambda x: f(t, x))(x[:, 0])
    for i in range(3):
        row = torch.autograd.functional.jacobian(lambda x, i=i: f(t[i], x), x[i, :1])
        torch.testing.assert_close(jacobian[i, :, i], row[0, :, 0])


@needs_tracing
def test_compiled() -> None:
    x, t = torch.randn(4, 2), torch.rand(4)
    f = adapt(VectorTime())
    with pytest.raises(Exception, match="call the adapted field once"):
        torch.compile(f, backend="eager", fullgraph=True)(t, x)
    torch._dynamo.reset()
    f(0.5, x)
    compiled = torch.compile(f, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(t, x), f(t, x))
    layer = odenet.nn.NeuralODE(f)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


def test_a_compiled_network() -> None:
    """Its parameters are named as before, and the trial rows do not compile it anew."""
    network = VectorTime()
    graphs: list[Any] = []

    def backend(graph, inputs):
        graphs.append(inputs)
        return graph

    f = adapt(torch.compile(network, backend=backend))
    x, t = torch.randn(4, 2), torch.rand(4)
    torch.testing.assert_close(f(t, x), network(x, t))
    assert len(graphs) == 1


@needs_tracing
@pytest.mark.slow
def test_solves_by_compiled_code() -> None:
    """Without a warning, which would be an error here: compiled."""
    torch.manual_seed(0)
    for network in (VectorTime(), OneTensor(), TorchWrapper(OneTensor())):
        f, x = adapt(network), torch.randn(4, 2)
        f(0.5, x)
        for per_sample in (False, True)[: 1 + (not isinstance(network, TorchWrapper))]:
            one = odenet.solve(f, x, [0.0, 1.0], per_sample=per_sample, compile=True).y1
            eager = odenet.solve(f, x, [0.0, 1.0], per_sample=per_sample).y1
            torch.testing.assert_close(one, eager, rtol=2e-3, atol=2e-3)  # the default tolerances


def test_two_places_for_a_context_are_not_chosen_from() -> None:
    def network(sample, timestep, encoder_hidden_states=None, class_labels=None):
        return sample * timestep[:, None] + (0.0 if class_labels is None else class_labels)

    x, context = torch.randn(5, 2), torch.full((5, 2), 7.0)
    with pytest.raises(TypeError, match="encoder_hidden_states, class_labels of the network may each take it"):
        adapt(network)(torch.rand(5), x, context)
    t = torch.rand(5)
    torch.testing.assert_close(
        adapt(network, context="class_labels")(t, x, context), network(x, t, class_labels=context)
    )
    torch.testing.assert_close(adapt(network)(t, x), network(x, t))
