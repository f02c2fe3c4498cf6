"""Random fields: sums of terms that use tensors in every way that a program may, and training loops over them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

import odenet

D = torch.float64
WIDTH, SAMPLES = 3, 2
SWITCH = 0.5  # of terms that are used later alone


class Scaled(torch.autograd.Function):
    """A client's own function, with an argument that is no tensor."""

    @staticmethod
    def forward(ctx: Any, factor: float, x: Tensor, w: Tensor) -> Tensor:
        ctx.factor = factor
        ctx.save_for_backward(x, w)
        return factor * x * w

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return None, ctx.factor * bar * w, (ctx.factor * bar * x).sum_to_size(w.shape)


class Field(nn.Module):
    """dy/dt = the mean of terms, by name; `kept` says what stays reachable beside what is used."""

    def __init__(self, terms: list[str], kept: list[str], seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        # first: y is not to be marked after it was given to a checkpoint, which goes back to it as it is then
        self.terms, self.kept = sorted(terms, key=lambda name: name != "marks"), set(kept)

        def drawn(*shape: int) -> Tensor:
            return 0.5 * torch.randn(*shape, generator=g, dtype=D)

        self.w, self.a, self.b = (nn.Parameter(drawn(*shape)) for shape in ((WIDTH, WIDTH), (WIDTH,), (WIDTH,)))
        self.late = nn.Parameter(drawn(WIDTH))
        self.frozen = nn.Parameter(drawn(WIDTH, WIDTH), requires_grad=False)
        self.register_buffer("table", drawn(WIDTH))
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=D), nn.Tanh())
        for p in self.inner.parameters():
            p.data = drawn(*p.shape)
        self.partial = partial(_power, self.b, scale=self.a)
        self.losses: list[Tensor] = []
        self.named: dict[str, Any] = {}

    def before_step(self, mode: Any) -> None:
        """What a program computes anew before each solve."""
        self.computed = 2 * self.a
        self.chained = torch.sin(self.computed)
        self.view = self.w.view(-1)
        self.memo: Tensor | None = None
        self.by_closure = closed(self.computed + self.b)
        self.dense = None
        if "dense" in self.terms:
            self.dense = odenet.solve(
                lambda t, z: -z * softplus(self.a), torch.ones(WIDTH, dtype=D), [0.0, 1.0], method="rk4", step=0.5,
                dense=True, gradient="backprop" if mode == "backprop" else "discrete",
            )  # fmt: skip
        if "computed" in self.kept:
            self.named["computed"] = [self.computed, self.chained, 3 * self.b]

    def after_step(self, loss: Tensor) -> None:
        if "loss" in self.kept:
            self.loss = loss
        if "losses" in self.kept:
            self.losses.append(loss)
            self.named["loss"] = {"last": loss}

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out = torch.zeros_like(y)
        for name in self.terms:
            out = out + TERMS[name](self, t, y)
        if "feature" in self.kept:
            self.feature = torch.tanh(out)
        return out / len(self.terms)


