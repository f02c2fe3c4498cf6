"""`solve`: checks the arguments, flattens y0, builds the problem, runs the gradient and packages the solution."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, TypeVar, Unpack, final

import torch
from torch import Tensor

from ..compiled import compiled_or_none
from ..control import Controller
from ..core.autocast import without_autocast_cache
from ..core.field_protocols import UserField
from ..core.leaves import Leaves, differentiable, in_working_precision, select, separate_view
from ..core.pytrees import Structure, tree_map
from ..core.save_function import SaveFunction
from ..core.serialization import short_repr
from ..core.status import Status
from ..core.torch_func import any_true, inside_transform, vmapping
from ..core.torch_modes import with_modes_put_back
from ..core.vector_field import VectorField
from ..engine.callbacks import Callbacks
from ..engine.diagnose import raise_failure, refine_status
from ..engine.integrate import Progress, Request
from ..engine.loop import Outcome
from ..engine.problem import Problem
from ..engine.step_recorder import StepRecorder
from ..engine.stiffness import StiffnessDetector
from ..events.event import Event, Hit
from ..events.event_loop import EventLoop
from ..gradients import ContinuousAdjoint, Gradient
from ..gradients.failed_samples import succeeded, without_failed
from ..gradients.gradient import Trajectory, gradient_bypassed
from ..gradients.zero_gradients import ensure_zero_grads
from ..methods import Method
from ..tracing.dynamo_entry import with_traced_version
from . import checks, traced_solve, transform_limits
from .option_types import GradientName, MethodName, OnFailure, SolveOptions
from .options import Layout, Options, checked_options
from .progress_bar import bar
from .solution import Solution

FailurePolicy = Callable[[Problem, Outcome], None]
"""Refines the status of failed samples by its cause, or raises a `SolveError`."""

_OPTION_NAMES = tuple(inspect.signature(Options.from_keywords).parameters)
_KEYWORDS = frozenset(("f", "y0", "ts", "args", *_OPTION_NAMES))

P = ParamSpec("P")
R = TypeVar("R")


def _with_keyword_hints(function: Callable[P, R]) -> Callable[P, R]:
    """Raise TypeError for an unknown keyword, with the name that odenet has for it."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _KEYWORDS.issuperset(kwargs):
            checks.known_options(kwargs.keys() - _KEYWORDS, _OPTION_NAMES)
        return function(*args, **kwargs)

    return call


@with_traced_version(traced_solve.solve)
@_with_keyword_hints
def solve(
    f: UserField,
    y0: Any,
    ts: Any,
    *,
    args: tuple[Any, ...] = (),
    method: MethodName | Method = "tsit5",
    rtol: Any = 1e-5,
    atol: Any = 1e-7,
    step: float | None = None,
    controller: Controller | None = None,
    gradient: GradientName | Gradient = "discrete",
    per_sample: bool = False,
    event: Event | Sequence[Event] | None = None,
    dense: bool = False,
    compile: bool = False,
    max_steps: int = 10_000,
    on_failure: OnFailure = "raise",
    progress: bool | Progress = False,
    callbacks: Callbacks | None = None,
    save: Callable[..., Any] | None = None,
    save_steps: bool = False,
    jacobian: Callable[..., Any] | None = None,
) -> Solution:
    """Solve dy/dt = f(t, y, *args) from y0 at ts[0]: the solution at all times of ts, differentiable.

    f: returns dy/dt with y's structure, shapes and dtype. t is a 0-d tensor, (B,) with per_sample, in the dtype of ts
        (Python numbers: float64), but at least as precise as y's.
    y0: tensor or pytree of tensors, float64, float32, bfloat16, float16 or complex.
    ts: at least two times, increasing or decreasing, (T,); (B, T) gives each sample its own times. f is never called
        outside [ts[0], ts[-1]], except by "kvaerno5", which evaluates up to 0.23 of a step ahead.
    args: further arguments of f, differentiable.
    method: "tsit5", "dopri5", "dopri8", "bosh3", "heun", "ralston", "fehlberg2" choose their steps, and for stiff f
        "esdirk54", "kvaerno5", "kvaerno3", "radauIIA5", "trbdf2". All others need `step` (or a controller): "euler",
        "midpoint", "heun3", "rk4", "rk4_38"; for stiff f "implicit_euler", "implicit_midpoint", "trapezoid", "sdirk2",
        "radauIIA3", "gl4", "gl6"; of several steps "explicit_adams", "implicit_adams". Or a `Method`. docs/methods.md.
    rtol, atol: error per step kept below atol + rtol * |y| (RMS); numbers, or pytrees that broadcast against y0.
    step: constant step size in the unit of time, with any method: rtol and atol then have no effect on steps. The last
        step before each output time is shortened to end there.
    controller: step control, such as PID(max_step=0.1, jump_ts=[1.0]); default: PID, with implicit methods Predictive.
    gradient: "discrete" (exact, the default; Discrete(checkpoints=, memory=) bounds its memory), "backprop" (exact,
        most memory), "reversible" (exact for its own method, constant memory), "forward" (exact, few inputs), "adjoint"
        (approximate, constant memory), "gauss" (approximate, no backward drift), or an instance.
    per_sample: the leading axis of y0 is a batch of independent problems, each with its own steps. Finished samples
        leave the batch: pass tensors with one row per sample through args, and f gets the remaining rows.
    dense: the solution can be called, sol(t), anywhere in [ts[0], ts[-1]].
    max_steps: attempted steps (of each sample) before giving up.
    on_failure: "raise", or "return" the solution up to the failure, with `status`.
    event: an `Event`, or a list of them; with per_sample each sample has its own event times. A terminal event ends the
        solve: `sol.y1` is the state there, and `sol.ys` is NaN at later times. `sol.event` is the last event that
        happened, a `Hit` with which, t and y; `sol.hits` holds all of them.
    progress: True for a bar (needs tqdm), or a callable (fraction, stats).
    compile: True: solve and exact gradient by machine code, compiled at first use (some seconds) and cached. A solve
        that cannot be compiled runs eagerly, with one warning that gives the reason. docs/compiling.md.
    callbacks: `Callbacks`, called around each attempted step.
    save: fn(t, y, *args) -> pytree of tensors: `sol.ys` holds its results in place of the states, differentiable. With
        per_sample t is (B,), y (B, ...), and the leading axis of the result is the batch.
    save_steps: True: `sol.steps` has the end times t of the accepted steps, their sizes h, and the states there (or the
        results of `save`), without gradients; see `odenet.Steps`.
    jacobian: (t, y, *args) -> df/dy for implicit methods, (n, n) with the n entries of the state in their order, or
        (B, n, n) with per_sample; by default autograd computes it. A wrong Jacobian costs steps, and one that is far
        too large costs accuracy, as it filters error estimates; gradients use derivatives of f.

    Raises TypeError or ValueError for a wrong argument, and a `SolveError` (a RuntimeError) if the solve fails.

    >>> import torch, odenet
    >>> sol = odenet.solve(lambda t, y: -y, torch.ones(2, dtype=torch.float64), [0.0, 1.0], rtol=1e-8, atol=1e-10)
    >>> bool((sol.y1 - torch.exp(torch.tensor(-1.0))).abs().max() < 1e-6)
    True
    """
    options = checked_options(
        method, rtol, atol, step, controller, gradient, per_sample, event, dense, compile, max_steps, on_failure,
        progress, callbacks, save, save_steps, jacobian,
    )  # fmt: skip
    return _solve(f, y0, ts, args, options)


