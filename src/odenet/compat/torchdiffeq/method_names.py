"""torchdiffeq's method names and options, translated to a method, a controller and a step limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...control import PID, ConstantStep, Controller, Grid
from ...core.leaves import Leaves, real_dtype
from ...core.torch_func import vmapping
from ...errors import unknown_name, warn
from ...methods import METHODS, Adams, ImplicitRK, Method
from .adjoint_norms import largest_rms
from .fixed_solvers import FixedGridODESolver, grid_from_step_size
from .inputs import Inputs, options_dict
from .solvers import ADAPTIVE, BUILT_IN, IMPLICIT, SCIPY
from .step_function import StepFunctionMethod

# torchdiffeq's name -> this library's name
_ADAPTIVE = {name: name for name in ADAPTIVE} | {"adaptive_heun": "heun"}
_EXPLICIT = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun", "heun3": "heun3", "rk4": "rk4_38"}

SOLVERS: dict[str, Any] = dict(BUILT_IN)
"""Solver classes by method name. Other programs add classes, and call the existing ones."""

_ADAPTIVE_OPTIONS = {
    *("norm", "first_step", "min_step", "max_step", "step_t", "jump_t", "safety", "ifactor", "dfactor"),
    *("max_num_steps", "dtype"),
}
_FIXED_OPTIONS = {"norm", "step_size", "grid_constructor", "interp", "perturb"}
_SCIPY_OPTIONS = {"norm", "solver", "min_step", "max_step", "grid_points", "eps"}
_UNLIMITED = 2**31 - 1


def method_name(method: object, argument: str = "method") -> str:
    """The method's name, by default 'dopri5'; raises for an unknown one."""
    if method is None:
        return "dopri5"
    if not isinstance(method, str) or method not in SOLVERS:
        raise unknown_name(argument, str(method), SOLVERS)
    return method


def is_adaptive(name: str) -> bool:
    return name in _ADAPTIVE


@dataclass
class Settings:
    """The meaning of a method's name and options. max_steps: of the whole solve.

    solver_class: a class of another program, which solves on its own.
    """

    name: str
    options: dict[str, Any]
    method: Method
    controller: Controller
    max_steps: int
    solver_class: type | None = None

    def time_dtype(self, inputs: Inputs) -> torch.dtype:
        """The dtype of the times that callbacks get."""
        real = real_dtype(inputs.first_tensor.dtype)
        return (
            torch.promote_types(self.options.get("dtype", torch.float64), real)
            if is_adaptive(self.name)
            else inputs.t.dtype
        )

    @staticmethod
    def from_options(name: str, options: dict[str, Any] | None, inputs: Inputs, norm: Any = None) -> Settings:
        """norm: of the error, on leaves; default: that of the options, on the state in the user's structure."""
        options = options_dict("options", options)
        if SOLVERS[name] is not BUILT_IN.get(name):
            return _custom_solver(name, options, inputs)
        if name in _ADAPTIVE:
            _warn_unused(name, options, _ADAPTIVE_OPTIONS)
            max_steps = int(options.get("max_num_steps", _UNLIMITED))
            control = _pid_controller(options, inputs, norm or state_norm(options.get("norm"), inputs))
            return Settings(name, options, METHODS[_ADAPTIVE[name]], control, max_steps * max(len(inputs.t) - 1, 1))
        if name == SCIPY:
            _warn_unused(name, options, _SCIPY_OPTIONS)
            return Settings(name, options, METHODS["dopri5"], PID(), _UNLIMITED)
        method = _fixed_method(name, options, inputs)
        interp = options.get("interp", "linear")
        if interp not in ("linear", "cubic"):
            raise unknown_name("interp", str(interp), ("linear", "cubic"))
        return Settings(name, options, method.with_dense_output(interp), _fixed_controller(options, inputs), _UNLIMITED)


def _fixed_method(name: str, options: dict[str, Any], inputs: Inputs) -> Method:
    if name in _EXPLICIT:
        _warn_unused(name, options, _FIXED_OPTIONS)
        return METHODS[_EXPLICIT[name]]
    if name in IMPLICIT:
        _warn_unused(name, options, _FIXED_OPTIONS | {"max_iters"})
        method = METHODS[name]
        assert isinstance(method, ImplicitRK)
        return ImplicitRK(method.tableau, int(options.get("max_iters", 100)))
    _warn_unused(name, options, _FIXED_OPTIONS | {"max_iters", "max_order", "implicit"})
    order = int(options.get("max_order", 12))
    if order > 12:
        raise AssertionError(f"max_order must be at most 12; got {order}")
    if order < 4:
        warn(f"max_order={order} is below 4: the method is rk4 then")
        return METHODS["rk4_38"]
    implicit = bool(options.get("implicit", True)) and name != "explicit_adams"
    rtol, atol = (
        float(torch.as_tensor(x).min()) if isinstance(x, (int, float, Tensor)) else 0.0
        for x in (inputs.rtol, inputs.atol)
    )
    tolerances = {} if rtol + atol <= 0.0 else {"rtol": rtol, "atol": atol}
    return Adams(order, implicit, int(options.get("max_iters", 4)), **tolerances, start="short")


