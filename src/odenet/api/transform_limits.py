"""What a solve refuses inside the transforms of `torch.func`."""

from __future__ import annotations

from typing import Any

from ..core.torch_func import transforming, vmapping
from ..methods import ImplicitRK, Method


def refuse(events: Any, callbacks: Any, progress: Any, solver: Method, save: Any, save_steps: Any) -> None:
    """Raise for options that the transform under way, if there is one, does not allow."""
    if vmapping():
        vmapped(events, callbacks, progress, solver, save, save_steps)
    if transforming():
        transformed(solver)


def transformed(solver: Method) -> None:
    """Refuse steps that take derivatives of f by autograd itself, inside a transform of `torch.func`."""
    if isinstance(solver, ImplicitRK):
        raise ValueError(
            f"method={solver.name!r} finds Jacobians of f by autograd, which torch.func.grad, jvp and jacrev do not "
            "allow inside: take torch.autograd.grad or torch.autograd.functional.jacobian of the solve, or an explicit "
            "method such as 'tsit5'"
        )


def vmapped(events: Any, callbacks: Any, progress: Any, solver: Method, save: Any, save_steps: Any) -> None:
    """Refuse what looks at the values of a solve from outside, inside `torch.func.vmap`."""
    for name, given in (
        ("event", events), ("callbacks", callbacks), ("progress", progress), ("save", save), ("save_steps", save_steps),
    ):  # fmt: skip
        if given:
            raise ValueError(f"{name} is not available inside torch.func.vmap (nor in jacfwd and jacrev, which use it)")
    if not solver.traceable:
        raise ValueError(
            f"method={solver.name!r} decides on values of the state, which torch.func.vmap does not allow: take an "
            "explicit Runge-Kutta method such as 'tsit5', or solve with per_sample=True instead of vmap"
        )
