"""Every way a solve can end (docs/failures.md), and samples that fail beside others that do not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from odenet import Event, Status

ONE = torch.ones(3, dtype=torch.float64)
D = torch.float64
GRADIENTS = ["discrete", odenet.Discrete(checkpoints=2), "backprop", "adjoint", "gauss", "reversible", "forward"]


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


# --- a sample that fails, beside others


def field(kind: str) -> Any:
    """Elementwise; samples with a > 5 fail."""

    def f(t: Tensor, y: Tensor, a: Tensor, w: Tensor) -> Tensor:
        if kind == "root":  # NaN from t = a + 3 on, with a derivative that grows without bound before
            return torch.sqrt(a + 3.0 - t) * torch.sin(y) * w
        good, bad = a.clamp(max=5.0) * torch.sin(y) * w + 0.1, a > 5.0
        if kind == "nan":
            return torch.where(bad & (t > 0.5), torch.nan, good)
        if kind == "blow":
            return torch.where(bad, y * y * w * 3.0, good)
        return torch.where(bad, torch.exp(y * y * w * 3.0), good) if kind == "exp" else good

    return f


def of_four(kind: str, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """y0, a, w; sample 1 is the one that fails."""
    y0, a = torch.linspace(0.3, 2.0, count, dtype=D), torch.linspace(0.5, 2.0, count, dtype=D)
    a[1] = {"args": torch.nan, "y0": 1.0, "root": -2.6}.get(kind, 7.0)
    y0[1] = torch.nan if kind == "y0" else 1.0
    return y0.requires_grad_(), a.requires_grad_(), torch.tensor(1.1, dtype=D, requires_grad=True)


def neighbours_are_alone(kind: str, gradient: Any, count: int = 4, **options: Any) -> None:
    """Values, counts and gradients of the others, with a sample that fails and without it; its own gradient is zero."""
    options = {"per_sample": True, "on_failure": "return", "gradient": gradient} | options
    f, (y0, a, w) = field(kind), of_four(kind, count)
    keep = torch.tensor([i for i in range(count) if i != 1])
    ts = [0.0, 0.25, 1.0, 2.0]
    sol = odenet.solve(f, y0, ts, args=(a, w), **options)
    alone = odenet.solve(f, y0[keep], ts, args=(a[keep], w), **options)
    assert int(sol.status[1]) not in (Status.SUCCESS, Status.EVENT) and alone.status.tolist() == [0] * (count - 1)
    assert torch.equal(sol.ys[keep], alone.ys) and torch.equal(sol.y1[keep], alone.y1)
    for name in ("accepted", "rejected"):
        assert torch.equal(sol.stats[name][keep], alone.stats[name])
    losses = [(sol.ys[keep].sum(), alone.ys.sum()), (sol.ys.nansum(), alone.ys.sum())]
    if kind != "y0":
        losses.append((sol.y1.sum(), alone.y1.sum()))
    if options.get("dense"):
        losses.append((sol(0.0)[keep].sum(), alone(0.0).sum()))
    # what reaches a row is added in another order: by backprop where samples leave the batch, and within a step whose
    # outputs take evaluations of their own
    last_bit = 1e-14 if gradient == "backprop" or options.get("method") == "dopri8" else 0.0
    for mine, true in losses:
        by_y0, by_a, by_w = torch.autograd.grad(mine, (y0, a, w), retain_graph=True, allow_unused=True)
        y_true, a_true, w_true = torch.autograd.grad(true, (y0, a, w), retain_graph=True, allow_unused=True)
        assert by_y0 is not None and y_true is not None
        assert float(by_y0[1]) == 0.0
        torch.testing.assert_close(by_y0[keep], y_true[keep], rtol=last_bit, atol=last_bit)
        if by_a is not None and a_true is not None:
            assert float(by_a[1]) == 0.0
            torch.testing.assert_close(by_a[keep], a_true[keep], rtol=last_bit, atol=last_bit)
        if by_w is not None and w_true is not None:  # a sum over samples, in another order
            torch.testing.assert_close(by_w, w_true, rtol=1e-13, atol=1e-13)


KINDS = ["nan", "blow", "exp", "root", "y0", "args"]


@pytest.mark.filterwarnings("ignore:gradient='reversible'")
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_what_they_are_alone(kind: str, gradient: Any) -> None:
    neighbours_are_alone(kind, gradient)
    neighbours_are_alone(kind, gradient, method="rk4", step=0.05)


@pytest.mark.filterwarnings("ignore::odenet.ConvergenceWarning")  # of the sample that fails
@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint", "forward"])
@pytest.mark.parametrize("options", [{"dense": True}, {"method": "dopri8"}, {"method": "gl4", "step": 0.1}], ids=str)
def test_with_dense_output_and_other_methods(gradient: str, options: dict[str, Any]) -> None:
    for kind in ("nan", "args"):
        neighbours_are_alone(kind, gradient, **options)


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint", "gauss", "forward"])
def test_one_among_many(gradient: str) -> None:
    """So few that they would stay in the batch for nothing."""
    for kind in ("nan", "root", "args"):
        neighbours_are_alone(kind, gradient, count=40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_neighbours(kind: str) -> None:
    neighbours_are_alone(kind, "discrete", compile=True)


def test_all_fail_and_one_alone_fails() -> None:
    for gradient in GRADIENTS:
        for count in (1, 3):
            y0 = torch.ones(count, dtype=D, requires_grad=True)
            w = torch.tensor(1.0, dtype=D, requires_grad=True)
            sol = odenet.solve(
                lambda t, y, w: w * root(t, y), y0, [0.0, 0.2, 1.0], args=(w,), per_sample=True, on_failure="return",
                gradient=gradient,
            )  # fmt: skip
            assert sol.status.tolist() == [Status.NON_FINITE] * count
            found = torch.autograd.grad(sol.ys[:, 1].sum() + sol.y1.sum(), (y0, w), allow_unused=True)
            assert all(x is None or not bool(x.any()) for x in found)


@pytest.mark.parametrize("gradient", ["discrete", odenet.Discrete(checkpoints=2), "backprop", "forward"], ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_of_the_solved_part_of_a_joint_solve(gradient: Any, sign: float) -> None:
    """That of a solve that ends with the last output that was reached."""
    y0, w = torch.ones(2, dtype=D, requires_grad=True), torch.tensor(0.7, dtype=D, requires_grad=True)

    def f(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return torch.where(t * sign > 0.5, torch.nan, sign * w) * y

    sol = odenet.solve(
        f, y0, [0.0, 0.2 * sign, 0.4 * sign, 1.0 * sign], args=(w,), on_failure="return", gradient=gradient,
        rtol=1e-9, atol=1e-9,
    )  # fmt: skip
    found = torch.autograd.grad(sol.ys[:3].sum(), (y0, w))
    exact = torch.stack([y0 * torch.exp(w * t) for t in (0.0, 0.2, 0.4)]).sum()
    for a, b in zip(found, torch.autograd.grad(exact, (y0, w)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


# --- an interrupt leaves nothing half-done


class Interrupting(torch.nn.Module):
    """A field that is interrupted at one of its evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 2, dtype=D)
        self.calls, self.at = 0, -1

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return torch.tanh(self.net(y))


