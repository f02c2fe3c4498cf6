"""What the random calls found, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odenet
from fuzz.wrong_fields import buffered
from odenet import nn
from odenet.compat import torchdiffeq

Y0 = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)


def later(change: Any) -> Any:
    """-y, and from the fourth evaluation on what `change` makes of y."""
    count = 0

    def f(t: Tensor, y: Tensor) -> Any:
        nonlocal count
        count += 1
        return -y if count < 4 else change(y)

    return f


LATER = [
    (lambda y: None, TypeError, "f's result is a NoneType"),
    (lambda y: -y.sum(), ValueError, r"f's result has shape \(\)"),  # it was broadcast
    (lambda y: -y[:, :1], ValueError, r"f's result has shape \(2, 1\)"),
    (lambda y: -y.long(), TypeError, "f's result has dtype torch.int64"),  # it was taken as it was
    (lambda y: (-y).to_sparse(), TypeError, "f's result has layout"),
    (lambda y: (y, y), TypeError, "f returned the structure"),
]


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint"])
@pytest.mark.parametrize(("change", "kind", "match"), LATER, ids=[str(i) for i in range(len(LATER))])
def test_every_result_of_f_is_checked(change: Any, kind: type[Exception], match: str, gradient: str) -> None:
    with pytest.raises(kind, match=match):
        odenet.solve(later(change), Y0, [0.0, 1.0], gradient=gradient)


def test_f_that_changes_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"f changes its t or y in place.*y\.clone"):
        odenet.solve(later(lambda y: -y.mul_(2.0)), Y0.clone(), [0.0, 1.0])

    def moves(t: Tensor, y: Tensor) -> Tensor:
        t.add_(1.0)
        return -y

    with pytest.raises(ValueError, match="f changes its t or y in place"):
        odenet.solve(moves, Y0, [0.0, 1.0], method="rk4", step=0.1)


def test_f_that_writes_into_one_buffer() -> None:
    """All stages were the last one, without a word."""
    with pytest.raises(ValueError, match=r"f changed what it had returned before.*out\.clone"):
        odenet.solve(buffered(), Y0, [0.0, 1.0])
    always = -torch.ones_like(Y0)  # the same tensor each time, and never changed: that is right
    assert torch.allclose(odenet.solve(lambda t, y: always, Y0, [0.0, 1.0]).y1, Y0 - 1)


def test_rows_of_args_that_are_all_alike() -> None:
    """An arg with a row for each of two samples was left whole where its rows had the same effect."""
    ts = [[0.0, 0.25], [0.0, 1.5]]
    sol = odenet.solve(
        lambda t, y, k: k[:, None] * y, Y0, ts, args=(torch.zeros(2, dtype=torch.float64),), per_sample=True,
        method="rk4", step=0.05,
    )  # fmt: skip
    assert torch.equal(sol.y1, Y0) and sol.y1.shape == Y0.shape


MAKERS: list[tuple[Any, dict[str, Any], str]] = [
    *((odenet.PID, {name: "x"}, name) for name in ("pcoeff", "safety", "factor_max", "min_step", "first_step", "norm")),
    (odenet.PID, {"dcoeff": 1e308}, "dcoeff"),
    (odenet.PID, {"first_step": torch.tensor([0.1, 0.2])}, "first_step"),
    (odenet.ConstantStep, {"step": None}, "step"),
    (odenet.ConstantStep, {"step": 0.1, "finite": torch.ones(2)}, "finite"),
    (odenet.ConstantStep, {"step": 0.1, "jump_ts": 10**400}, "jump_ts"),
    (odenet.Grid, {"perturb": 1}, "perturb"),
    (odenet.Reversible, {"coupling": "x"}, "coupling"),
    (odenet.Adjoint, {"rtol": "x"}, "rtol"),
    (odenet.Adjoint, {"controller": 3}, "controller"),
    (odenet.Adjoint, {"callbacks": {}}, "callbacks"),
    (odenet.GaussAdjoint, {"max_steps": 1.5}, "max_steps"),
    (odenet.Callbacks, {"accept": 3}, "accept"),
    (nn.MLPField, {"dim": 2.5}, "dim"),
    (nn.MLPField, {"dim": 2, "hidden": 3}, "hidden"),
    (nn.ConvField, {"channels": 4, "activation": 3}, "activation"),
    (nn.Augmented, {"layer": None, "extra": 1}, "layer"),
    (nn.NeuralODE, {"field": 3}, "field"),
    (nn.NeuralODE, {"field": torch.neg, "ts": 1.0}, "ts"),
    (nn.classifier, {"kind": 3}, "kind"),
    (nn.classifier, {"kind": "resnet", "classes": "x"}, "classes"),
]


@pytest.mark.parametrize(("make", "settings", "name"), MAKERS, ids=[str(i) for i in range(len(MAKERS))])
def test_settings_name_themselves(make: Any, settings: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        make(**settings)


CALLS: list[tuple[dict[str, Any], str]] = [
    ({"on_failure": np.array(["a", "b"])}, "on_failure"),
    ({"rtol": 10**400}, "rtol"),
    ({"step": 10**400}, "step"),
    ({"atol": torch.tensor(1.0, device="meta")}, "atol"),
    ({"rtol": torch.tensor(1j)}, "rtol"),
    ({"ts": torch.zeros(2, device="meta")}, "ts"),
    ({"ts": [0.0, 10**400]}, "ts"),
    ({"controller": odenet.PID(norm=lambda leaves: None)}, "norm"),
    ({"controller": odenet.PID(jump_ts=lambda ts: None)}, "jump_ts"),
]


@pytest.mark.parametrize(("change", "name"), CALLS, ids=[str(i) for i in range(len(CALLS))])
def test_arguments_name_themselves(change: dict[str, Any], name: str) -> None:
    given = {"ts": [0.0, 1.0]} | change
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        odenet.solve(lambda t, y: -y, Y0, given.pop("ts"), **given)


@pytest.mark.parametrize("t", ["x", None, 1j, np.array([1j]), torch.tensor(0.5, device="meta"), 10**400])
def test_times_of_the_dense_solution(t: Any) -> None:
    sol = odenet.solve(lambda t, y: -y, Y0, [0.0, 1.0], dense=True)
    with pytest.raises(TypeError, match="t must be"):
        sol(t)


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint"])
def test_state_that_was_made_in_inference_mode(gradient: str) -> None:
    with torch.inference_mode():
        y0 = Y0.clone()
    k = torch.ones((), dtype=torch.float64, requires_grad=True)
    sol = odenet.solve(lambda t, y, k: -k * y, y0, [0.0, 1.0], args=(k,), gradient=gradient)
    (g,) = torch.autograd.grad(sol.y1.sum(), k)
    assert float(g) == pytest.approx(-2.5 * float(np.exp(-1)), rel=1e-4)
    with torch.inference_mode():
        assert torch.allclose(odenet.solve(lambda t, y: -y, y0, [0.0, 1.0]).y1, sol.y1)


def test_many_checkpoints_are_no_more_than_steps() -> None:
    y0 = Y0.clone().requires_grad_()
    sol = odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], gradient=odenet.Discrete(checkpoints=10**400))
    (g,) = torch.autograd.grad(sol.y1.sum(), y0)
    torch.testing.assert_close(g, torch.full_like(g, float(np.exp(-1))), rtol=1e-4, atol=0)


@pytest.mark.parametrize("i", [13, 20, 22, 29])
def test_progress_does_not_fall_at_an_event(i: int) -> None:
    """Where a step after it was rejected, the fraction fell by one rounding."""
    at, seen = 0.1 + i / 40 * (1.0 - 0.1), list[float]()
    odenet.solve(
        lambda t, y: 0.0 * y + torch.where(t > at, torch.cos(300.0 * t) * 100.0, 0.0 * t), Y0, [0.1, 1.0],
        event=odenet.Event(lambda t, y: t - at, terminal=False), progress=lambda fraction, _: seen.append(fraction),
    )  # fmt: skip
    assert seen == sorted(seen) and seen[-1] == 1.0


COMPAT: list[tuple[str, dict[str, Any], str]] = [
    ("odeint", {"func": 3}, "func"),
    ("odeint", {"options": 3}, "options"),
    ("odeint", {"rtol": "x"}, "rtol"),
    ("odeint_adjoint", {"adjoint_options": [1]}, "adjoint_options"),
    ("odeint_adjoint", {"adjoint_atol": "x"}, "adjoint_atol"),
    ("odeint_adjoint", {"adjoint_method": "x"}, "adjoint_method"),
    ("odeint_adjoint", {"adjoint_params": [3]}, "adjoint_params"),
]


@pytest.mark.parametrize(("entry", "change", "name"), COMPAT, ids=[str(i) for i in range(len(COMPAT))])
def test_compatibility_names_the_argument(entry: str, change: dict[str, Any], name: str) -> None:
    given: dict[str, Any] = {"func": lambda t, y: -y}
    given |= ({"adjoint_params": ()} if entry == "odeint_adjoint" else {}) | change
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        getattr(torchdiffeq, entry)(given.pop("func"), Y0, torch.tensor([0.0, 1.0]), **given)
