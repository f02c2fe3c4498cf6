"""Wrong arguments name themselves and the cure; a failing solve says where, which sample and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import odenet

ONE = torch.ones(3, dtype=torch.float64)


def decay(t: Tensor, y: Any) -> Any:
    return -y


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"f": 3}, TypeError, "f must be callable"),
    ({"y0": 1.0}, TypeError, "y0 must be a tensor"),
    ({"y0": [1.0]}, TypeError, r"y0\[0\] must be a tensor"),
    ({"y0": {}}, ValueError, "y0 has no tensor"),
    ({"y0": torch.ones(3, dtype=torch.int64)}, TypeError, "y0.*int64"),
    ({"y0": torch.ones(0)}, ValueError, "y0.*no elements"),
    ({"ts": 1.0}, TypeError, "ts"),
    ({"ts": [0.0]}, ValueError, "ts.*at least two"),
    ({"ts": [0.0, 2.0, 1.0]}, ValueError, r"ts must increase or decrease.*2\.0"),
    ({"ts": [0.0, float("nan")]}, ValueError, "ts must be finite"),
    ({"ts": torch.zeros(3, 2)}, ValueError, "ts.*per_sample"),
    ({"ts": torch.zeros(2, 2), "per_sample": True}, ValueError, "ts has 2 rows"),
    ({"ts": ["a", "b"]}, TypeError, "ts must be"),
    ({"args": ONE}, TypeError, "args must be a tuple"),
    ({"method": "dopri"}, ValueError, "Did you mean 'dopri8'"),
    ({"method": 5}, TypeError, "method must be"),
    ({"method": "euler"}, ValueError, "step is required"),
    ({"rtol": -1.0}, ValueError, "rtol.*-1.0"),
    ({"atol": torch.ones(2)}, ValueError, "atol.*broadcast"),
    ({"atol": "tiny"}, TypeError, "atol"),
    ({"step": 0.0}, ValueError, "step must be.*0.0"),
    ({"step": "big"}, TypeError, "step must be"),
    ({"step": 0.1, "controller": odenet.PID()}, ValueError, "step and controller"),
    ({"controller": "pid"}, TypeError, "controller must be"),
    ({"gradient": "adjont"}, ValueError, "Did you mean 'adjoint'"),
    ({"gradient": 1}, TypeError, "gradient must be"),
    ({"per_sample": 1}, TypeError, "per_sample must be"),
    ({"y0": torch.tensor(1.0), "per_sample": True}, ValueError, "per_sample=True needs"),
    ({"dense": "yes"}, TypeError, "dense must be"),
    ({"compile": True}, ValueError, "compile=True"),
    ({"event": 3}, ValueError, "event=3"),
    ({"max_steps": 0}, ValueError, "max_steps.*0"),
    ({"max_steps": 1.5}, TypeError, "max_steps.*1.5"),
    ({"on_failure": "rase"}, ValueError, "Did you mean 'raise'"),
    ({"progress": 3}, TypeError, "progress"),
    ({"f": lambda t, y: y[:2]}, ValueError, r"f's result has shape \(2,\)"),
    ({"f": lambda t, y: y.float()}, TypeError, "f's result has dtype torch.float32"),
    ({"f": lambda t, y: (y, y)}, TypeError, "structure"),
    ({"f": lambda t, y: 1.0}, TypeError, "f's result is a float"),
]


@pytest.mark.parametrize(("change", "kind", "match"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_argument(change: dict[str, Any], kind: type[Exception], match: str) -> None:
    arguments = {"f": decay, "y0": ONE, "ts": [0.0, 1.0]} | change
    f, y0, ts = (arguments.pop(k) for k in ("f", "y0", "ts"))
    with pytest.raises(kind, match=match):
        odenet.solve(f, y0, ts, **arguments)


def test_pid_settings() -> None:
    for settings in ({"safety": 2.0}, {"factor_min": 2.0}, {"min_step": 1.0, "max_step": 0.5}, {"first_step": -1.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            odenet.PID(**settings)


FAILING = [
    (lambda t, y: torch.sqrt(0.5 - t) * y, {}, odenet.NonFiniteError, "NaN"),
    (lambda t, y: y * y, {}, odenet.BlowUpError, "blows up"),
    (lambda t, y: y * y, {"method": "rk4", "step": 0.01}, odenet.BlowUpError, "blows up"),
    (lambda t, y: -y * torch.nan, {}, odenet.NonFiniteError, "NaN"),
    (decay, {"max_steps": 2}, odenet.MaxStepsError, "max_steps=2"),
]


@pytest.mark.parametrize(("f", "options", "kind", "cause"), FAILING, ids=[str(i) for i in range(len(FAILING))])
def test_failure_explains_itself(f: Any, options: dict[str, Any], kind: type[Exception], cause: str) -> None:
    with pytest.raises(RuntimeError, match=f"t=.*dt=.*component y.*{cause}.*Hint") as caught:
        odenet.solve(f, ONE, [0.0, 2.0], **options)
    assert type(caught.value) is kind
    assert caught.value.sample is None and 0.0 <= caught.value.t <= 2.0  # type: ignore[attr-defined]
    sol = odenet.solve(f, ONE, [0.0, 1e-3, 2.0], on_failure="return", **options)
    assert sol.status != odenet.Status.SUCCESS and bool(sol.ys[-1].isnan().all())
    assert torch.equal(sol.ys[0], ONE)


def test_failing_sample_leaves_its_neighbours_alone() -> None:
    y0 = torch.tensor([[0.5], [1.0], [0.1]], dtype=torch.float64, requires_grad=True)
    options = {"per_sample": True, "on_failure": "return"}
    with pytest.raises(odenet.BlowUpError, match="sample 1"):
        odenet.solve(lambda t, y: y * y, y0, [0.0, 1.5], per_sample=True)
    for gradient in ("discrete", "backprop", "adjoint"):
        sol = odenet.solve(lambda t, y: y * y, y0, [0.0, 1.5], gradient=gradient, **options)
        assert sol.status.tolist() == [0, int(odenet.Status.BLOW_UP), 0]
        keep = torch.tensor([0, 2])
        others = odenet.solve(lambda t, y: y * y, y0[keep], [0.0, 1.5], gradient=gradient, **options)
        assert torch.equal(sol.ys[keep], others.ys)
        (a,) = torch.autograd.grad(sol.ys[keep].sum(), y0)
        (b,) = torch.autograd.grad(others.ys.sum(), y0)
        assert torch.equal(a[keep], b[keep])


def test_progress_is_reported() -> None:
    seen: list[float] = []
    odenet.solve(decay, ONE, [0.0, 1.0], progress=lambda fraction, stats: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == 1.0
