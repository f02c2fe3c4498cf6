"""Wrong arguments name themselves and the cure; a failing solve says where, which sample and why."""

from __future__ import annotations

from typing import Any

import numpy as np
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
    ({"compile": "yes"}, TypeError, "compile must be True or False"),
    ({"event": 3}, TypeError, "event=Event"),
    ({"max_steps": 0}, ValueError, "max_steps.*0"),
    ({"max_steps": 1.5}, TypeError, "max_steps.*1.5"),
    ({"on_failure": "rase"}, ValueError, "Did you mean 'raise'"),
    ({"progress": 3}, TypeError, "progress"),
    ({"f": lambda t, y: y[:2]}, ValueError, r"f's result has shape \(2,\)"),
    ({"f": lambda t, y: y.float()}, TypeError, "f's result has dtype torch.float32"),
    ({"f": lambda t, y: (y, y)}, TypeError, "structure"),
    ({"f": lambda t, y: 1.0}, TypeError, "f's result is a float"),
    ({"y0": None}, TypeError, "y0 must be a tensor; got NoneType"),
    ({"y0": {"a": ONE, "b": 3}}, TypeError, r"y0\['b'\] must be a tensor; got int 3"),
    ({"y0": {"a": ONE, "b": torch.ones(2)}, "per_sample": True}, ValueError, r"y0\['a'\] \(3,\), y0\['b'\] \(2,\)"),
    ({"ts": None}, TypeError, "ts must be.*NoneType"),
    ({"ts": "ab"}, TypeError, "ts must be.*str"),
    ({"ts": torch.zeros(1, 1, 2)}, ValueError, r"ts must have shape.*\(1, 1, 2\)"),
    ({"ts": torch.zeros(2, dtype=torch.complex64)}, TypeError, "ts must be real.*complex64"),
    ({"ts": torch.tensor([False, True])}, TypeError, "ts must be real.*bool"),
    ({"ts": torch.arange(30.0).sin()}, ValueError, r"ts must increase.*\(30,\)"),
    ({"args": None}, TypeError, "args must be a tuple.*NoneType"),
    ({"args": {"k": 1.0}}, TypeError, "args must be a tuple.*dict"),
    ({"method": "tsti5"}, ValueError, "method='tsti5' is unknown.*Did you mean 'tsit5'"),
    ({"method": "zzz"}, ValueError, "method='zzz' is unknown. Known: bosh3"),
    ({"gradient": "backdrop"}, ValueError, "gradient='backdrop'.*Did you mean 'backprop'"),
    ({"gradient": odenet.Adjoint}, TypeError, r"gradient must be.*write Adjoint\(\)"),
    ({"gradient": odenet.Adjoint(method="dopri6")}, ValueError, "Did you mean 'dopri"),
    ({"rtol": float("nan")}, ValueError, "rtol.*nan"),
    ({"rtol": True}, TypeError, "rtol.*True"),
    ({"rtol": torch.tensor(1e-3, requires_grad=True)}, ValueError, "rtol must not require a gradient"),
    ({"atol": float("inf")}, ValueError, "atol.*inf"),
    ({"atol": None}, TypeError, "atol must be a number.*None"),
    ({"atol": {"a": 1.0}}, TypeError, r"atol must be.*\{'a': 1\.0\}"),
    ({"step": -0.1}, ValueError, r"step must be.*-0\.1"),
    ({"step": True}, TypeError, "step must be.*True"),
    ({"controller": odenet.PID}, TypeError, "controller must be"),
    ({"max_steps": -1}, ValueError, "max_steps.*-1"),
    ({"max_steps": True}, TypeError, "max_steps.*True"),
    ({"on_failure": None}, ValueError, "on_failure='None'"),
    ({"step": torch.ones(2)}, TypeError, "step must be one positive number"),
    ({"step": torch.tensor(0.1 + 0j)}, TypeError, "step must be one positive number"),
    ({"rtol": 0.0, "atol": 0.0}, ValueError, "rtol and atol are both 0"),
    ({"controller": odenet.PID(step_ts=torch.ones(2, 2))}, ValueError, r"step_ts of shape \(2, 2\).*per_sample=False"),
    (
        {"controller": odenet.PID(jump_ts=torch.ones(2, 2)), "per_sample": True},
        ValueError,
        r"jump_ts of shape \(2, 2\).*3 samples",
    ),
    ({"y0": ONE.to_sparse()}, TypeError, "y0 must be a dense tensor.*sparse"),
    ({"y0": ONE.to("meta")}, TypeError, "y0 must be a dense tensor.*meta"),
    ({"controller": "pid"}, TypeError, "controller must be.*'pid'"),
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
    for gradient in ("discrete", "backprop", "adjoint", "gauss", "forward"):
        sol = odenet.solve(lambda t, y: y * y, y0, [0.0, 1.5], gradient=gradient, **options)
        assert sol.status.tolist() == [0, int(odenet.Status.BLOW_UP), 0]
        keep = torch.tensor([0, 2])
        others = odenet.solve(lambda t, y: y * y, y0[keep], [0.0, 1.5], gradient=gradient, **options)
        assert torch.equal(sol.ys[keep], others.ys)
        (a,) = torch.autograd.grad(sol.ys[keep].sum(), y0)
        (b,) = torch.autograd.grad(others.ys.sum(), y0)
        assert torch.equal(a[keep], b[keep])


