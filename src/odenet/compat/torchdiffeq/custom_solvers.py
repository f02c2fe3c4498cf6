"""Solver classes registered by other programs, called as torchdiffeq calls them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .adjoint_norms import flat_to_shape, vector_norm
from .inputs import Inputs, State
from .solver_functions import (
    PerturbFunc,
    ReverseFunc,
    TupleFunc,
    TupleInputOnlyFunc,
    combine_event_functions,
    null_callback,
)

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


def check_inputs(
    func: Any, y0: Any, t: Any, rtol: Any, atol: Any, method: Any, options: Any, event_fn: Any, solvers: Any
) -> tuple[Any, ...]:
    """torchdiffeq's ten values: a tuple as one vector, time running forwards, func with its callbacks.

    solvers: the caller's table of methods, which must have `method`.
    """
    method = "dopri5" if method is None else method
    if method not in solvers:
        raise ValueError(f"method must be one of {', '.join(solvers)}; got {method!r}")
    inputs = Inputs.from_arguments(func, y0, t, rtol, atol, event_fn)
    shapes = None if isinstance(inputs.y0, Tensor) else [x.shape for x in inputs.y0]
    if event_fn is not None:
        event_fn = combine_event_functions(event_fn, inputs.t[0], inputs.y0)
    base_func, state, rtol, atol = func, inputs.y0, inputs.rtol, inputs.atol
    if shapes is not None:
        base_func, event_fn = TupleFunc(func, shapes), event_fn and TupleInputOnlyFunc(event_fn, shapes)
        state = torch.cat([x.reshape(-1) for x in inputs.y0])
        rtol, atol = (_vector(x, shapes) for x in (rtol, atol))
    options = dict(options or {})
    options["norm"] = vector_norm(options.get("norm"), shapes)
    times, backwards = inputs.t, len(inputs.t) > 1 and bool(inputs.t[0] > inputs.t[1])
    if backwards:
        base_func, event_fn, times = ReverseFunc(base_func, -1.0), event_fn and ReverseFunc(event_fn), -times
        constructor = options.get("grid_constructor")
        if constructor is not None:
            options["grid_constructor"] = lambda func, y0, t: -constructor(func, y0, -t)
        for name in ("step_t", "jump_t"):
            if options.get(name) is not None:
                options[name] = -torch.as_tensor(options[name], dtype=torch.float64)
    wrapped = PerturbFunc(base_func)
    for name in CALLBACKS:
        setattr(wrapped, name, _callback_on_state(getattr(func, name, null_callback), shapes, backwards))
        if hasattr(func, name + "_adjoint"):
            setattr(wrapped, name + "_adjoint", getattr(func, name + "_adjoint"))
    return shapes, wrapped, state, times, rtol, atol, method, options, event_fn, backwards


def _vector(tolerance: Any, shapes: list[torch.Size]) -> Any:
    """Tolerances of the tensors of a tuple, as a vector with one for each number."""
    if not isinstance(tolerance, tuple):
        return tolerance
    return torch.cat([torch.as_tensor(x).expand(s).reshape(-1) for x, s in zip(tolerance, shapes, strict=True)])


def _callback_on_state(call: Any, shapes: Any, backwards: bool) -> Any:
    """A callback that gets state and times as func does."""
    if call is null_callback:
        return call

    def converted(t0: Tensor, y0: Tensor, dt: Tensor) -> Any:
        return call(-t0 if backwards else t0, y0 if shapes is None else flat_to_shape(y0, (), shapes), dt)

    return converted


def integrate_with(
    solver_class: Any, name: str, inputs: Inputs, options: dict[str, Any], event_fn: Any
) -> State | tuple[Tensor, State]:
    """The return value of odeint by a solver class of another program."""
    shapes, func, y0, t, rtol, atol, _, options, event_fn, backwards = check_inputs(
        inputs.func, inputs.y0, inputs.t, inputs.rtol, inputs.atol, name, options, event_fn, (name,)
    )
    solver = solver_class(func=func, y0=y0, rtol=rtol, atol=atol, **options)
    if event_fn is None:
        solution = solver.integrate(t)
        return solution if shapes is None else flat_to_shape(solution, (len(solution),), shapes)
    time, solution = solver.integrate_until_event(t[0], event_fn)
    time = time.to(inputs.t)
    return -time if backwards else time, solution if shapes is None else flat_to_shape(solution, (2,), shapes)