@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_an_interrupt_at_every_evaluation(gradient: Any) -> None:
    """Forward or backward: the next solve is what it would have been, and gradients are whole or not there."""
    torch.manual_seed(0)
    f, y0 = Interrupting(), torch.randn(3, 2, dtype=D)

    def run() -> Tensor:
        f.calls = 0
        sol = odenet.solve(f, y0, [0.0, 1.0], gradient=gradient, method="bosh3", rtol=1e-3, atol=1e-3, per_sample=True)
        sol.y1.square().sum().backward()
        return sol.y1.detach()

    def gradients() -> list[Tensor]:
        return [p.grad.clone() for p in f.parameters() if p.grad is not None]

    expected = run()
    right, count, threads = gradients(), f.calls, torch.get_num_threads()
    for at in range(1, count + 1, max(1, count // 12)):
        f.zero_grad(set_to_none=True)
        f.at = at
        with pytest.raises(KeyboardInterrupt):
            run()
        assert gradients() == [] and torch.is_grad_enabled() and torch.get_num_threads() == threads
        f.at = -1
        assert torch.equal(run(), expected)
        assert all(torch.equal(a, b) for a, b in zip(gradients(), right, strict=True))


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """SIGINT after so many seconds of this thread's time."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
def test_an_interrupt_while_compiling(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it comes: no lock stays held, and what was written of a library does no harm to the next solve."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    y0 = torch.randn(5, 3, dtype=D)
    for seconds in (0.3, 1.0, 2.0, 3.5, 5.0):
        scale = 1.0 + seconds  # another field each time

        def f(t: Tensor, y: Tensor, scale: float = scale) -> Tensor:
            return -scale * y.sin()

        eager = odenet.solve(f, y0, [0.0, 1.0])
        try:
            with alarm(seconds):
                odenet.solve(f, y0, [0.0, 1.0], compile=True)
        except KeyboardInterrupt:
            pass
        compiled = odenet.solve(f, y0, [0.0, 1.0], compile=True)
        torch.testing.assert_close(compiled.y1, eager.y1, rtol=1e-12, atol=1e-12)
