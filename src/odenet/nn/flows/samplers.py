"""Samplers of flow and diffusion models by name, and the times of their steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...api import checks
from ...api.option_types import SolveOptions
from ...control import Grid
from ...core.affine_paths import AffinePath
from ...core.validate import integer, number
from ...core.validate import times as real_times
from ...errors import unknown_name
from ...gradients.continuous_adjoint import ContinuousAdjoint
from ...methods import METHODS, DPMSolverPP, Method, UniPC
from ...methods.exponential_multistep import ExponentialMultistep
from .dynamics import refuse_options

Times = Sequence[float] | Tensor

SAMPLERS: dict[str, Callable[[AffinePath], Method]] = {
    "ddim": lambda path: DPMSolverPP(1, path),
    "dpmpp_2m": lambda path: DPMSolverPP(2, path),
    "dpmpp_3m": lambda path: DPMSolverPP(3, path),
    "unipc_2": lambda path: UniPC(2, path),
    "unipc_3": lambda path: UniPC(3, path),
}


def _refuse_continuous_adjoint(grid: Tensor, gradient: Any) -> None:
    """Refuse a grid that requires a gradient, with a gradient that has none to it."""
    if grid.requires_grad and gradient is not None and isinstance(checks.gradient(gradient), ContinuousAdjoint):
        raise ValueError(f"gradient={gradient!r} has no gradient to grid: take 'discrete', or give grid.detach()")


def flow_grid(steps: int, shift: float = 1.0) -> Tensor:
    """steps + 1 times from 0 to 1, (steps + 1,): evenly spaced, or with more steps near the noise where shift > 1.

    With s = 1 - t evenly spaced: 1 - t = shift s / (1 + (shift - 1) s). Esser et al. 2024, "Scaling rectified flow
    transformers", (23). Raises TypeError or ValueError for a wrong argument.
    """
    steps, shift = integer("steps", steps), number("shift", shift)
    if not 0.0 < shift < float("inf"):
        raise ValueError(f"shift must be positive and finite; got {shift!r}")
    s = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    return 1.0 - shift * s / (1.0 + (shift - 1.0) * s)


def sampler_method(path: AffinePath, method: Any) -> Method:
    """A sampler on a path, or a method of `odenet.solve`, by its name; or the method itself."""
    if isinstance(method, str) and method not in METHODS:
        if method not in SAMPLERS:
            raise unknown_name("method", method, (*METHODS, *SAMPLERS))
        return SAMPLERS[method](path)
    return checks.method(method)


def check_sampler(method: Method, path: AffinePath, trained: AffinePath) -> None:
    """Refuse a method by predictions of the data on a path where a learned velocity does not give them.

    Near t = 0 the velocity of such a path is almost zero for all data, and to divide by almost zero would multiply the
    error of the field by hundreds.
    """
    if isinstance(method, ExponentialMultistep) and max(path.start, trained.start) > 0.0:
        raise ValueError(
            f"method={method.name!r} predicts the data by the velocity, which says nothing of them near t = 0 on the "
            f"path {(trained if trained.start else path)!r}: take another method, such as 'midpoint' or 'tsit5'"
        )


def refuse_sampler(method: Any) -> None:
    """Refuse a sampler where a density is asked for."""
    if isinstance(method, ExponentialMultistep) or (isinstance(method, str) and method in SAMPLERS):
        raise ValueError(
            f"method={method!r} moves samples without their density: take a method of odenet.solve, such as 'tsit5'"
        )


def sampler_options(
    path: AffinePath,
    trained: AffinePath,
    method: Any,
    steps: int | None,
    grid: Times | None,
    options: SolveOptions,
) -> SolveOptions:
    """The options of a solve from noise to data, with the steps that were asked for. trained: the path of training."""
    chosen = sampler_method(path, method)
    check_sampler(chosen, path, trained)
    refuse_options("FlowMatching.sample", options)
    if steps is not None and grid is not None:
        raise ValueError("steps and grid exclude each other: a grid of n + 1 times has n steps")
    if steps is None and grid is None:
        if chosen.error_order is None and "step" not in options and "controller" not in options:
            raise ValueError(f"steps is required: method={method!r} does not choose its steps; give steps= or grid=")
        return {**options, "method": chosen}
    if "step" in options or "controller" in options:
        raise ValueError("steps and grid exclude step and controller: give one of them")
    if grid is None:
        times = flow_grid(integer("steps", steps)) * path.end
    else:
        times = real_times("grid", grid)
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(f"grid must hold at least two times, (T,); got shape {tuple(times.shape)}")
        ordered = times.detach()
        if not bool((ordered.diff() > 0).all()) or ordered[0] != 0 or not path.end <= ordered[-1] <= 1:
            raise ValueError(f"grid must rise from 0 to 1; got {ordered.tolist()}")
        _refuse_continuous_adjoint(times, options.get("gradient"))
    return {**options, "method": chosen, "controller": Grid(times[1:-1])}
