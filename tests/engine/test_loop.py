"""The step loop alone, with a stub method and stub controllers: no Runge-Kutta, no error control, no gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from odenet.control.controller import Attempt, Controller, ControllerState, Decision
from odenet.core.dense import Coefficients
from odenet.core.leaves import Leaves, add_scaled, expand_over, scale
from odenet.core.pytrees import flatten
from odenet.core.status import Status
from odenet.core.vector_field import VectorField
from odenet.engine.integrate import NumericalSolution, Request, integrate
from odenet.engine.loop import Outcome
from odenet.engine.observer import Observer
from odenet.engine.output_recorder import OutputRecorder
from odenet.engine.problem import Problem
from odenet.engine.step_attempt import StepAttempt
from odenet.methods import Method, Step
from odenet.methods.method import StepInput

D = torch.float64


class StubMethod(Method):
    """Euler, one evaluation a step; remembers the ends of every attempt."""

    name, order, error_order = "stub", 1, 2

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any]] = []
        self.polynomials = 0

    def step(self, at: StepInput) -> Step:
        self.asked.append((at.t0.tolist(), at.t1.tolist()))
        slope = at.f(at.t0, at.y)
        return Step(add_scaled(at.y, expand_over(at.t1 - at.t0, at.y), slope), (), (slope,))

    def error(self, at: StepInput, step: Step) -> Leaves | None:
        return tuple(torch.zeros_like(x) for x in at.y)

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        self.polynomials += 1
        return (scale(expand_over(at.t1 - at.t0, at.y), step.stages[0]),)


class Script(Controller):
    """Steps of one size; rejects the attempts whose numbers are given; gives up at one of them."""

    every_output, stretch = False, 1.0

    def __init__(self, h: float, reject: Sequence[int] = (), fail: int | None = None, adaptive: bool = False) -> None:
        self.h, self.reject, self.fail, self.adaptive = h, set(reject), fail, adaptive
        self.first_step: float | None = h
        self.judged: list[Any] = []

    def init_state(self, h: Any) -> ControllerState:
        return ()

    def initial_step(self, h: Any) -> Any:
        return h * 0.0 + self.h

    def decide(self, attempt: Attempt, memory: ControllerState) -> Decision:
        h = attempt.h
        number = len(self.judged)
        self.judged.append(h if isinstance(h, float) else h.tolist())
        shape = h if isinstance(h, Tensor) else None
        accept: Any = number not in self.reject
        failed: Any = number == self.fail
        size: Any = self.h if accept else h / 2
        if shape is not None:
            accept, failed = torch.full_like(shape, accept).bool(), torch.full_like(shape, failed).bool()
        return Decision(accept, shape * 0 + size if shape is not None else size, (), failed)


class Watch(Observer):
    def __init__(self) -> None:
        self.moves: list[StepAttempt] = []

    def observe(self, move: StepAttempt) -> None:
        self.moves.append(move)


def one(t: Tensor, y: Tensor) -> Tensor:
    return torch.ones_like(y)


def problem(ts: Any, control: Controller, f: Any = one, max_steps: int = 100, batch: int | None = None) -> Problem:
    times = torch.as_tensor(ts, dtype=D)
    y0 = torch.zeros((batch, 1) if batch else (1,), dtype=D)
    if batch and times.ndim == 1:
        times = times.expand(batch, -1)
    field = VectorField(f, flatten(y0)[1], [""], (D,), D)
    return Problem.build(field, (y0,), times, control, method=StubMethod(), rtol=[0.0], atol=[1.0], max_steps=max_steps)


def run(p: Problem, *watch: Observer, **request: Any) -> tuple[NumericalSolution, Outcome]:
    with torch.no_grad():
        solved = integrate(p, Request(**request), OutputRecorder(p), watch)
    return solved, solved.outcome


def asked(p: Problem) -> list[tuple[Any, Any]]:
    assert isinstance(p.method, StubMethod)
    return p.method.asked


def test_steps_join_and_end_exactly() -> None:
    """Each attempt starts where the last ended; the last ends at ts[-1] to the bit."""
    for ts in ([0.0, 1.0], [1.0, 0.0], [-0.3, 0.45]):
        p = problem(ts, Script(0.3))
        solved, outcome = run(p)
        steps = asked(p)
        assert steps[0][0] == ts[0] and steps[-1][1] == ts[-1]
        assert all(a[1] == b[0] for a, b in pairwise(steps))
        assert outcome.accepted == len(steps) == outcome.nfe == math.ceil(abs(ts[1] - ts[0]) / 0.3)
        assert outcome.state.status == Status.SUCCESS and outcome.rejected == 0
        assert float(solved.y1[0]) == pytest.approx(ts[1] - ts[0])


def test_rejected_attempt_is_taken_again_from_the_same_place() -> None:
    watch = Watch()
    p = problem([0.0, 1.0], Script(0.5, reject=[1, 2]))
    solved, outcome = run(p, watch)
    assert asked(p) == [(0.0, 0.5), (0.5, 1.0), (0.5, 0.75), (0.5, 0.625), (0.625, 1.0)]
    assert [bool(m.accept) for m in watch.moves] == [True, False, False, True, True]
    assert (outcome.accepted, outcome.rejected, outcome.nfe) == (3, 2, 5)
    assert float(solved.y1[0]) == 1.0


def test_controller_sees_true_sizes() -> None:
    """Also of a step that a stop cut short."""
    control = Script(0.4)
    run(problem([0.0, 1.0], control))
    assert control.judged == pytest.approx([0.4, 0.4, 0.2])


def test_outputs_between_steps_do_not_shorten_steps() -> None:
    """Without `every_output` the dense output fills in; with it each output ends a step."""
    ts = [0.0, 0.1, 0.1, 0.6, 1.0]
    p = problem(ts, Script(0.5))
    solved, _ = run(p)
    assert asked(p) == [(0.0, 0.5), (0.5, 1.0)]
    torch.testing.assert_close(solved.ys[0][:, 0], torch.tensor(ts, dtype=D), rtol=1e-14, atol=1e-14)
    assert isinstance(p.method, StubMethod) and p.method.polynomials == 2
    control = Script(0.5)
    control.every_output = True
    p = problem(ts, control)
    solved, _ = run(p)
    assert [b for _, b in asked(p)] == [0.1, 0.6, 1.0]
    assert isinstance(p.method, StubMethod) and p.method.polynomials == 0
    torch.testing.assert_close(solved.ys[0][:, 0], torch.tensor(ts, dtype=D), rtol=1e-14, atol=1e-14)


def test_dense_output_is_not_computed_unless_asked() -> None:
    p = problem([0.0, 0.5, 1.0], Script(0.5))
    run(p)
    assert isinstance(p.method, StubMethod) and p.method.polynomials == 0
    p = problem([0.0, 1.0], Script(0.25, reject=[0]))
    solved, outcome = run(p, dense=True)
    assert isinstance(p.method, StubMethod) and p.method.polynomials == outcome.accepted
    assert solved.pieces is not None and len(solved.pieces.end) == outcome.accepted


@pytest.mark.parametrize("per_sample", [False, True])
def test_stops_are_hit_in_order_and_once(per_sample: bool) -> None:
    for ts in ([0.0, 1.0], [1.0, 0.0]):
        control = Script(0.4)
        control.step_ts = [0.9, 0.2, 0.2, 5.0, -1.0, 0.0, 1.0]
        p = problem(ts, control, batch=2 if per_sample else None)
        run(p)
        ends = [b[0] if per_sample else b for _, b in asked(p)]
        expected = [0.2, 0.6, 0.9, 1.0] if ts[0] == 0.0 else [0.9, 0.5, 0.2, 0.0]
        assert ends == pytest.approx(expected)
        assert expected[0] in ends and expected[2] in ends and expected[3] in ends


def test_stretch_swallows_a_sliver() -> None:
    """A step is lengthened a little rather than leave a tiny one before a stop."""
    control = Script(0.1)
    control.stretch = 1.01
    p = problem([0.0, 0.3005], control)
    run(p)
    assert [b for _, b in asked(p)] == pytest.approx([0.1, 0.2, 0.3005])


def test_max_steps_counts_attempts() -> None:
    p = problem([0.0, 1.0], Script(0.1, reject=[1]), max_steps=4)
    solved, outcome = run(p)
    assert outcome.state.status == Status.MAX_STEPS and outcome.accepted + outcome.rejected == 4
    assert bool(solved.ys[0][-1].isnan()) and float(solved.y1[0]) == pytest.approx(0.25)
    p = problem([0.0, 1.0], Script(0.25), max_steps=4)
    assert run(p)[1].state.status == Status.SUCCESS


def test_max_steps_per_sample_stops_only_its_lane() -> None:
    ts = [[0.0, 1.0], [0.0, 0.3], [0.0, 0.0]]
    solved, outcome = run(problem(ts, Script(0.1), max_steps=5, batch=3))
    assert outcome.state.status.tolist() == [Status.MAX_STEPS, Status.SUCCESS, Status.SUCCESS]
    assert isinstance(outcome.accepted, Tensor) and isinstance(outcome.nfe, Tensor)
    assert outcome.accepted.tolist() == [5, 3, 0] and outcome.nfe.tolist() == [5, 3, 0]
    assert solved.y1[0][:, 0].tolist() == pytest.approx([0.5, 0.3, 0.0])
    assert solved.ys[0][:, 1, 0].isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("per_sample", [False, True])
def test_failed_verdict_ends_the_solve(per_sample: bool) -> None:
    p = problem([0.0, 1.0], Script(0.25, reject=[2], fail=2), batch=2 if per_sample else None)
    solved, outcome = run(p)
    assert torch.as_tensor(outcome.state.status).flatten().tolist() == [Status.STEP_UNDERFLOW] * (1 + per_sample)
    assert solved.y1[0].flatten().tolist() == [0.5] * (1 + per_sample)


def test_controller_that_shrinks_without_end_is_stopped() -> None:
    p = problem([1.0, 2.0], Script(0.5, reject=range(1000)), max_steps=1000)
    _, outcome = run(p)
    assert outcome.state.status == Status.STEP_UNDERFLOW and outcome.accepted == 0
    assert outcome.rejected < 60  # 2^-52 is 52 halvings away


@pytest.mark.parametrize("per_sample", [False, True])
def test_no_length(per_sample: bool) -> None:
    """All times equal: y0 everywhere, nothing evaluated, no step."""

    def never(t: Tensor, y: Tensor) -> Tensor:
        raise AssertionError("f was called")

    p = problem([0.5, 0.5, 0.5], Script(0.1), f=never, batch=2 if per_sample else None)
    solved, outcome = run(p, dense=True)
    assert asked(p) == [] and solved.pieces is not None
    for count in (outcome.nfe, outcome.accepted, outcome.rejected):
        assert int(torch.as_tensor(count).sum()) == 0
    assert torch.equal(solved.ys[0], torch.zeros((2, 3, 1) if per_sample else (3, 1), dtype=D))
    assert torch.as_tensor(outcome.state.status).flatten().tolist() == [Status.SUCCESS] * (1 + per_sample)


def test_lanes_that_ended_stand_still() -> None:
    """Where it cannot leave the batch, a finished sample takes steps of zero length at its end, and does not move."""
    p = problem([[0.0, 0.25], [0.0, 1.0]], Script(0.125), f=lambda t, y: torch.exp(t)[:, None] + y, batch=2)
    p = replace(p, compact=False)
    solved, outcome = run(p)
    assert all(a[0] == b[0] == 0.25 for a, b in asked(p)[2:])
    short, _ = run(problem([[0.0, 0.25]], Script(0.125), f=lambda t, y: torch.exp(t)[:, None] + y, batch=1))
    assert torch.equal(solved.y1[0][:1], short.y1[0])
    assert isinstance(outcome.accepted, Tensor) and outcome.accepted.tolist() == [2, 8]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("ts", [[0.0, 1.0], [1.0, 0.0]])
def test_progress(ts: list[float], per_sample: bool) -> None:
    """The callback sees the fraction of time solved, one call an attempt, ending at 1, with true counts."""
    seen: list[tuple[float, dict[str, int]]] = []
    p = problem(ts, Script(0.25, reject=[1]), batch=2 if per_sample else None)
    run(p, progress=lambda fraction, stats: seen.append((fraction, dict(stats))))
    kept = [x for i, (x, _) in enumerate(seen) if i != 1]
    assert kept == pytest.approx([0.25, 0.375, 0.625, 0.875, 1.0])
    assert seen[-1][0] == 1.0
    assert seen[-1][1] == {"nfe": 6, "accepted": 5, "rejected": 1}
    assert seen[2][1] == {"nfe": 3, "accepted": 2, "rejected": 1}


def test_error_of_the_callback_reaches_the_caller() -> None:
    def stop(fraction: float, stats: dict[str, int]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        odenet.solve(one, torch.zeros(1, dtype=D), [0.0, 1.0], progress=stop)


def test_stub_through_the_front_door() -> None:
    """A Method and a Controller that are not the library's own work in `solve`, with every gradient."""
    for gradient in ("discrete", "backprop", "adjoint"):
        y0 = torch.ones(1, dtype=D, requires_grad=True)
        sol = odenet.solve(
            lambda t, y: -y, y0, [0.0, 1.0], method=StubMethod(), controller=Script(1e-2), gradient=gradient
        )
        (g,) = torch.autograd.grad(sol.y1.sum(), y0)
        assert float(sol.y1.detach()) == pytest.approx(0.99**100)
        assert float(g) == pytest.approx(0.99**100, rel=1e-12 if gradient != "adjoint" else 1e-2)
