"""Every way a solve can end (docs/failures.md), and what is there of one that failed."""

from __future__ import annotations

import math
import re
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import APPROXIMATE, SETTINGS
from odenet import Event, Status

ONE = torch.ones(3, dtype=torch.float64)
D = torch.float64


def decay(t: Tensor, y: Any) -> Any:
    return -y


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


# --- every way a solve can end: what makes it, and what is told


def root(t: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt(0.5 - t) * y


def jump(t: Tensor, y: Tensor) -> Tensor:
    return torch.where(t < 1 / 3, 0.0, 1e9).to(y.dtype) + 0 * y


def fall(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], torch.full_like(y[..., 1], -9.81)], -1)


BOUNCE = Event(
    lambda t, y: y[..., 0], direction=-1, reset=lambda t, y: torch.stack([y[..., 0], -0.5 * y[..., 1]], -1)
)  # fmt: skip
TIGHT: dict[str, Any] = {"rtol": 1e-15, "atol": 0.0}
ENDS: list[tuple[Status, type[odenet.SolveError] | None, Any, Any, dict[str, Any]]] = [
    (Status.SUCCESS, None, decay, [1.0], {}),
    (Status.EVENT, None, decay, [1.0], {"event": Event(lambda t, y: y - 0.5)}),
    (Status.MAX_STEPS, odenet.MaxStepsError, decay, [1.0], {"max_steps": 2}),
    (Status.NON_FINITE, odenet.NonFiniteError, root, [1.0], {}),
    (Status.BLOW_UP, odenet.BlowUpError, lambda t, y: y * y, [1.0], {}),
    (Status.STEP_UNDERFLOW, odenet.StepUnderflowError, jump, [1.0], TIGHT),
    (
        Status.NONLINEAR_FAILED,
        odenet.NonlinearSolveError,
        lambda t, y: torch.where(y > 0.5, -1.0, 1e9).to(y.dtype),  # no step past 0.5 satisfies its equations
        [1.0],
        {"method": "radauIIA5"},
    ),
    (Status.PILE_UP, odenet.PileUpError, fall, [[1.0, 0.0]], {"event": BOUNCE}),
]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("status", "kind", "f", "y0", "options"), ENDS, ids=[e[0].name for e in ENDS])
def test_every_end(status: Status, kind: Any, f: Any, y0: Any, options: dict[str, Any], per_sample: bool) -> None:
    start = torch.tensor(y0, dtype=D)
    start = start if per_sample or start.ndim == 1 else start[0]
    ts = [0.0, 0.1, 20.0]
    if kind is not None:
        whose = "sample 0, " if per_sample else ""
        with pytest.raises(kind, match=rf"^The solve failed at t=.* \(dt=.*{whose}worst component y.*\): .*\. Hint: "):
            odenet.solve(f, start, ts, per_sample=per_sample, **options)
    sol = odenet.solve(f, start, ts, per_sample=per_sample, on_failure="return", dense=True, **options)
    assert (int(sol.status) if not per_sample else sol.status.tolist()) == (status if not per_sample else [status])
    rows = sol.ys[0] if per_sample else sol.ys
    assert torch.equal(rows[0], start[0] if per_sample else start)
    assert bool(rows[-1].isnan().all()) == (status != Status.SUCCESS) and bool(sol.y1.isfinite().all())
    assert int(sol.stats.accepted + sol.stats.rejected) > 0
    if status not in (Status.SUCCESS, Status.MAX_STEPS):
        t = torch.tensor([0.1], dtype=D)
        torch.testing.assert_close(sol(t).reshape(rows[1].shape), rows[1], rtol=1e-6, atol=1e-9)
    if status != Status.SUCCESS:
        with pytest.raises(ValueError, match="the time reached"):
            sol(20.0)


def test_every_status_is_in_the_table() -> None:
    assert {e[0] for e in ENDS} == set(Status) - {Status.RUNNING}


