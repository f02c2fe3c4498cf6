"""States of named parts: f, a reset and tolerances may name them in another order."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import NAMES
from torch_versions import needs_tracing

D = torch.float64
State = dict[str, Tensor]


def y0() -> State:
    return {"a": torch.ones(2, dtype=D), "b": torch.full((2,), 2.0, dtype=D)}


def turned_round(t: Tensor, y: State) -> State:
    return {"b": -2 * y["b"], "a": -y["a"]}


@pytest.mark.parametrize("gradient", NAMES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_another_order(gradient: str, per_sample: bool) -> None:
    start = {k: x.requires_grad_() for k, x in y0().items()}
    y1 = odenet.solve(
        turned_round, start, [0.0, 1.0], gradient=gradient, per_sample=per_sample, rtol=1e-9, atol=1e-10
    ).y1  # fmt: skip
    a, b = torch.autograd.grad((y1["a"] + y1["b"]).sum(), [start["a"], start["b"]])
    torch.testing.assert_close(a, torch.full_like(a, math.exp(-1)), rtol=1e-7, atol=0.0)
    torch.testing.assert_close(b, torch.full_like(b, math.exp(-2)), rtol=1e-7, atol=0.0)
    assert list(y1) == ["a", "b"]
    torch.testing.assert_close(y1["b"], torch.full_like(b, 2 * math.exp(-2)), rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("options", [{"method": "rk4", "step": 0.1}, pytest.param({}, marks=pytest.mark.slow)], ids=str)
def test_compiled(options: Any) -> None:
    mine, eager = (odenet.solve(turned_round, y0(), [0.0, 1.0], **options, compile=c).y1 for c in (True, False))
    torch.testing.assert_close(mine, eager)


@needs_tracing
def test_inside_a_compiled_model() -> None:
    def run(a: Tensor) -> Tensor:
        return odenet.solve(turned_round, {"a": a, "b": 2 * a}, [0.0, 1.0]).y1["b"]

    x = torch.ones(2, dtype=D)
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="eager")(x), run(x))


def test_resets_and_tolerances() -> None:
    event = odenet.Event(lambda t, y: t - 0.5, reset=lambda t, y: {"b": y["b"], "a": 0 * y["a"]})
    sol = odenet.solve(turned_round, y0(), [0.0, 1.0], event=event, rtol={"b": 1e-9, "a": 1e-9})
    assert bool((sol.y1["a"] == 0).all())
    torch.testing.assert_close(sol.y1["b"], torch.full((2,), 2 * math.exp(-2), dtype=D), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("f", "shown"),
    [
        (lambda t, y: {"a": y["a"], "c": y["b"]}, "'c': tensor"),
        (lambda t, y: {"b": y["a"], "a": (y["b"],)}, r"'a': \(tensor,\)"),
        (lambda t, y: (y["a"], y["b"]), r"\(tensor, tensor\)"),
    ],
)
def test_other_names_are_an_error(f: Any, shown: str) -> None:
    with pytest.raises(TypeError, match=f"f returned the structure .*{shown}.*, but y has"):
        odenet.solve(f, y0(), [0.0, 1.0])