@final
class Solver:
    """`solve` with f and options given in advance: options are checked once for many solves.

    Solver(f, **options), with the options of `odenet.solve`; solver(y0, ts, args=()) -> Solution. Raises as `solve`
    does; for a wrong option in the constructor.

    >>> import torch, odenet
    >>> solver = odenet.Solver(lambda t, y, k: -k * y, method="dopri5", rtol=1e-8, atol=1e-10)
    >>> y0 = torch.ones(2, dtype=torch.float64)
    >>> ends = [solver(y0, [0.0, 1.0], args=(k,)).y1 for k in (1.0, 2.0)]
    >>> bool((ends[1] - ends[0] ** 2).abs().max() < 1e-6)
    True
    """

    def __init__(self, f: UserField, **options: Unpack[SolveOptions]) -> None:
        checks.function(f)
        self.f, self.options = f, options
        checks.known_options(options, _OPTION_NAMES)
        self._checked = Options.from_keywords(**options)

    @property
    def layouts(self) -> Sequence[Layout]:
        """The layouts of the last states and times, kept for reuse."""
        return self._checked.layouts

    def __call__(self, y0: Any, ts: Any, args: tuple[Any, ...] = ()) -> Solution:
        if torch.compiler.is_compiling():
            return solve(self.f, y0, ts, args=args, **self.options)
        return _solve(self.f, y0, ts, args, self._checked)

    def matches(self, f: Any, options: Mapping[str, object]) -> bool:
        """True when the solver was made from these same objects."""
        same = self.f is f and self.options.keys() == options.keys()
        return same and all(v is options[k] for k, v in self.options.items())

    def __repr__(self) -> str:
        options = "".join(f", {k}={short_repr(v)}" for k, v in self.options.items())
        return f"Solver({getattr(self.f, '__name__', self.f)}{options})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Solver, **self.options), (self.f,)


