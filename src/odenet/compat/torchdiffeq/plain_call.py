"""odeint and odeint_dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...api.option_types import GradientName
from ...api.solution import Solution
from ...api.solve import solve
from ...core.leaves import forward_mode
from ...core.torch_func import inside_transform
from ...engine.callbacks import Callbacks
from ...errors import CaptureError
from ...events.event import Event
from ...gradients import Gradient
from .custom_solvers import integrate_with
from .error_classes import as_assertions
from .inputs import Inputs, State, as_dense_tensor
from .method_names import SCIPY, Settings, is_adaptive, method_name, stepping_controller
from .scipy_solver import SciPy
from .solver_callbacks import find_callbacks
from .solvers import BUILT_IN

_EVENT_HORIZON = 1e15  # end of the search for an event, in units of time
_BACKPROP_BYTES = 2**18  # states below this many bytes use autograd through the whole solve, as torchdiffeq does
_UNROLLED_METHODS = ("euler", "midpoint", "heun2", "heun3", "rk4")
_MAX_FIXED_STEPS = 20_000  # with constant steps, until an event


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y) from y0 at t[0]; returns the solution at all of t, with exact gradients.

    func: (t, y) -> dy/dt. t is 0-d in y's real dtype; y is a tensor or tuple like y0.
    y0: a tensor, or a tuple of tensors. t: (T,), strictly increasing or decreasing.
    rtol, atol: numbers, tensors that broadcast against y0, or a tuple with one entry for each tensor of a tuple y0.
    method, options: as in torchdiffeq; see docs/migrate.md.
    event_fn: (t, y) -> tensor; the solve ends at the first time at which one of its entries becomes zero or crosses
        zero. Then t has two times, and t[1] gives the direction only.

    Returns (T, *y0.shape), or a tuple of these. With event_fn, returns the event time, 0-d, and the solution at t[0]
    and at the event. Raises AssertionError, ValueError, TypeError or RuntimeError where torchdiffeq does.
    """
    inputs = Inputs.from_arguments(func, y0, t, rtol, atol, event_fn)
    name = method_name(method)
    settings = Settings.from_options(name, options, inputs)
    gradient: GradientName | Gradient = SciPy(settings.options) if name == SCIPY else _exact_gradient(inputs)
    return odeint_with_gradient(inputs, settings, gradient, event_fn)


def _exact_gradient(inputs: Inputs) -> GradientName:
    """The faster exact gradient: storing the steps of a small state is cheaper than handling them one by one."""
    leaves = (inputs.y0,) if isinstance(inputs.y0, Tensor) else inputs.y0
    return "backprop" if sum(x.numel() * x.element_size() for x in leaves) < _BACKPROP_BYTES else "discrete"


def odeint_with_gradient(
    inputs: Inputs, settings: Settings, gradient: GradientName | Gradient, event_fn: Callable[..., Tensor] | None
) -> Any:
    """The return value of odeint and odeint_adjoint."""
    if settings.solver_class is not None:
        return integrate_with(settings.solver_class, settings.name, inputs, settings.options, event_fn)
    callbacks = find_callbacks(inputs.func, settings.name, settings.time_dtype(inputs))
    if event_fn is not None:
        return _until_event(inputs, settings, gradient, event_fn, callbacks)
    if len(inputs.t) == 1:
        return _single_output(inputs.y0)
    if callbacks is None and gradient == "backprop" and _solver_class_suffices(inputs, settings):
        y0, options = inputs.y0, {k: settings.options.get(k) for k in ("step_size", "grid_constructor")}
        assert isinstance(y0, Tensor)
        return BUILT_IN[settings.name](_checked_func(inputs.field()), y0.view_as(y0), **options).integrate(inputs.t)
    return solve_inputs(inputs, settings, gradient, inputs.t, callbacks=callbacks).ys


def _solver_class_suffices(inputs: Inputs, settings: Settings) -> bool:
    """True if the solver class alone gives the same result, which is faster for few steps of a small state.

    That is so for known steps forwards in time whose every operation autograd records.
    """
    y0, t = inputs.y0, inputs.t
    if settings.name not in _UNROLLED_METHODS or not isinstance(y0, Tensor) or y0.dtype.itemsize < 4:
        return False
    if settings.options.get("perturb") or settings.options.get("interp", "linear") != "linear":
        return False
    if y0.is_inference() or t.is_inference() or torch.is_inference_mode_enabled():
        return False
    return not (inside_transform() or forward_mode() or torch.compiler.is_compiling()) and bool(t[1] > t[0])