def test_the_page_shows_what_is_printed() -> None:
    page = (Path(__file__).parent.parent / "docs" / "failures.md").read_text(encoding="utf-8")
    source, error = re.findall(r'\$ python -c "(.*)"\nodenet\.errors\.BlowUpError: (.*)', page)[0]
    with pytest.raises(odenet.BlowUpError) as caught:
        exec(source, {})
    # the last digits of numbers at a singularity are those of a machine
    assert numberless(str(caught.value)) == numberless(error)


def numberless(text: str) -> str:
    return re.sub(r"\d[\d.]*(e[+-]?\d+)?", "#", text)


def test_a_time_beyond_a_sample() -> None:
    y0 = torch.tensor([[0.1], [1.0]], dtype=D)
    sol = odenet.solve(lambda t, y: y * y, y0, [0.0, 2.0], per_sample=True, on_failure="return", dense=True)
    with pytest.raises(ValueError, match=r"ts\[0\]=0\.0 and the time reached, 1\.0\d+ of sample 1$"):
        sol(1.5)
    own = torch.tensor([[1.5], [0.5]], dtype=D)
    exact = y0 / (1 - y0 * own)
    torch.testing.assert_close(sol(own)[..., 0], exact, rtol=1e-4, atol=0.0)


def hungry(t: Tensor, y: Tensor) -> Tensor:
    torch.empty(10**16)  # 40 petabytes
    return -y


@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"gradient": "backprop"}], ids=str)
def test_out_of_memory(options: dict[str, Any]) -> None:
    """PyTorch's own error, forward or backward; the next solve is what it would have been."""
    y0 = torch.ones(2, 3, dtype=D, requires_grad=True)
    expected = odenet.solve(decay, y0, [0.0, 1.0], **options).y1
    with pytest.raises(RuntimeError, match="allocate"):
        odenet.solve(hungry, y0, [0.0, 1.0], **options)
    assert torch.equal(odenet.solve(decay, y0, [0.0, 1.0], **options).y1, expected)


def test_a_captured_tensor_whose_gradient_cannot_be_given() -> None:
    """Computed, out of reach, and used from some time on alone."""
    w = torch.ones(3, dtype=D, requires_grad=True)
    hidden = deque([2 * w])  # nobody sees what it holds

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y if t < 0.5 else -hidden[0] * y

    options: dict[str, Any] = {"step": 0.25, "method": "rk4", "controller": None}
    sol = odenet.solve(f, ONE, [0.0, 1.0], gradient="backprop", **options)
    (expected,) = torch.autograd.grad(sol.y1.sum(), w)
    assert bool((expected < -0.1).all())
    y0 = ONE.clone().requires_grad_()  # so that there is a backward pass
    with pytest.raises(
        odenet.errors.CaptureError, match=r"f closes over a tensor computed outside f by MulBackward0.*args"
    ):
        odenet.solve(f, y0, [0.0, 1.0], **options).y1.sum().backward()


def test_a_backward_pass_of_a_failing_f() -> None:
    """What f raises there comes through as well."""
    calls = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        if not going:
            raise OwnError("mine")
        return -y

    for gradient in ("adjoint", "gauss", "reversible", odenet.Discrete(checkpoints=1)):
        going = True
        y0 = ONE.clone().requires_grad_()
        sol = odenet.solve(f, y0, [0.0, 1.0], gradient=gradient)
        going = False
        with pytest.raises(OwnError, match=r"^mine$"):
            sol.y1.sum().backward()
        assert y0.grad is None


class OwnError(Exception):
    pass


def _fails(*_: Any) -> Any:
    raise OwnError("mine")


@pytest.mark.parametrize(
    "options",
    [
        {"f": _fails},
        {"event": Event(_fails)},
        {"event": Event(lambda t, y: y[0] - 0.5, reset=_fails)},
        {"progress": _fails},
        {"callbacks": odenet.Callbacks(accept=_fails)},
        {"controller": odenet.PID(norm=_fails)},
    ],
    ids=lambda x: next(iter(x)),
)
def test_what_the_callers_functions_raise_comes_through(options: dict[str, Any]) -> None:
    f = options.get("f", decay)
    with pytest.raises(OwnError, match=r"^mine$"):
        odenet.solve(f, ONE, [0.0, 2.0], **{k: v for k, v in options.items() if k != "f"})


