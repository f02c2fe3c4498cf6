"""Checks of f, args and the options of `solve`. Each error names the argument, shows its value and says the cure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..control import PID, ConstantStep, Controller, Predictive
from ..core.distributed_guard import refuse_wrapped
from ..core.norms import Tolerance
from ..core.validate import describe, integer, is_real, number
from ..core.validate import function as callable_as
from ..engine.callbacks import Callbacks
from ..errors import unknown_name
from ..events.event import Event
from ..gradients import GRADIENTS, Gradient
from ..methods import METHODS, Adams, DPMSolverPP, ExplicitRK, ImplicitRK, Method, UniPC

# names in SciPy, torchdiffeq and diffrax for which the most similar spelling would be another method
_FOREIGN_METHODS = {
    **{"rk45": "dopri5", "rk23": "bosh3", "dop853": "dopri8", "adaptive_heun": "heun", "heun2": "heun"},
    **{"radau": "radauIIA5", "bdf": "esdirk54", "lsoda": "esdirk54", "kvaerno4": "kvaerno5"},
    **{"stiff": "esdirk54"},
}
_FOREIGN_GRADIENTS = {"autograd": "backprop", "backsolve": "adjoint", "backsolveadjoint": "adjoint"}
# keywords of other libraries
_FOREIGN_OPTIONS = {
    **dict.fromkeys(("t_eval", "t_span", "saveat", "tspan", "times", "t"), "ts"),
    **dict.fromkeys(("dt", "dt0", "step_size"), "step"),
    **dict.fromkeys(("options", "stepsize_controller"), "controller"),
    **{name: f"controller=odenet.PID({name}=...)" for name in ("min_step", "max_step", "first_step")},
    **dict.fromkeys(("sensitivity", "adjoint", "sensealg"), "gradient"),
    **dict.fromkeys(("events", "event_fn"), "event"),
    **{"solver": "method", "throw": "on_failure", "dense_output": "dense", "max_num_steps": "max_steps"},
}


def function(f: Any) -> None:
    """Refuse an f that cannot be called, or that communicates with other processes in each evaluation."""
    callable_as("f", f, "f(t, y, *args)")
    refuse_wrapped(f)


def method(method: Any) -> Method:
    """The method of this name, or the given instance."""
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a Method instance; got {describe(method)}")
    if method not in METHODS:
        raise unknown_name("method", method, METHODS, _FOREIGN_METHODS.get(method.lower()))
    return METHODS[method]


def gradient(gradient: Any, argument: str = "gradient") -> Gradient:
    """The gradient of this name with default settings, or the given instance."""
    if isinstance(gradient, Gradient):
        return gradient
    if isinstance(gradient, type) and issubclass(gradient, Gradient):
        raise TypeError(f"{argument} must be a name or an instance; got the class: write {gradient.__name__}()")
    if not isinstance(gradient, str):
        raise TypeError(f"{argument} must be a name or a Gradient instance; got {describe(gradient)}")
    if gradient not in GRADIENTS:
        raise unknown_name(argument, gradient, GRADIENTS, _FOREIGN_GRADIENTS.get(gradient.lower()))
    return GRADIENTS[gradient]()


def controller(controller: Any, step: Any, method: Method) -> Controller:
    """The given controller, that of a constant `step`, or the method's default."""
    if step is not None:
        if controller is not None:
            raise ValueError("step and controller exclude each other: give controller=ConstantStep(step, ...) alone")
        if not is_real(step) and not (isinstance(step, Tensor) and step.numel() == 1 and not step.is_complex()):
            raise TypeError(f"step must be one positive number; got {describe(step)}")
        return ConstantStep(number("step", step.detach() if isinstance(step, Tensor) else step))
    if controller is None:
        controller = Predictive() if method.predictive_control else PID()
    if not isinstance(controller, Controller):
        raise TypeError(
            f"controller must be a Controller instance such as PID() or ConstantStep(0.1); got {controller!r}"
        )
    if method.lookahead and (controller.jump_ts is not None or controller.perturb):
        raise ValueError(
            f"method={method.name!r} evaluates f up to {method.lookahead:.2g} of a step past its end: with jump_ts (or "
            "perturb) take 'esdirk54', which does not evaluate f beyond a jump"
        )
    if controller.adaptive and method.error_order is None:
        alternative = "an adaptive method such as 'tsit5'"
        if isinstance(method, ImplicitRK):
            alternative = "a stiff method that chooses its steps: 'esdirk54', 'radauIIA5', 'kvaerno3' or 'trbdf2'"
        raise ValueError(
            f"step is required: method={method.name!r} has no error estimate to choose steps by. Give step=..., or "
            f"take {alternative}."
        )
    return controller