def _checked_func(func: Callable[[Tensor, Any], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """func with the engine's checks of results and in-place changes."""

    def checked(t: Tensor, y: Tensor) -> Tensor:
        version = y._version
        slope = func(t, y)
        if not isinstance(slope, Tensor):
            raise TypeError(f"func must return a tensor like y0; got {type(slope).__name__}")
        if y._version != version:
            raise ValueError("func changes its y in place, which is the solver's own: let it work on y.clone()")
        return slope

    return checked


def solve_inputs(
    inputs: Inputs, settings: Settings, gradient: GradientName | Gradient, ts: Tensor, **options: Any
) -> Solution:
    """`odenet.solve` of these inputs; failures raise AssertionErrors."""
    defaults: dict[str, Any] = {
        **{"method": settings.method, "controller": settings.controller, "max_steps": settings.max_steps},
        **{"rtol": inputs.rtol, "atol": inputs.atol},
    }
    field = inputs.field(broadcasts=not is_adaptive(settings.name))
    with as_assertions():
        try:
            return solve(field, inputs.y0, ts, gradient=gradient, **(defaults | options))
        except CaptureError:
            # func closes over a computed tensor: autograd through the solver's operations reaches it
            return solve(field, inputs.y0, ts, gradient="backprop", **(defaults | options))


def _until_event(
    inputs: Inputs,
    settings: Settings,
    gradient: GradientName | Gradient,
    event_fn: Callable[..., Any],
    callbacks: Callbacks | None,
) -> tuple[Tensor, Any]:
    """The event time, a constant for differentiation, and the solution at both ends."""
    if settings.name == SCIPY:
        raise ValueError("method='scipy_solver' has no event mode: use 'dopri5' or another method of this library")
    if not is_adaptive(settings.name):
        if settings.options.get("step_size") is None:
            raise AssertionError(f"method={settings.name!r} with event_fn needs options={{'step_size': ...}}")
        settings.max_steps, settings.controller = _MAX_FIXED_STEPS, stepping_controller(settings.options)
    t, y0 = inputs.t, inputs.y0
    with torch.no_grad():
        value0 = event_fn(t[0], y0)
    if not isinstance(value0, Tensor):
        raise TypeError(f"event_fn must return a tensor; got {type(value0).__name__}")
    if bool((value0 == 0).any()):
        return t[0].detach().clone(), _stack_ends(y0, y0)
    start_time, direction = t[0].detach(), (t[1] - t[0]).detach().sign()
    ts = torch.stack([t[0], start_time + direction * _EVENT_HORIZON * max(1.0, float(start_time.abs()))]).double()
    event = Event(event_fn, constant_time=True)
    solution = solve_inputs(inputs, settings, gradient, ts, event=event, callbacks=callbacks)
    if solution.event is None:
        raise RuntimeError(f"no event: event_fn did not cross zero until t={float(ts[1].detach()):.3g}")
    return solution.event.t.to(t.dtype), _stack_ends(y0, solution.event.y)


def _single_output(y0: State) -> State:
    return y0[None] if isinstance(y0, Tensor) else tuple(x[None] for x in y0)


def _stack_ends(y0: State, y1: State) -> State:
    if isinstance(y0, Tensor):
        assert isinstance(y1, Tensor)
        return torch.stack([y0, y1])
    return tuple(torch.stack([a, b]) for a, b in zip(y0, y1, strict=True))


def _finite_time(name: str, value: Any) -> Tensor:
    out = as_dense_tensor(name, value)
    if out.numel() != 1 or out.is_complex() or not bool(out.isfinite()):
        raise ValueError(f"{name} must be one finite time; got {value!r}")
    return out


def odeint_dense(
    func: Callable[..., Any],
    y0: Any,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """The solution between t0 and t1 as a function of t: a number, or a tensor (m,) for (m, *y0.shape).

    For any method but scipy_solver, a tensor or tuple y0, and any order of t0 and t1. Differentiable.
    """
    start = t0 if isinstance(t0, Tensor) else _finite_time("t0", t0).to(torch.get_default_dtype())
    t = torch.stack(
        [_finite_time("t0", start).reshape(()), _finite_time("t1", _finite_time("t1", t1).to(start)).reshape(())]
    )
    inputs = Inputs.from_arguments(func, y0, t, rtol, atol)
    name = method_name(method)
    if name == SCIPY:
        raise ValueError("method='scipy_solver' has no dense output here: use 'dopri5' or another method")
    settings = Settings.from_options(name, options, inputs)
    return solve_inputs(
        inputs, settings, "discrete", t, dense=True, callbacks=find_callbacks(func, name, settings.time_dtype(inputs))
    )
