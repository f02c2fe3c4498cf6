"""`solve`: check, flatten once, build the problem, run the gradient, package the solution."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from ..compiled import compiled_or_none
from ..control import Controller
from ..core.autocast import without_autocast_cache
from ..core.leaves import Leaves, differentiable, in_working_precision, own_view, select
from ..core.pytrees import Structure, tree_map
from ..core.save_function import SaveFunction
from ..core.status import Status
from ..core.torch_func import any_true, inside_transform, vmapping
from ..core.vector_field import VectorField
from ..engine.callbacks import Callbacks
from ..engine.diagnose import raise_failure, refine_status
from ..engine.integrate import Progress, Request
from ..engine.loop import Outcome
from ..engine.problem import Problem
from ..engine.step_recorder import StepRecorder
from ..engine.stiffness import StiffnessDetector
from ..events.event import Hit
from ..events.event_loop import EventLoop
from ..gradients import ContinuousAdjoint, Gradient
from ..gradients.failed_samples import succeeded, without_failed
from ..gradients.gradient import Trajectory, direct
from ..gradients.zero_gradients import ensure_zero_grads
from ..methods import Method
from ..tracing.dynamo_entry import outside_graphs
from . import checks, traced_solve, transform_limits
from .options import Layout, Options, options_of
from .progress_bar import bar
from .solution import Solution

Judge = Callable[[Problem, Outcome], None]
"""Gives the failures of a solve their causes, or raises them."""

OPTIONS = tuple(inspect.signature(Options.of).parameters)


@outside_graphs(traced_solve.solve)
def solve(
    f: Callable[..., Any],
    y0: Any,
    ts: Any,
    *,
    args: tuple[Any, ...] = (),
    method: str | Method = "tsit5",
    rtol: Any = 1e-5,
    atol: Any = 1e-7,
    step: float | None = None,
    controller: Controller | None = None,
    gradient: str | Gradient = "discrete",
    per_sample: bool = False,
    event: Any = None,
    dense: bool = False,
    compile: bool = False,
    max_steps: int = 10_000,
    on_failure: str = "raise",
    progress: bool | Progress = False,
    callbacks: Callbacks | None = None,
    save: Callable[..., Any] | None = None,
    save_steps: bool = False,
    jacobian: Callable[..., Any] | None = None,
) -> Solution:
    """Solve dy/dt = f(t, y, *args) from y0 at ts[0], and give the solution at all of ts; differentiable.

    f: returns dy/dt with y's structure, shapes and dtype. t is a 0-d tensor, (B,) with per_sample, in the dtype of ts
        (Python numbers: float64), at least as precise as y's.
    y0: tensor or pytree of tensors, float64, float32, bfloat16, float16 or complex.
    ts: at least two times, increasing or decreasing, (T,); (B, T) gives each sample its own. f is never called outside
        [ts[0], ts[-1]] (but by "kvaerno5", which looks up to 0.23 of a step ahead).
    args: further arguments of f; tensors in them get their gradient.
    method: "tsit5", "dopri5", "dopri8", "bosh3", "heun", "ralston", "fehlberg2" choose their steps, and for stiff f
        "esdirk54", "kvaerno5", "kvaerno3", "radauIIA5", "trbdf2". All others need `step` (or a controller): "euler",
        "midpoint", "heun3", "rk4", "rk4_38"; for stiff f "implicit_euler", "implicit_midpoint", "trapezoid", "sdirk2",
        "radauIIA3", "gl4", "gl6"; of several steps "explicit_adams", "implicit_adams". Or a `Method`. docs/methods.md.
    rtol, atol: error per step kept below atol + rtol * |y| (RMS); numbers, or pytrees that broadcast against y0.
    step: constant step size in the unit of time, with any method: rtol and atol then choose no steps. The last one
        before each output time is shortened to end there.
    controller: step control, such as PID(max_step=0.1, jump_ts=[1.0]).
    gradient: "discrete" (exact, the default; Discrete(checkpoints=, memory=) bounds its memory), "backprop" (exact,
        most memory), "reversible" (exact for its own method, constant memory), "forward" (exact, few inputs), "adjoint"
        (approximate, constant memory), "gauss" (approximate, no backward drift), or an instance.
    per_sample: the leading axis of y0 is a batch of independent problems, each with its own steps. Samples that have
        ended leave the batch: give what has a row for each sample through args, whose rows go with them.
    dense: the solution can be called, sol(t), anywhere in [ts[0], ts[-1]].
    max_steps: attempted steps (of each sample) before giving up.
    on_failure: "raise", or "return" the part that was solved, with `status`.
    event: an `Event`, or a list of them; with per_sample each sample has its own. A terminal one ends the solve:
        `sol.y1` is the state there, and `sol.ys` NaN at times after it. `sol.event` is the last that happened, with
        which, t and y; `sol.hits` are all.
    progress: True for a bar (needs tqdm), or a callable (fraction, stats).
    compile: True: solve and exact gradient by machine code that is compiled at first use (some seconds) and kept; what
        does not compile is solved as without, with one warning that says why. docs/compiling.md.
    callbacks: `Callbacks`, called around each attempted step.
    save: fn(t, y, *args) -> pytree of tensors: what `sol.ys` holds in place of the states, differentiable. With
        per_sample t is (B,), y (B, ...) and the result's leading axis the batch.
    save_steps: True: `sol.steps` has the ends t of the accepted steps, their sizes h, and the states there (or what
        `save` makes of them), as constants; see `odenet.engine.step_recorder.Steps`.
    jacobian: (t, y, *args) -> df/dy for implicit methods, (n, n) with the n entries of the state in their order, or
        (B, n, n) with per_sample; by default it is found by autograd. A wrong one costs steps, and
        one that is far too large accuracy, as error estimates are filtered by it; gradients take derivatives of f.

    Raises TypeError or ValueError for a wrong argument, and a `SolveError` (a RuntimeError) where the solve fails.

    >>> import torch, odenet
    >>> sol = odenet.solve(lambda t, y: -y, torch.ones(2, dtype=torch.float64), [0.0, 1.0], rtol=1e-8, atol=1e-10)
    >>> bool((sol.y1 - torch.exp(torch.tensor(-1.0))).abs().max() < 1e-6)
    True
    """
    options = options_of(
        method, rtol, atol, step, controller, gradient, per_sample, event, dense, compile, max_steps, on_failure,
        progress, callbacks, save, save_steps, jacobian,
    )  # fmt: skip
    return _solve(f, y0, ts, args, options)


@final
class Solver:
    """`solve` with f and its options given once, for those who solve again and again: options are checked once.

    Solver(f, **options), with those of `odenet.solve`; solver(y0, ts, args=()) -> Solution. Raises as `solve` does, for
    a wrong option at once.

    >>> import torch, odenet
    >>> solver = odenet.Solver(lambda t, y, k: -k * y, method="dopri5", rtol=1e-8, atol=1e-10)
    >>> y0 = torch.ones(2, dtype=torch.float64)
    >>> ends = [solver(y0, [0.0, 1.0], args=(k,)).y1 for k in (1.0, 2.0)]
    >>> bool((ends[1] - ends[0] ** 2).abs().max() < 1e-6)
    True
    """

    def __init__(self, f: Callable[..., Any], **options: Any) -> None:
        checks.function(f)
        self.f, self.options = f, options
        self._checked = checked(options)

    @property
    def layouts(self) -> Sequence[Layout]:
        """What it keeps of the last states and times."""
        return self._checked.layouts

    def __call__(self, y0: Any, ts: Any, args: tuple[Any, ...] = ()) -> Solution:
        if torch.compiler.is_compiling():
            return solve(self.f, y0, ts, args=args, **self.options)
        return _solve(self.f, y0, ts, args, self._checked)

    def stands_for(self, f: Any, options: dict[str, Any]) -> bool:
        """Whether it was made of these very objects."""
        same = self.f is f and self.options.keys() == options.keys()
        return same and all(v is options[k] for k, v in self.options.items())

    def __repr__(self) -> str:
        given = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f"Solver({getattr(self.f, '__name__', self.f)}{given})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Solver, **self.options), (self.f,)


def checked(options: dict[str, Any]) -> Options:
    """Options of `solve` by name, in the form that solves take them; raises for a wrong one."""
    checks.known_options(options, OPTIONS)
    return Options.of(**options)


def _solve(f: Callable[..., Any], y0: Any, ts: Any, args: Any, o: Options) -> Solution:
    checks.function(f)
    checks.parts(f, o.method)
    layout, leaves = o.layout(y0, ts)
    working = tuple([own_view(x) for x in in_working_precision(leaves)])  # f may mark what it is given
    given = () if type(args) is tuple and not args else tree_map(own_view, checks.arguments(args))
    field = VectorField(f, layout.spec, layout.names, layout.dtypes, layout.time_dtype, given)
    field.save = None if o.save is None else SaveFunction(o.save, o.per_sample)
    field.user_jacobian = checks.jacobian(o.jacobian, working, o.method)
    problem = Problem(
        field, working, layout.precise, layout.stops, layout.direction, o.method, o.controller, layout.rtol,
        layout.atol, o.per_sample, o.max_steps,
    )  # fmt: skip
    if inside_transform():
        transform_limits.refuse(o.events, o.callbacks, o.progress, o.method, o.save, o.save_steps)
        problem = replace(problem, traced=vmapping())
    judge: Judge = partial(raise_failure, names=layout.names) if o.raises else refine_status
    steps = StepRecorder() if o.save_steps else None
    run = partial(_run, o, judge)
    with bar(o.progress) as report, without_autocast_cache(working[0].device.type):
        request = Request(o.dense, report, o.callbacks, stiffness=StiffnessDetector(), steps=steps)
        last, hits = None, None
        if o.events:
            trajectory, last, hits = EventLoop(problem, o.events, given, run, judge, request).solve()
        else:
            trajectory = run(problem, request)
    return _solution(problem, trajectory, layout, last, hits, o, steps)


def _run(o: Options, judge: Judge, p: Problem, request: Request) -> Trajectory:
    """One solve, with failures judged."""
    found = _once(o, p, request)
    outcome = found.outcome
    if not (p.on_host and outcome.state.status == Status.SUCCESS):
        judge(p, outcome)
        found = without_failed(p, found, lambda q: _once(o, q, request.unobserved()))
    moves = direct() or not isinstance(o.gradient, ContinuousAdjoint)
    outcome.state = outcome.state._replace(time=_reached(p, outcome, moves))
    found.y1 = _ends(p, found)
    return ensure_zero_grads(p, found)


def _once(o: Options, p: Problem, request: Request) -> Trajectory:
    """One solve, by compiled code where that is asked for and can be."""
    found = compiled_or_none(p, o.gradient, request) if o.compile else None
    if found is None:
        return o.gradient.run(p, request)
    if p.f.save is None:
        return found
    return replace(found, ys=p.f.save_outputs(p.ts, found.ys))  # a library gives whole states


def _solution(
    p: Problem,
    found: Trajectory,
    layout: Layout,
    last: Hit | None,
    hits: Hit | None,
    o: Options,
    steps: StepRecorder | None,
) -> Solution:
    final, save, ts = found.outcome.state, p.f.save, layout.own_ts()
    pack = Structure(layout.spec, layout.dtypes)  # not the field's own, which would keep f alive
    shown = pack if save is None else save.pack
    return Solution(
        ts,
        shown(found.ys),
        pack(found.y1),
        final.time.to(ts.dtype),
        found.stats,
        final.status if p.batched or p.traced else Status(int(final.status)),
        _told(last, ts),
        _told(hits, ts),
        found.dense,
        pack,
        (p.ts.detach()[..., 0], final.time.detach()) if o.dense else None,
        found.pieces,
        f"{_name(p.f.parts[0])} by {p.method.name}",
        None if steps is None else steps.steps(p, shown, ts.dtype),
    )


def _name(f: Callable[..., Any]) -> str:
    """The equation, with f by its name where it has one."""
    name = getattr(f, "__name__", type(f).__name__)
    return f"y' = {name if name.isidentifier() else 'f'}(t, y)"


def _told(hit: Hit | None, ts: Tensor) -> Hit | None:
    """The hit with times in the dtype of ts."""
    return None if hit is None else hit._replace(t=hit.t.to(ts.dtype))


def _reached(p: Problem, outcome: Outcome, moves: bool) -> Tensor:
    """The time reached, as y1 depends on it: a constant after the last time that a step had to hit, or after ts[0].

    moves: False: of a solve that did not come to its end a constant, as the end of a continuous adjoint is.
    """
    time = outcome.state.time.detach()
    if not (differentiable(p.ts) or differentiable(p.stops.times)):
        return time
    stops = p.stops.times
    passed = ((stops.detach() - time.unsqueeze(-1)) * p.direction.unsqueeze(-1) <= 0).sum(-1)
    last = stops.gather(-1, (passed - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    base = torch.where(passed > 0, last, p.ts[..., 0])
    at = base + (time - base.detach())
    if not moves:
        at = torch.where(passed == stops.shape[-1], at, time)
    good = succeeded(p, outcome.state.status)
    return at if good is None else torch.where(good, at, time)


def _ends(p: Problem, found: Trajectory) -> Leaves:
    """The last states. Where a solve has no length they are y0, and move with its last time against the first."""
    if not differentiable(p.ts) or p.f.save is not None:
        return found.y1
    still = p.ts.detach()[..., 0] == p.ts.detach()[..., -1]
    if not any_true(still):
        return found.y1
    last = tuple(y[:, -1] if p.batched else y[-1] for y in found.ys)
    return select(True if p.on_host else still, last, found.y1)