def _power(base: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return torch.tanh(y * base) * scale


def closed(w: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.sin(y * w)


def over(t: Tensor) -> Tensor:
    return t.unsqueeze(-1)  # () -> (1,), (B,) -> (B, 1)


def rewritten(f: Field, t: Tensor, y: Tensor) -> Tensor:
    f.cache = softplus(f.a)
    return -y * f.cache


def memoised(f: Field, t: Tensor, y: Tensor) -> Tensor:
    if f.memo is None:
        f.memo = softplus(f.b)
    return -y * f.memo


def switched(w: Callable[[Field], Tensor]) -> Callable[[Field, Tensor, Tensor], Tensor]:
    def term(f: Field, t: Tensor, y: Tensor) -> Tensor:
        if t.ndim == 0:
            return torch.tanh(y * w(f)) if bool(t > SWITCH) else -y
        return torch.where(over(t) > SWITCH, torch.tanh(y * w(f)), -y)

    return term


def inner_solve(f: Field, t: Tensor, y: Tensor) -> Tensor:
    return odenet.solve(lambda s, z: -z * f.a.square(), y, [0.0, 0.1], method="euler", step=0.1, gradient="backprop").y1


def own_leaf(f: Field, t: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        z = torch.zeros_like(y).requires_grad_(True)
        (slope,) = torch.autograd.grad((torch.sin(z) * f.a).sum(), z, create_graph=True)
    return slope * y


def marks(f: Field, t: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        t.requires_grad_(True)
        y.requires_grad_(True)
        (slope,) = torch.autograd.grad((torch.cos(y) * f.b).sum(), y, create_graph=True)
    return slope


TERMS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "leaf": lambda f, t, y: torch.tanh(y @ f.w) * (1 + over(t)),
    "transposed": lambda f, t, y: torch.tanh(y @ f.w.T),
    "slice": lambda f, t, y: y * f.w[1],
    "chunk": lambda f, t, y: torch.sin(y * f.w.chunk(WIDTH)[0][0]),
    "reshaped": lambda f, t, y: torch.cos(y * f.w.view(-1)[2 : 2 + WIDTH]),
    "computed": lambda f, t, y: torch.sin(y * f.computed),
    "chained": lambda f, t, y: torch.sin(y) * f.chained + f.computed,
    "stored view": lambda f, t, y: torch.tanh(y * f.view[3 : 3 + WIDTH]),
    "rewritten": rewritten,
    "memoised": memoised,
    "buffer": lambda f, t, y: torch.sin(y * f.table * f.b),
    "frozen": lambda f, t, y: torch.tanh(y @ f.frozen) * f.a,
    "module": lambda f, t, y: f.inner(y),
    "closure": lambda f, t, y: f.by_closure(y),
    "partial": lambda f, t, y: f.partial(y),
    "late": switched(lambda f: f.late),
    "late computed": switched(lambda f: f.computed),
    "checkpoint": lambda f, t, y: checkpoint(lambda x: torch.tanh(x @ f.w) * f.b, y, use_reentrant=False),
    "function": lambda f, t, y: torch.tanh(Scaled.apply(0.5, y, f.computed)) + Scaled.apply(0.1, y, f.a),
    "inner solve": inner_solve,
    "dense": lambda f, t, y: f.dense(t) - y,
    "own leaf": own_leaf,
    "stopped": lambda f, t, y: torch.sin(y * f.a.detach()) * f.b,
    "marks": marks,
}
KEPT = ["loss", "losses", "feature", "computed"]


def trained(terms: list[str], kept: list[str], seed: int, mode: Any, **options: Any) -> list[dict[str, Tensor]]:
    """The gradients of three steps of training."""
    f, found = Field(terms, kept, seed), []
    y0 = torch.linspace(-1.0, 1.0, SAMPLES * WIDTH, dtype=D).view(SAMPLES, WIDTH)
    asking = [p for p in f.parameters() if p.requires_grad]
    for _ in range(3):
        for p in asking:
            p.grad = None
        f.before_step(mode)
        loss = odenet.solve(f, y0, [0.0, 0.4, 1.0], gradient=mode, **options).ys.square().mean()
        loss.backward()
        found.append({name: p.grad for name, p in f.named_parameters() if p.grad is not None})
        with torch.no_grad():
            for p in asking:
                if p.grad is not None:
                    p -= 0.5 * p.grad
        f.after_step(loss)
    return found


def by_hand(terms: list[str], kept: list[str], seed: int, step: float) -> dict[str, Tensor]:
    """The gradients of the first step of training, by autograd through a loop of the classical Runge-Kutta method."""
    f = Field(terms, kept, seed)
    f.before_step("backprop")
    y = torch.linspace(-1.0, 1.0, SAMPLES * WIDTH, dtype=D).view(SAMPLES, WIDTH)
    t, count = torch.zeros((), dtype=D), round(1.0 / step)
    for i in range(count):
        end = torch.tensor((i + 1) * step, dtype=D)
        middle = t + (end - t) / 2
        k1 = f(t.clone(), y.clone())
        k2 = f(middle.clone(), y + step / 2 * k1)
        k3 = f(middle.clone(), y + step / 2 * k2)
        k4 = f(end.clone(), y + step * k3)
        y, t = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), end
    y.square().mean().backward()
    return {name: p.grad for name, p in f.named_parameters() if p.grad is not None}
