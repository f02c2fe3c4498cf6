"""odeint_adjoint: the continuous adjoint method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from ...core.given import shown
from ...core.leaves import Leaves
from ...gradients import Adjoint
from . import callbacks as watchers
from .inputs import Inputs, tensor
from .inputs import chosen as checked_options
from .methods import SCIPY, Settings, known, largest_rms, state_norm
from .scipy import SciPy
from .solve import integrated


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """`odeint` with the gradient of the continuous adjoint method: memory that does not grow with the number of steps.

    adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: of the backward solve; by default those of the forward
        solve without its norm. A norm of adjoint_options gets (t, y, adj_y, *params), a tuple state unpacked; t and
        params are zeros, as they are no part of the state that is solved for.
    adjoint_params: parameters of func, where it is no Module; all that it uses gets a gradient, named here or not.
    """
    adjoint_options = None if adjoint_options is None else checked_options("adjoint_options", adjoint_options)
    options = None if options is None else checked_options("options", options)
    params = _parameters(func, adjoint_params, adjoint_options)
    if isinstance(adjoint_method, str) and adjoint_method != method and options is not None and adjoint_options is None:
        raise ValueError(
            "adjoint_method differs from method: options are not taken over to it, so give adjoint_options too "
            "({} for none)"
        )
    inputs = Inputs.of(func, y0, t, rtol, atol, event_fn)
    name, back = known(method), known(method if adjoint_method is None else adjoint_method, "adjoint_method")
    settings = Settings.of(name, options, inputs)
    chosen = dict(options or {}) if adjoint_options is None else dict(adjoint_options)
    norm = chosen.pop("norm", None) if adjoint_options is not None else None
    chosen.pop("norm", None)
    if back == SCIPY:
        back, chosen = "dopri5", {}
    backward = Settings.of(back, chosen, inputs, _adjoint_norm(norm, settings, inputs, params))
    how = {
        "rtol": _number("adjoint_rtol", adjoint_rtol),
        "atol": _number("atol", atol)
        if adjoint_atol is None and isinstance(atol, (int, float))
        else _number("adjoint_atol", adjoint_atol),
        "method": backward.method,
        "norm": backward.controller.norm or "seminorm",
        "controller": backward.controller,
        "max_steps": backward.max_steps,
        "callbacks": watchers.of(
            func, back, backward.time_dtype(inputs), "_adjoint", lambda state: _shown(state, params)
        ),
    }
    gradient = SciPy(settings.options, **how) if name == SCIPY else Adjoint(**how)
    found = integrated(inputs, settings, gradient, event_fn)
    kept = chosen | {"norm": backward.controller.norm}
    return _marked(found, kept) if event_fn is None else (found[0], _marked(found[1], kept))


def find_parameters(module: nn.Module) -> list[nn.Parameter | Tensor]:
    """The parameters of a module; those of a replica made by DataParallel are plain tensors in it."""
    if not isinstance(module, nn.Module):
        raise AssertionError(f"func must be a torch.nn.Module; got {type(module).__name__}")
    if not getattr(module, "_is_replica", False):
        return list(module.parameters())
    return [x for part in module.modules() for x in vars(part).values() if isinstance(x, Tensor) and x.requires_grad]


def _parameters(func: Any, given: Iterable[Tensor] | None, options: dict[str, Any] | None) -> tuple[Tensor, ...]:
    if given is None and not isinstance(func, nn.Module):
        raise ValueError(
            "func is no torch.nn.Module, so adjoint_params is required: the parameters that it uses, or () for none"
        )
    try:
        params = tuple(find_parameters(func) if given is None else given)
    except TypeError:
        raise TypeError(f"adjoint_params must be parameters, in a tuple or list; got {shown(given)}") from None
    for x in params:
        if not isinstance(x, Tensor):
            raise TypeError(f"adjoint_params must be tensors; got {shown(x)}")
    wanted = tuple(x for x in params if x.requires_grad)
    if len(wanted) < len(params) and callable((options or {}).get("norm")):
        warnings.warn(
            "a parameter asks for no gradient: the norm of adjoint_options does not get it", UserWarning, stacklevel=3
        )
    return wanted


def _number(name: str, given: Any) -> float | None:
    """One tolerance for the whole backward state; the strictest where there are several."""
    if given is None:
        return None
    if isinstance(given, Tensor) and given.requires_grad:
        raise AssertionError(f"{name} must not require a gradient: use {name}.detach()")
    parts = given if isinstance(given, (tuple, list)) else [given]
    tensors = [tensor(name, x).detach() for x in parts]
    if not tensors or any(x.numel() == 0 or x.is_complex() for x in tensors):
        raise ValueError(f"{name} must be a real number, or hold some; got {given!r}")
    least = min(float(x.double().min()) for x in tensors)
    if not 0.0 <= least < float("inf"):
        raise ValueError(f"{name} must be zero or positive, and finite; got {given!r}")
    return least


def _adjoint_norm(norm: Any, settings: Settings, inputs: Inputs, params: Leaves) -> Callable[[Leaves], Tensor]:
    """Of the leaves of (y, a): the caller's, else the larger of both norms."""
    if callable(norm):
        custom = norm

        def called(leaves: Leaves) -> Tensor:
            zeros = [torch.zeros_like(x) for x in params]
            return torch.as_tensor(custom((leaves[0].abs().new_zeros(()), *leaves, *zeros))).abs()

        return called
    if norm is not None and norm != "seminorm":
        raise TypeError(f"norm of adjoint_options must be 'seminorm' or callable; got {norm!r}")
    of_state = state_norm(settings.options.get("norm"), inputs) or largest_rms

    def larger(leaves: Leaves) -> Tensor:
        n = len(leaves) // 2
        return torch.maximum(of_state(leaves[:n]).double(), of_state(leaves[n:]).double())

    return larger


def _shown(state: Leaves, params: Leaves) -> tuple[Tensor, ...]:
    """(t, y, adj_y, *params) as callbacks of the backward solve get it, a tuple state as one vector."""
    n = len(state) // 2
    y, a = ((half[0] if n == 1 else torch.cat([x.reshape(-1) for x in half])) for half in (state[:n], state[n:]))
    return (y.abs().new_zeros(()), y, a, *(torch.zeros_like(x) for x in params))


def _marked(solution: Any, options: dict[str, Any]) -> Any:
    """The solution, with its options where clients read them, `ys.grad_fn.adjoint_options`; no second derivatives."""
    for y in (solution,) if isinstance(solution, Tensor) else solution:
        if isinstance(y.grad_fn, BackwardCFunction):  # not where func made it backpropagation
            cast(Any, y.grad_fn).adjoint_options = options
            y.register_hook(_refuse_second)
    return solution


def _refuse_second(bar: Tensor) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a second derivative through odeint_adjoint is refused, as in torchdiffeq: use odeint, or "
            "odenet.solve(gradient='adjoint'), which give it"
        )