# --- what is solved of a joint solve that fails


OPTIONS: list[dict[str, Any]] = [{"rtol": 1e-9, "atol": 1e-11}, {"method": "rk4", "step": 0.01}]


@pytest.mark.parametrize("gradient", SETTINGS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=["adaptive", "constant"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_solved_part_of_a_joint_solve(gradient: Any, sign: float, options: dict[str, Any]) -> None:
    """Values and gradients are those of the closed form, also where times are repeated; y1 is where it stopped."""
    times = [0.0, 0.0, 0.2, 0.4, 0.4, 0.8, 0.8, 1.0]
    y0, w = torch.tensor([1.0, 2.0], dtype=D, requires_grad=True), torch.tensor(0.7, dtype=D, requires_grad=True)
    ts = (sign * torch.tensor(times, dtype=D)).requires_grad_()

    def f(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return torch.where(t * sign > 0.55, torch.nan, sign * w) * y

    sol = odenet.solve(f, y0, ts, args=(w,), on_failure="return", gradient=gradient, dense=True, **options)
    assert sol.status == Status.NON_FINITE and sol.event is None
    exact = y0 * torch.exp(w * sign * (ts[:5] - ts[0])).unsqueeze(-1)
    torch.testing.assert_close(sol.ys[:5], exact, rtol=1e-6, atol=0.0)
    assert bool(sol.ys[5:].isnan().all())
    # with constant steps the one that comes to NaN is not taken
    before = (sol.y1 / y0).detach().log() / w.detach()
    assert bool(((before > 0.54 - 1e-6) & (before < 0.55 + 1e-6)).all())
    torch.testing.assert_close(sol(0.3 * sign), y0 * torch.exp(w * 0.3), rtol=1e-6, atol=0.0)
    with pytest.raises(ValueError, match="the time reached"):
        sol(0.9 * sign)
    weights = torch.linspace(1.0, 2.0, 10, dtype=D).view(5, 2)
    found = torch.autograd.grad((sol.ys[:5] * weights).sum(), (y0, w, ts))
    for a, b in zip(found, torch.autograd.grad((exact * weights).sum(), (y0, w, ts)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def _start_is_bad(t: Tensor, y: Tensor) -> Tensor:
    return torch.ones_like(y)  # whatever y is: f is finite


def _lost(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 0] * torch.nan, y[..., 1]], -1)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"method": "rk4", "step": 0.1}, pytest.param({"compile": True}, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_f_is_not_blamed(bad: float, options: dict[str, Any], per_sample: bool) -> None:
    """For a NaN or an infinity that it was given: in y0, in args, or by a reset."""
    y0 = torch.tensor([[0.0, 2.0], [0.1, 3.0]], dtype=D)
    y0 = y0 if per_sample else y0[0]
    where = "sample 0, " if per_sample else ""
    broken = y0.clone()
    broken[(0, 1) if per_sample else 1] = bad
    ts = [0.0, 1.0]
    with pytest.raises(
        odenet.NonFiniteError, match=rf"{where}worst component y\[1\]\): y0 holds NaN or infinity\. Hint"
    ):
        odenet.solve(_start_is_bad, broken, ts, per_sample=per_sample, **options)
    with pytest.raises(odenet.NonFiniteError, match=r"f returned NaN or infinity, and args\[0\]\['rate'\] holds one\."):
        args = ({"rate": torch.tensor(bad, dtype=D)},)
        odenet.solve(lambda t, y, a: a["rate"] * (y + 1), y0, ts, args=args, per_sample=per_sample, **options)
    if "compile" in options:
        return
    event = odenet.Event(lambda t, y: y[..., 0] - 0.5, terminal=False, reset=_lost)
    with pytest.raises(
        odenet.NonFiniteError, match=r"at t=0\.[345].*y\[0\]\): a reset gave NaN or infinity\."
    ) as error:
        odenet.solve(_start_is_bad, y0, ts, event=event, per_sample=per_sample, **options)
    assert "1 events had happened" in error.value.__notes__[0]


@pytest.mark.parametrize("gradient", ["adjoint", "gauss"])
def test_a_loss_that_is_not_finite(gradient: str) -> None:
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    sol = odenet.solve(lambda t, y: -y, y0, [0.0, 1.0], gradient=gradient)
    with pytest.raises(odenet.NonFiniteError, match=r"the gradient that came in holds NaN or infinity\. Hint: look at"):
        (sol.y1 * torch.nan).sum().backward()


def test_args_that_are_not_finite_are_not_blamed_later() -> None:
    """A bound that is infinite is no fault where f was finite with it before."""
    args = (torch.tensor(math.inf, dtype=D), torch.tensor([0.0, -math.inf], dtype=D))
    with pytest.raises(odenet.NonFiniteError, match=r"f returned NaN or infinity\. Hint: look at f"):
        odenet.solve(lambda t, y, *_: torch.sqrt(0.5 - t) * y, ONE, [0.0, 1.0], args=args)
    match = r"infinity, and args\[0\] and args\[1\] hold one\. Hint: give finite args, or look at f"
    with pytest.raises(odenet.NonFiniteError, match=match):
        odenet.solve(lambda t, y, a, b: a * y, ONE, [0.0, 1.0], args=args)


def test_hints_fit_the_call() -> None:
    with pytest.raises(odenet.MaxStepsError, match=r"Hint: raise max_steps, or take larger steps\.$"):
        odenet.solve(decay, ONE, [0.0, 1.0], method="rk4", step=1e-6, max_steps=3)
    with pytest.raises(odenet.MaxStepsError, match=r"problem is stiff.*method='esdirk54', or 'radauIIA5'"):
        odenet.solve(lambda t, y: -1e5 * y, ONE, [0.0, 10.0], max_steps=20)
    with pytest.raises(odenet.NonFiniteError, match=r"and args\[0\] holds one"):
        odenet.solve(lambda t, y, k: -k * y, ONE, [0.0, 1.0], args=(math.nan,))
    with pytest.raises(odenet.MaxStepsError, match=r"below the rounding of float32.*loosen rtol to 1e-05.*float64"):
        odenet.solve(lambda t, y: torch.cos(t) * y + torch.sin(5 * y), ONE.float(), [0.0, 1.0], rtol=1e-12, atol=1e-12,
                     max_steps=500)  # fmt: skip


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "reversible", "adjoint", "gauss"])
def test_several_cotangents_at_once(gradient: str) -> None:
    y0 = ONE.clone().requires_grad_()
    options = {"step": 0.05} if gradient == "reversible" else {}
    y1 = odenet.solve(decay, y0, [0.0, 1.0], gradient=gradient, rtol=1e-8, atol=1e-8, **options).y1
    try:
        (found,) = torch.autograd.grad([y1], [y0], [torch.eye(3).to(y1)], is_grads_batched=True)
    except RuntimeError as error:
        assert gradient in APPROXIMATE
        assert "remove is_grads_batched=True" in error.__notes__[0]
    else:
        torch.testing.assert_close(found, torch.eye(3).to(found) * math.exp(-1), rtol=1e-3, atol=1e-9)


def test_an_f_without_second_derivative() -> None:
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    with pytest.raises(RuntimeError) as caught:
        odenet.solve(lambda t, y: layer(y), torch.ones(2, 3, 4), [0.0, 1.0], gradient="forward", method="rk4", step=0.5)
    assert "gradient='forward' differentiates f twice" in caught.value.__notes__[0]


@pytest.mark.parametrize("method", ["tsit5", "esdirk54", "radauIIA5"])
@pytest.mark.parametrize(("y0", "component"), [([1.0, 0.5], "y[1]"), ([0.5, 1.0], "y[0]"), ([1.0, 0.5, 2.0], "y[1]")])
def test_the_component_that_leaves_the_domain_of_f_is_named(method: str, y0: list[float], component: str) -> None:
    """f is finite where the solve stands: what a step ahead meets tells."""
    with pytest.raises(odenet.NonFiniteError) as told:
        odenet.solve(lambda t, y: -torch.sqrt(y), torch.tensor(y0, dtype=torch.float64), [0.0, 2.2], method=method)
    assert told.value.component == component