def _warn_unused(name: str, options: dict[str, Any], known: set[str]) -> None:
    unused = {key: value for key, value in options.items() if key not in known}
    if unused:
        warn(f"{name}: unexpected options {unused} are not used; it has {', '.join(sorted(known))}")


def state_norm(norm: Any, inputs: Inputs) -> Callable[[Leaves], Tensor] | None:
    """The norm of a state's leaves; default: RMS, and for a tuple the largest RMS of its tensors."""
    if norm is not None and not callable(norm):
        raise TypeError(f"norm must be callable; got {norm!r}")
    if isinstance(inputs.y0, Tensor):
        return None if norm is None else lambda leaves: torch.as_tensor(norm(leaves[0])).abs()
    if norm is not None:
        return lambda leaves: torch.as_tensor(norm(leaves)).abs()
    return None if len(inputs.y0) == 1 else largest_rms


def _pid_controller(options: dict[str, Any], inputs: Inputs, norm: Any) -> PID:
    step_t, jump_t = (_times(key, options.get(key), inputs.t) for key in ("step_t", "jump_t"))
    all_times = [x for x in (step_t, jump_t) if x is not None]
    if all_times and len(torch.cat(all_times).unique()) < sum(len(x) for x in all_times):
        raise ValueError("step_t and jump_t must not repeat a time, within one of them or across both")
    first = options.get("first_step")
    return PID(
        safety=float(options.get("safety", 0.9)),
        factor_min=float(options.get("dfactor", 0.2)),
        factor_max=float(options.get("ifactor", 10.0)),
        min_step=float(options.get("min_step", 0.0)),
        max_step=float(options.get("max_step", float("inf"))),
        first_step=None if first is None else float(first),
        step_ts=step_t,
        jump_ts=jump_t,
        norm=norm,
    )


def _times(name: str, value: Any, t: Tensor) -> Tensor | None:
    """The times at or after t[0], in the direction of t."""
    if value is None:
        return None
    times = torch.as_tensor(value, dtype=torch.float64, device=t.device).reshape(-1)
    if times.requires_grad:
        raise AssertionError(f"{name} must not require a gradient: use {name}.detach()")
    start = t[0].detach().double()
    backwards = len(t) > 1 and bool(t[1] < t[0])
    return times[times <= start] if backwards else times[times >= start]


def _fixed_controller(options: dict[str, Any], inputs: Inputs) -> Controller:
    size, constructor = options.get("step_size"), options.get("grid_constructor")
    perturb = bool(options.get("perturb", False))
    if size is not None and constructor is not None:
        raise ValueError("step_size and grid_constructor exclude each other: give only one")
    if size is not None:
        stepping = stepping_controller(options)
        if torch.compiler.is_compiling() or vmapping():  # the number of steps is not known
            return stepping
        # torchdiffeq's times, t[0] + n * step_size, are rounded once: func may jump at one of them
        constructor = grid_from_step_size(size)
    if constructor is not None:
        return Grid(grid_from_constructor(constructor, inputs), perturb=perturb, finite=False)
    return Grid(perturb=perturb, finite=False)


def stepping_controller(options: dict[str, Any]) -> Controller:
    """Steps that each end `step_size` behind their start, where the end of the solve is not known."""
    return ConstantStep(
        float(options["step_size"]), every_output=False, perturb=bool(options.get("perturb", False)), finite=False
    )


def grid_from_constructor(constructor: Callable[..., Tensor], inputs: Inputs) -> Callable[[Tensor], Tensor]:
    """A grid function for `Grid` that calls the user's grid_constructor, also for the times of a backward solve."""

    def grid(ts: Tensor) -> Tensor:
        t = ts.to(inputs.t.dtype)
        times = constructor(inputs.func, inputs.y0, t)
        if not bool(times[0] == t[0]) or not bool(times[-1] == t[-1]):
            raise AssertionError(
                f"grid_constructor must give a grid from t[0]={float(t[0])} to t[-1]={float(t[-1])}; got one from "
                f"{float(times[0])} to {float(times[-1])}"
            )
        return times[1:-1]

    return grid


def _custom_solver(name: str, options: dict[str, Any], inputs: Inputs) -> Settings:
    """Settings for a class of another program: its `_step_func` in this library's loop, or its own `integrate`."""
    solver_class = SOLVERS[name]
    own_loop = (
        callable(getattr(solver_class, "integrate", None))
        and solver_class.integrate is not FixedGridODESolver.integrate
    )
    if own_loop:
        return Settings(name, options, METHODS["dopri5"], PID(), _UNLIMITED, solver_class)
    method = StepFunctionMethod.from_class(name, solver_class, options, inputs)
    control = Grid(grid_from_constructor(method.solver.grid_constructor, inputs), finite=False)
    return Settings(
        name, options, method.with_dense_output(getattr(method.solver, "interp", "linear")), control, _UNLIMITED
    )