@with_modes_put_back
def _solve(f: UserField, y0: Any, ts: Any, args: Any, o: Options) -> Solution:
    checks.function(f)
    checks.terms(f, o.method)
    layout, leaves = o.layout(y0, ts)
    working = tuple([separate_view(x) for x in in_working_precision(leaves)])  # f may set requires_grad
    f_args = () if type(args) is tuple and not args else tree_map(separate_view, checks.arguments(args))
    field = VectorField(f, layout.spec, layout.names, layout.dtypes, layout.time_dtype, f_args)
    field.save = None if o.save is None else SaveFunction(o.save, o.per_sample)
    field.user_jacobian = checks.jacobian(o.jacobian, working, o.method)
    problem = Problem(
        field, working, layout.engine_ts, layout.stops, layout.direction, o.method, o.controller, layout.rtol,
        layout.atol, o.per_sample, o.max_steps,
    )  # fmt: skip
    if inside_transform():
        transform_limits.refuse(o.events, o.callbacks, o.progress, o.method, o.save, o.save_steps)
        problem = replace(problem, traced=vmapping())
    on_failure: FailurePolicy = partial(raise_failure, names=layout.names) if o.raises else refine_status
    steps = StepRecorder() if o.save_steps else None
    run = partial(_run, o, on_failure)
    with bar(o.progress) as report, without_autocast_cache(working[0].device.type):
        request = Request(o.dense, report, o.callbacks, stiffness=StiffnessDetector(), steps=steps)
        last_hit, hits = None, None
        if o.events:
            trajectory, last_hit, hits = EventLoop(problem, o.events, f_args, run, on_failure, request).solve()
        else:
            trajectory = run(problem, request)
    return _solution(problem, trajectory, layout, last_hit, hits, o, steps)


def _run(o: Options, on_failure: FailurePolicy, p: Problem, request: Request) -> Trajectory:
    """Solve, handle failures, and attach the end time."""
    trajectory = _run_once(o, p, request)
    outcome = trajectory.outcome
    if not (p.on_host and outcome.state.status == Status.SUCCESS):
        on_failure(p, outcome)
        trajectory = without_failed(p, trajectory, lambda q: _run_once(o, q, request.unobserved()))
    differentiable_end = gradient_bypassed() or not isinstance(o.gradient, ContinuousAdjoint)
    outcome.state = outcome.state._replace(time=_end_time(p, outcome, differentiable_end))
    trajectory.y1 = _end_state(p, trajectory)
    return ensure_zero_grads(p, trajectory)


def _run_once(o: Options, p: Problem, request: Request) -> Trajectory:
    """Solve by compiled code if the options ask for it and f compiles, else by the gradient's own run."""
    trajectory = compiled_or_none(p, o.gradient, request) if o.compile else None
    if trajectory is None:
        return o.gradient.run(p, request)
    if p.f.save is None:
        return trajectory
    return replace(trajectory, ys=p.f.save_outputs(p.ts, trajectory.ys))  # compiled code returns the states


def _solution(
    p: Problem,
    trajectory: Trajectory,
    layout: Layout,
    last_hit: Hit | None,
    hits: Hit | None,
    o: Options,
    steps: StepRecorder | None,
) -> Solution:
    final, save, ts = trajectory.outcome.state, p.f.save, layout.copy_ts()
    status: Any = final.status
    pack = Structure(layout.spec, layout.dtypes)  # not p.f.pack, which would keep f alive
    pack_output = pack if save is None else save.pack
    return Solution(
        ts,
        pack_output(trajectory.ys),
        pack(trajectory.y1),
        final.time.to(ts.dtype),
        trajectory.stats,
        status if p.batched or p.traced else Status(int(status)),
        _with_user_times(last_hit, ts),
        _with_user_times(hits, ts),
        trajectory.dense,
        pack,
        (p.ts.detach()[..., 0], final.time.detach()) if o.dense else None,
        trajectory.dense_values,
        f"{_equation(p.f.user_call[0])} by {p.method.name}",
        None if steps is None else steps.steps(p, pack_output, ts.dtype),
    )


def _equation(f: UserField) -> str:
    """The equation as text, with f's name if it has one."""
    name: str = getattr(f, "__name__", type(f).__name__)
    return f"y' = {name if name.isidentifier() else 'f'}(t, y)"


def _with_user_times(hit: Hit | None, ts: Tensor) -> Hit | None:
    """The hit with its times in the dtype of ts."""
    return None if hit is None else hit._replace(t=hit.t.to(ts.dtype))


def _end_time(p: Problem, outcome: Outcome, differentiable_end: bool) -> Tensor:
    """The time reached, attached to the last stop time before it, or to ts[0], plus a constant.

    differentiable_end: False makes the end of an unfinished solve a constant, as it is for a continuous adjoint.
    """
    time = outcome.state.time.detach()
    if not (differentiable(p.ts) or differentiable(p.stops.times)):
        return time
    stops = p.stops.times
    passed = ((stops.detach() - time.unsqueeze(-1)) * p.direction.unsqueeze(-1) <= 0).sum(-1)
    last = stops.gather(-1, (passed - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    base = torch.where(passed > 0, last, p.ts[..., 0])
    end = base + (time - base.detach())
    if not differentiable_end:
        end = torch.where(passed == stops.shape[-1], end, time)
    success = succeeded(p, outcome.state.status)
    return end if success is None else torch.where(success, end, time)


def _end_state(p: Problem, trajectory: Trajectory) -> Leaves:
    """y1; for a solve of zero length the last output, y0 with a derivative with respect to ts[-1] - ts[0]."""
    if not differentiable(p.ts) or p.f.save is not None:
        return trajectory.y1
    zero_length = p.ts.detach()[..., 0] == p.ts.detach()[..., -1]
    if not any_true(zero_length):
        return trajectory.y1
    last = tuple(y[:, -1] if p.batched else y[-1] for y in trajectory.ys)
    return select(True if p.on_host else zero_length, last, trajectory.y1)
