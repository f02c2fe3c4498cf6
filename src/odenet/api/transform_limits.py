"""Options that a solve refuses inside the transforms of `torch.func`."""

from __future__ import annotations

from typing import Any

from ..core.torch_func import transforming, vmapping
from ..methods import ImplicitRK, Method


def refuse(events: Any, callbacks: Any, progress: Any, method: Method, save: Any, save_steps: Any) -> None:
    """Raise ValueError for options that the active transform does not allow."""
    if vmapping():
        _refuse_in_vmap(events, callbacks, progress, method, save, save_steps)
    if transforming():
        _refuse_in_transform(method)


def _refuse_in_transform(method: Method) -> None:
    """Refuse methods that differentiate f by autograd, inside any transform."""
    if isinstance(method, ImplicitRK):
        raise ValueError(
            f"method={method.name!r} computes Jacobians of f by autograd, which torch.func.grad, jvp and jacrev do not "
            "allow inside: take torch.autograd.grad or torch.autograd.functional.jacobian of the solve, or an explicit "
            "method such as 'tsit5'"
        )


def _refuse_in_vmap(events: Any, callbacks: Any, progress: Any, method: Method, save: Any, save_steps: Any) -> None:
    """Refuse options and methods that read values of the state, inside `torch.func.vmap`."""
    for name, option in (
        ("event", events), ("callbacks", callbacks), ("progress", progress), ("save", save), ("save_steps", save_steps),
    ):  # fmt: skip
        if option:
            raise ValueError(f"{name} is not available inside torch.func.vmap (nor in jacfwd and jacrev, which use it)")
    if not method.traceable:
        raise ValueError(
            f"method={method.name!r} decides on values of the state, which torch.func.vmap does not allow: take an "
            "explicit Runge-Kutta method such as 'tsit5', or solve with per_sample=True instead of vmap"
        )
