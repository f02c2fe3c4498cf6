"""odeint_adjoint: the continuous adjoint method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.leaves import Leaves
from ...core.validate import describe
from ...gradients import Adjoint
from .adjoint_norms import handle_adjoint_norm_, to_vector, vector_norm
from .inputs import Inputs, State, as_dense_tensor
from .inputs import options_dict as checked_options
from .method_names import SCIPY, Settings, method_name
from .plain_call import odeint_with_gradient
from .scipy_solver import SciPy
from .solver_callbacks import find_callbacks


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
    inputs = Inputs.checked(func, y0, t, rtol, atol, event_fn)
    inputs.y0, asked = _with_grad_needed(inputs, params)
    name, back = (
        method_name(method),
        method_name(method if adjoint_method is None else adjoint_method, "adjoint_method"),
    )
    settings = Settings.from_options(name, options, inputs)
    kept = {k: v for k, v in (options or {}).items() if k != "norm"} if adjoint_options is None else adjoint_options
    norm = _adjoint_norm(kept, settings, inputs, params)
    chosen = {k: v for k, v in kept.items() if k != "norm"}
    if back == SCIPY or settings.solver_class is not None:
        back, chosen = "dopri5", {}
    backward = Settings.from_options(back, chosen, inputs, norm)
    how = {
        "rtol": _single_tolerance("adjoint_rtol", adjoint_rtol),
        "atol": _single_tolerance("atol", atol)
        if adjoint_atol is None and isinstance(atol, (int, float))
        else _single_tolerance("adjoint_atol", adjoint_atol),
        "method": backward.method,
        "norm": norm,
        "controller": backward.controller,
        "max_steps": backward.max_steps,
        "callbacks": find_callbacks(
            func, back, backward.time_dtype(inputs), "_adjoint", lambda state: _callback_state(state, params)
        ),
    }
    gradient = SciPy(settings.options, **how) if name == SCIPY else Adjoint(**how)
    gradient.double_backward = False
    found = odeint_with_gradient(inputs, settings, gradient, event_fn)
    if event_fn is None:
        return _with_options_node(found, kept, asked)
    solution = _with_options_node(found[1], kept, asked)
    return _constant_time(found[0], solution), solution


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
        raise TypeError(f"adjoint_params must be parameters, in a tuple or list; got {describe(given)}") from None
    for x in params:
        if not isinstance(x, Tensor):
            raise TypeError(f"adjoint_params must be tensors; got {describe(x)}")
    wanted = tuple(x for x in params if x.requires_grad)
    if len(wanted) < len(params) and callable((options or {}).get("norm")):
        warnings.warn(
            "a parameter asks for no gradient: the norm of adjoint_options does not get it", UserWarning, stacklevel=3
        )
    return wanted


def _single_tolerance(name: str, given: Any) -> float | None:
    """One tolerance for the whole backward state; the strictest where there are several."""
    if given is None:
        return None
    if isinstance(given, Tensor) and given.requires_grad:
        raise AssertionError(f"{name} must not require a gradient: use {name}.detach()")
    parts = given if isinstance(given, (tuple, list)) else [given]
    tensors = [as_dense_tensor(name, x).detach() for x in parts]
    if not tensors or any(x.numel() == 0 or x.is_complex() for x in tensors):
        raise ValueError(f"{name} must be a real number, or hold some; got {given!r}")
    least = min(float(x.double().min()) for x in tensors)
    if not 0.0 <= least < float("inf"):
        raise ValueError(f"{name} must be zero or positive, and finite; got {given!r}")
    return least


def _with_grad_needed(inputs: Inputs, params: tuple[Tensor, ...]) -> tuple[State, Leaves]:
    """y0, which asks for a gradient where anything does, and all that asks.

    So the backward solve takes place whatever func uses, and its norm and its callbacks are called, as in torchdiffeq.
    """
    state = (inputs.y0,) if isinstance(inputs.y0, Tensor) else inputs.y0
    asked = tuple(x for x in (*state, inputs.t, *params) if x.requires_grad)
    if not asked or not torch.is_grad_enabled() or any(x.requires_grad for x in state):
        return inputs.y0, asked
    leaves = tuple(x.detach().requires_grad_() for x in state)
    return leaves[0] if isinstance(inputs.y0, Tensor) else leaves, asked


def _adjoint_norm(kept: dict[str, Any], settings: Settings, inputs: Inputs, params: Leaves) -> Callable[..., Tensor]:
    """Of the leaves of (y, a): what `kept` holds as its norm when it is called, which clients may change.

    It is put there. By default, and with "seminorm", it is the larger of both norms, and of that of the parameters,
    which are no part of the state that is solved for here.
    """
    given = kept.get("norm")
    if given is not None and not callable(given) and given != "seminorm":
        raise TypeError(f"norm of adjoint_options must be 'seminorm' or callable; got {given!r}")
    shapes = None if isinstance(inputs.y0, Tensor) else [x.shape for x in inputs.y0]
    handle_adjoint_norm_(kept, shapes, vector_norm(settings.options.get("norm"), shapes))
    standard = None if callable(given) else kept["norm"]

    def norm(leaves: Leaves) -> Tensor:
        called, n = kept["norm"], len(leaves) // 2
        y, a = (half[0] if shapes is None else _vector(half) for half in (leaves[:n], leaves[n:]))
        others = () if called is standard else (torch.zeros_like(x) for x in params)
        return torch.as_tensor(called((y.abs().new_zeros(()), y, a, *others))).abs()

    return norm


def _vector(leaves: Leaves) -> Tensor:
    return torch.cat([x.reshape(-1) for x in leaves])


def _callback_state(state: Leaves, params: Leaves) -> tuple[Tensor, ...]:
    """(t, y, adj_y, *params) as callbacks of the backward solve get it, a tuple state as one vector."""
    n = len(state) // 2
    y, a = (to_vector(half) for half in (state[:n], state[n:]))
    return (y.abs().new_zeros(()), y, a, *(torch.zeros_like(x) for x in params))


class OdeintAdjointMethod(torch.autograd.Function):
    """The solution again, with the options of its backward solve where clients read them: ys.grad_fn.adjoint_options.

    The tensors after the first `count` are all that ask for a gradient. They get zeros, beside what comes to them from
    the solve: who averages gradients over processes relies on one also where func does not use them.
    """

    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.adjoint_options = options
        ctx.looks = [(x.shape, x.dtype, x.device) for x in tensors[count:]]
        ctx.set_materialize_grads(False)
        return tuple(x.detach() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:
        return None, None, *bars, *(torch.zeros(s, dtype=d, device=at) for s, d, at in ctx.looks)


def _with_options_node(solution: State, options: dict[str, Any], asked: Leaves) -> State:
    """The solution as `OdeintAdjointMethod` gives it, if anything asks for a gradient."""
    ys = (solution,) if isinstance(solution, Tensor) else solution
    if not any(y.requires_grad for y in ys):
        return solution
    ys = cast(Leaves, OdeintAdjointMethod.apply(options, len(ys), *ys, *asked))
    # clients look for the options two nodes behind a component of a tuple: it is a part, reshaped, of one vector there
    return ys[0] if isinstance(solution, Tensor) else tuple(y[:].view(y.shape) for y in ys)


class _ConstantTime(torch.autograd.Function):
    """A time whose derivative by everything that the solution depends on is zero."""

    @staticmethod
    def forward(ctx: Any, time: Tensor, *ys: Tensor) -> Tensor:
        ctx.looks = [(y.shape, y.dtype, y.device) for y in ys]
        return time.detach()

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *(torch.zeros(s, dtype=d, device=at) for s, d, at in ctx.looks)


def _constant_time(time: Tensor, solution: State) -> Tensor:
    """The time of an event: a constant, but part of the graph, as torchdiffeq's is."""
    ys = (solution,) if isinstance(solution, Tensor) else solution
    return cast(Tensor, _ConstantTime.apply(time, *ys)) if any(y.requires_grad for y in ys) else time