def terms(f: Any, method: Method) -> None:
    """Refuse an f without the parts that the method evaluates."""
    if not method.parts:
        return
    missing = [name for name in method.parts if name not in getattr(f, "parts", ())]
    if missing:
        raise TypeError(
            f"method={method.name!r} needs f in parts ({', '.join(method.parts)}): give odenet.Partitioned(velocity, "
            f"force), or another `Terms` that has {', '.join(missing)}; got {describe(f)}"
        )


def stop_times(controller: Controller, ts: Tensor) -> None:
    """Refuse step_ts or jump_ts with rows for other samples than those of ts."""
    for name in ("step_ts", "jump_ts"):
        times = getattr(controller, name)
        shape = () if times is None or callable(times) else torch.as_tensor(times).shape
        if len(shape) == 2 and (ts.ndim == 1 or shape[0] != len(ts)):
            samples = f"{len(ts)} samples" if ts.ndim == 2 else "one set of steps (per_sample=False)"
            raise ValueError(f"{name} of shape {tuple(shape)} has one row a sample, but this solve has {samples}")


def constant_stops(controller: Controller, gradient: str) -> None:
    """Refuse stop times that require a gradient: a continuous adjoint would silently leave it out."""
    for name in ("step_ts", "jump_ts"):
        times = getattr(controller, name)
        if isinstance(times, Tensor) and times.requires_grad:
            raise ValueError(
                f"gradient={gradient!r} has no gradient to {name} of the controller: take gradient='discrete', or give "
                f"{name}.detach()"
            )


def positive_tolerance(rtol: Tolerance, atol: Tolerance, controller: Controller) -> None:
    """Refuse adaptive steps with a tolerance of zero."""
    if controller.adaptive and not any(isinstance(x, Tensor) or x > 0 for x in (*rtol, *atol)):
        raise ValueError("rtol and atol are both 0: no step has an error that small; give one of them a positive value")


def max_steps(max_steps: Any) -> int:
    return integer("max_steps", max_steps, maximum=2**62)


def arguments(args: Any) -> tuple[Any, ...]:
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple of f's further arguments; got {type(args).__name__}: write args=(x,)")
    return tuple(args)


def events(event: Any) -> list[Event]:
    """A list of all events."""
    events = [] if event is None else list(event) if isinstance(event, (list, tuple)) else [event]
    for x in events:
        if not isinstance(x, Event):
            raise TypeError(f"event must be an Event or a list of them; got {x!r}: write event=Event(fn)")
    return events


def observers(callbacks: Any, progress: Any) -> None:
    if callbacks is not None and not isinstance(callbacks, Callbacks):
        raise TypeError(f"callbacks must be a Callbacks instance; got {type(callbacks).__name__}")
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be True, False or a callable (fraction, stats); got {progress!r}")


def tolerance_option(name: str, tolerance: Any) -> None:
    """The checks of a tolerance that need no y0."""
    if tolerance is None or isinstance(tolerance, (bool, str)):
        raise TypeError(f"{name} must be a number, or have y0's structure; got {tolerance!r}")
    if is_real(tolerance) and not 0 <= number(name, tolerance) < float("inf"):
        raise ValueError(f"{name} must be zero or positive, and finite; got {tolerance!r}")


def known_options(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse unknown options, with the name that odenet has for an option of other libraries."""
    for name in sorted(names):
        if name == "args":
            raise TypeError("option='args' is unknown: args belong to each call, as in solver(y0, ts, args=(x,))")
        if name not in known:
            meant = _FOREIGN_OPTIONS.get(name)
            raise TypeError(str(unknown_name("option", name, known, meant)))


def jacobian(jacobian: Any, y0: Sequence[Tensor], method: Method) -> Callable[..., Any] | None:
    if jacobian is None:
        return None
    if isinstance(method, (ExplicitRK, Adams, DPMSolverPP, UniPC)):
        raise ValueError(
            f"jacobian is for implicit methods, and method={method.name!r} uses none: leave it out, or take 'esdirk54'"
        )
    if any(y.is_complex() for y in y0):
        raise ValueError("jacobian is for real states: leave it out for a complex y0, and autograd computes it")
    return callable_as("jacobian", jacobian, "jacobian(t, y, *args)")


def function_or_none(name: str, function: Any) -> Callable[..., Any] | None:
    return None if function is None else callable_as(name, function, f"{name}(t, y, *args)")