def test_wrong_use_of_the_solution() -> None:
    sol = odenet.solve(decay, ONE, [0.0, 1.0])
    with pytest.raises(ValueError, match="dense=True"):
        sol(0.5)
    with pytest.raises(AttributeError, match=r"nfe, accepted.*'steps'"):
        _ = sol.stats.steps
    sol = odenet.solve(decay, ONE, [0.0, 1.0], dense=True)
    for t in (-0.1, 1.5, [0.5, 7.0]):
        with pytest.raises(ValueError, match=r"t must lie between ts\[0\]=0\.0 .* 1\.0"):
            sol(t)
    with pytest.raises(ValueError, match=r"t must have at most 1 axes.*\(1, 2\)"):
        sol(torch.zeros(1, 2))
    sol = odenet.solve(decay, torch.ones(3, 1), [0.0, 1.0], dense=True, per_sample=True)
    with pytest.raises(ValueError, match=r"one row a sample, shape \(3, m\); got \(2, 4\)"):
        sol(torch.zeros(2, 4))


def test_step_underflow() -> None:
    """A tolerance below the dtype's resolution, at a jump that nobody announced."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 1 / 3, 0.0, 1e9).to(y.dtype) + 0 * y

    with pytest.raises(odenet.StepUnderflowError, match=r"t=0\.33.*Hint.*jump_ts") as caught:
        odenet.solve(f, ONE, [0.0, 1.0], rtol=1e-15, atol=0.0)
    assert caught.value.t == pytest.approx(1 / 3) and 0 < caught.value.dt < 1e-14
    sol = odenet.solve(f, ONE, [0.0, 1.0], rtol=1e-15, atol=0.0, on_failure="return")
    assert sol.status == odenet.Status.STEP_UNDERFLOW
    known = odenet.solve(f, ONE, [0.0, 1.0], rtol=1e-15, atol=0.0, controller=odenet.PID(jump_ts=[1 / 3]))
    assert known.status == odenet.Status.SUCCESS


def holed(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
    """NaN in component b[2] of every sample whose a is above 2."""
    hole = (y["a"] > 2.0) & (torch.arange(3) == 2)
    return {"a": 0 * y["a"], "b": torch.where(hole, torch.nan, -y["b"])}


def test_failure_names_sample_and_component() -> None:
    """The sample, how many failed, and the path of the worst component are in the message and in attributes."""
    y0 = {"a": torch.tensor([[1.0], [1.0], [3.0], [4.0]], dtype=torch.float64), "b": torch.ones(4, 3).double()}
    with pytest.raises(odenet.NonFiniteError, match=r"sample 2 \(2 failed\), worst component y\['b'\]\[2\]") as caught:
        odenet.solve(holed, y0, [0.0, 1.0], per_sample=True)
    assert caught.value.sample == 2 and caught.value.component == "y['b'][2]" and caught.value.t == 0.0
    one = {key: value[3] for key, value in y0.items()}
    with pytest.raises(odenet.NonFiniteError, match=r"worst component y\['b'\]\[2\]") as caught:
        odenet.solve(holed, one, [0.0, 1.0])
    assert caught.value.sample is None and isinstance(caught.value, RuntimeError)


def test_size_of_the_failed_step_has_the_sign_of_time() -> None:
    with pytest.raises(odenet.MaxStepsError, match="dt=-") as caught:
        odenet.solve(decay, ONE, [1.0, 0.0], max_steps=2)
    assert caught.value.dt < 0


@pytest.mark.parametrize("constant", [False, True])
def test_solved_part_is_returned(constant: bool) -> None:
    """Up to the failure it is the solution of a shorter solve; after it NaN; and the dense output ends there."""
    options: dict[str, Any] = {"method": "rk4", "step": 0.1} if constant else {}

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.55, torch.nan, 1.0).to(y.dtype) * y

    y0 = torch.ones(1, dtype=torch.float64)
    sol = odenet.solve(f, y0, [0.0, 0.3, 0.8, 1.0], on_failure="return", dense=True, **options)
    assert sol.status == odenet.Status.NON_FINITE
    assert float(sol.ys[1]) == pytest.approx(1.349859, abs=1e-4)
    assert bool(sol.ys[2:].isnan().all()) and bool(sol.y1.isfinite().all())
    assert float(sol(0.4)) == pytest.approx(1.491825, abs=1e-4)
    with pytest.raises(ValueError, match="the time reached"):
        sol(0.8)


@pytest.mark.parametrize("gradient", ["discrete", "backprop"])
def test_gradient_of_the_solved_part(gradient: str) -> None:
    """Finite and right for what was reached, also for parameters that all samples share."""
    y0 = torch.tensor([[0.5], [5.0], [0.1]], dtype=torch.float64)
    rate = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def f(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return k * y * y

    options: dict[str, Any] = {"args": (rate,), "gradient": gradient, "per_sample": True, "on_failure": "return"}
    keep = torch.tensor([0, 2])
    sol = odenet.solve(f, y0, [0.0, 1.0], **options)
    assert sol.status.tolist() == [0, int(odenet.Status.BLOW_UP), 0]
    (mine,) = torch.autograd.grad(sol.ys[keep].sum(), rate)
    (alone,) = torch.autograd.grad(odenet.solve(f, y0[keep], [0.0, 1.0], **options).ys.sum(), rate)
    torch.testing.assert_close(mine, alone, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(float(mine), 0.5**2 / 0.5**2 + 0.1**2 / 0.9**2, rtol=1e-4, atol=0.0)


def test_progress_is_reported() -> None:
    seen: list[float] = []
    odenet.solve(decay, ONE, [0.0, 1.0], progress=lambda fraction, stats: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == 1.0


@pytest.mark.parametrize("control", [odenet.PID, lambda **options: odenet.ConstantStep(0.1, **options)])
@pytest.mark.parametrize("name", ["step_ts", "jump_ts"])
def test_wrong_times_to_hit(control: Any, name: str) -> None:
    for given, kind in (("abc", TypeError), ([0.1, None], TypeError), (0.5, ValueError), ([float("nan")], ValueError)):
        with pytest.raises(kind, match=f"{name} must be"):
            control(**{name: given})


def test_numbers_of_numpy_are_numbers() -> None:
    sol = odenet.solve(decay, ONE, [0.0, 1.0], rtol=np.float32(1e-3), atol=np.float64(1e-6), max_steps=np.int64(50))
    assert sol.status == odenet.Status.SUCCESS


def test_a_continuous_adjoint_refuses_stops_that_ask_for_a_gradient() -> None:
    control = odenet.PID(jump_ts=torch.tensor([0.5], requires_grad=True))
    for gradient in ("adjoint", "gauss"):
        with pytest.raises(ValueError, match=r"no gradient to jump_ts.*discrete.*detach"):
            odenet.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], controller=control, gradient=gradient)
