"""odeint_adjoint: the continuous adjoint method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.leaves import Leaves
from ...core.validate import describe
from ...errors import warn
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
    """`odeint` with the gradient of the continuous adjoint method: memory is constant in the number of steps.

    adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: of the backward solve; default: those of the forward
        solve without its norm. A norm in adjoint_options gets (t, y, adj_y, *params), with a tuple state unpacked; t
        and params are zeros, as they are no part of the state here.
    adjoint_params: parameters of func, required if it is no Module. All tensors that func uses get gradients, named
        here or not.
    """
    adjoint_options = None if adjoint_options is None else checked_options("adjoint_options", adjoint_options)
    options = None if options is None else checked_options("options", options)
    params = _parameters(func, adjoint_params, adjoint_options)
    if isinstance(adjoint_method, str) and adjoint_method != method and options is not None and adjoint_options is None:
        raise ValueError(
            "adjoint_method differs from method: options do not apply to it, so give adjoint_options too ({} for none)"
        )
    inputs = Inputs.from_arguments(func, y0, t, rtol, atol, event_fn)
    inputs.y0, grad_tensors = _with_grad_needed(inputs, params)
    name, backward_name = (
        method_name(method),
        method_name(method if adjoint_method is None else adjoint_method, "adjoint_method"),
    )
    settings = Settings.from_options(name, options, inputs)
    backward_options = (
        {k: v for k, v in (options or {}).items() if k != "norm"} if adjoint_options is None else adjoint_options
    )
    norm = _adjoint_norm(backward_options, settings, inputs, params)
    solver_options = {k: v for k, v in backward_options.items() if k != "norm"}
    if backward_name == SCIPY or settings.solver_class is not None:
        backward_name, solver_options = "dopri5", {}
    backward = Settings.from_options(backward_name, solver_options, inputs, norm)
    adjoint_settings: dict[str, Any] = {
        "rtol": _single_tolerance("adjoint_rtol", adjoint_rtol),
        "atol": _single_tolerance("atol", atol)
        if adjoint_atol is None and isinstance(atol, (int, float))
        else _single_tolerance("adjoint_atol", adjoint_atol),
        "method": backward.method,
        "norm": norm,
        "controller": backward.controller,
        "max_steps": backward.max_steps,
        "callbacks": find_callbacks(
            func, backward_name, backward.time_dtype(inputs), "_adjoint", lambda state: _callback_state(state, params)
        ),
    }
    gradient = SciPy(settings.options, **adjoint_settings) if name == SCIPY else Adjoint(**adjoint_settings)
    gradient.double_backward = False
    result = odeint_with_gradient(inputs, settings, gradient, event_fn)
    if event_fn is None:
        return _with_options_node(result, backward_options, grad_tensors)
    solution = _with_options_node(result[1], backward_options, grad_tensors)
    return _constant_time(result[0], solution), solution


def find_parameters(module: object) -> list[nn.Parameter | Tensor]:
    """The parameters of a module; in a replica made by DataParallel they are plain tensors."""
    if not isinstance(module, nn.Module):
        raise AssertionError(f"func must be a torch.nn.Module; got {type(module).__name__}")
    if not getattr(module, "_is_replica", False):
        return list(module.parameters())
    return [
        x
        for submodule in module.modules()
        for x in vars(submodule).values()
        if isinstance(x, Tensor) and x.requires_grad
    ]


def _parameters(
    func: Any, adjoint_params: Iterable[Tensor] | None, options: dict[str, Any] | None
) -> tuple[Tensor, ...]:
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise ValueError(
            "func is no torch.nn.Module, so adjoint_params is required: the parameters that it uses, or () for none"
        )
    try:
        params: tuple[Any, ...] = tuple(find_parameters(func) if adjoint_params is None else adjoint_params)
    except TypeError:
        raise TypeError(
            f"adjoint_params must be parameters, in a tuple or list; got {describe(adjoint_params)}"
        ) from None
    for x in params:
        if not isinstance(x, Tensor):
            raise TypeError(f"adjoint_params must be tensors; got {describe(x)}")
    differentiable = tuple(x for x in params if x.requires_grad)
    if len(differentiable) < len(params) and callable((options or {}).get("norm")):
        warn("a parameter requires no gradient: the norm of adjoint_options does not get it")
    return differentiable


def _single_tolerance(name: str, value: Any) -> float | None:
    """One tolerance for the whole backward state: the strictest of several."""
    if value is None:
        return None
    if isinstance(value, Tensor) and value.requires_grad:
        raise AssertionError(f"{name} must not require a gradient: use {name}.detach()")
    values = value if isinstance(value, (tuple, list)) else [value]
    tensors = [as_dense_tensor(name, x).detach() for x in values]
    if not tensors or any(x.numel() == 0 or x.is_complex() for x in tensors):
        raise ValueError(f"{name} must hold real numbers, at least one; got {value!r}")
    least = min(float(x.double().min()) for x in tensors)
    if not 0.0 <= least < float("inf"):
        raise ValueError(f"{name} must be zero or positive, and finite; got {value!r}")
    return least


def _with_grad_needed(inputs: Inputs, params: tuple[Tensor, ...]) -> tuple[State, Leaves]:
    """y0, made to require a gradient if any input does, and all tensors that require one.

    So the backward solve runs whatever func uses, and its norm and callbacks are called, as in torchdiffeq.
    """
    state = (inputs.y0,) if isinstance(inputs.y0, Tensor) else inputs.y0
    grad_tensors = tuple(x for x in (*state, inputs.t, *params) if x.requires_grad)
    if not grad_tensors or not torch.is_grad_enabled() or any(x.requires_grad for x in state):
        return inputs.y0, grad_tensors
    leaves = tuple(x.detach().requires_grad_() for x in state)
    return leaves[0] if isinstance(inputs.y0, Tensor) else leaves, grad_tensors


def _adjoint_norm(
    backward_options: dict[str, Any], settings: Settings, inputs: Inputs, params: Leaves
) -> Callable[..., Tensor]:
    """The norm of the leaves of (y, a): calls the norm in `backward_options`, which clients may replace at any time.

    The norm is put there. The default, and "seminorm", is the larger of the norms of y and a: parameters are no part of
    the state here, so their norm is zero.
    """
    user_norm = backward_options.get("norm")
    if user_norm is not None and not callable(user_norm) and user_norm != "seminorm":
        raise TypeError(f"norm of adjoint_options must be 'seminorm' or callable; got {user_norm!r}")
    shapes = None if isinstance(inputs.y0, Tensor) else [x.shape for x in inputs.y0]
    handle_adjoint_norm_(backward_options, shapes, vector_norm(settings.options.get("norm"), shapes))
    default_norm = None if callable(user_norm) else backward_options["norm"]

    def norm(leaves: Leaves) -> Tensor:
        current_norm, n = backward_options["norm"], len(leaves) // 2
        y, a = (half[0] if shapes is None else _vector(half) for half in (leaves[:n], leaves[n:]))
        parameter_zeros = () if current_norm is default_norm else (torch.zeros_like(x) for x in params)
        return torch.as_tensor(current_norm((y.abs().new_zeros(()), y, a, *parameter_zeros))).abs()

    return norm


def _vector(leaves: Leaves) -> Tensor:
    return torch.cat([x.reshape(-1) for x in leaves])


def _callback_state(state: Leaves, params: Leaves) -> tuple[Tensor, ...]:
    """(t, y, adj_y, *params) as callbacks of the backward solve get it; a tuple state becomes one vector."""
    n = len(state) // 2
    y, a = (to_vector(half) for half in (state[:n], state[n:]))
    return (y.abs().new_zeros(()), y, a, *(torch.zeros_like(x) for x in params))


class OdeintAdjointMethod(torch.autograd.Function):
    """An identity whose node holds the options of the backward solve, which clients read: ys.grad_fn.adjoint_options.

    The tensors after the first `count` are all inputs that require a gradient. They get zeros, added to the gradients
    of the solve: averaging gradients over processes needs one for each parameter, used by func or not.
    """

    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.adjoint_options = options
        ctx.specs = [(x.shape, x.dtype, x.device) for x in tensors[count:]]
        ctx.set_materialize_grads(False)
        return tuple(x.detach() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        return None, None, *cotangents, *(torch.zeros(s, dtype=d, device=device) for s, d, device in ctx.specs)


def _with_options_node(solution: State, options: dict[str, Any], grad_tensors: Leaves) -> State:
    """The solution as `OdeintAdjointMethod` returns it, if it requires a gradient."""
    ys = (solution,) if isinstance(solution, Tensor) else solution
    if not any(y.requires_grad for y in ys):
        return solution
    ys = cast(Leaves, OdeintAdjointMethod.apply(options, len(ys), *ys, *grad_tensors))
    # clients look for the options two nodes behind a tensor of a tuple: in torchdiffeq it is a slice, reshaped, of one
    # vector
    return ys[0] if isinstance(solution, Tensor) else tuple(y[:].view(y.shape) for y in ys)


class _ConstantTime(torch.autograd.Function):
    """A time with zero derivatives by everything that the solution depends on."""

    @staticmethod
    def forward(ctx: Any, time: Tensor, *ys: Tensor) -> Tensor:
        ctx.specs = [(y.shape, y.dtype, y.device) for y in ys]
        return time.detach()

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *(torch.zeros(s, dtype=d, device=device) for s, d, device in ctx.specs)


def _constant_time(time: Tensor, solution: State) -> Tensor:
    """The event time: a constant, but part of the graph, as in torchdiffeq."""
    ys = (solution,) if isinstance(solution, Tensor) else solution
    return cast(Tensor, _ConstantTime.apply(time, *ys)) if any(y.requires_grad for y in ys) else time
