"""cdeint: controlled differential equations."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from ...core.leaves import real_dtype
from ...core.validate import describe, one_of
from ...errors import warn
from ..torchdiffeq import odeint, odeint_adjoint
from ..torchdiffeq.method_names import is_adaptive
from .interpolation_linear import LinearInterpolation
from .sde_backend import odeint_keywords

_DEFAULTS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}  # torchcde's, looser than those of odeint
_BACKENDS = ("torchdiffeq", "torchsde")


def cdeint(
    X: Any, func: Any, z0: Any, t: Tensor, adjoint: bool = True, backend: str = "torchdiffeq", **kwargs: Any
) -> Any:
    """Solve dz = func(t, z) dX from z0 at t[0]; returns z at all of t, (..., T, hidden).

    X: the control, with a method derivative(t), (..., channels), such as `CubicSpline`.
    func: (t, z) -> (..., hidden, channels). t is 0-d, z as z0. If func has a method prod(t, z, dX), (..., hidden), that
        is called in its place, and multiplies by dX/dt itself.
    z0: (..., hidden), with the leading dimensions of dX/dt; or a tuple of tensors. Then X.derivative, func and the
        result are tuples of as many: see `TupleControl`.
    t: times, (T,), strictly increasing or decreasing.
    adjoint: the continuous adjoint method, of constant memory; False: the exact gradient of the steps.
    backend: "torchdiffeq"; or "torchsde", whose methods solve the equation without noise, with constant steps dt.
    kwargs: those of torchdiffeq's odeint_adjoint, or of odeint with adjoint=False. By default rtol=1e-4, atol=1e-6, and
        the same for the backward solve. With backend="torchsde" those of sdeint: method, by default "midpoint", and dt,
        by default 1e-3.

    All tensors that func and X use get their gradients, named in adjoint_params or not; those for times of kinks are
    incomplete, with a warning. Raises ValueError for shapes
    that do not fit, and where odeint does.

    >>> import torch
    >>> from odenet.compat.torchcde import LinearInterpolation
    >>> X = LinearInterpolation(torch.tensor([[0.0], [1.0], [3.0]]))
    >>> z = cdeint(X, lambda t, z: z[..., None], torch.ones(1), X.interval, options={"jump_t": X.grid_points})
    >>> torch.allclose(z[-1], torch.tensor([3.0]).exp(), rtol=1e-3)
    True
    """
    one_of("backend", backend, _BACKENDS)
    if backend == "torchsde":
        kwargs = odeint_keywords(func, kwargs)
    if kwargs.get("event_fn") is not None:
        raise ValueError("event_fn has no meaning in cdeint: use odenet.solve with f(t, z) = func(t, z) @ dX/dt")
    z0 = tuple(z0) if isinstance(z0, list) else z0
    kwargs = _DEFAULTS | kwargs
    for name in ("options", "adjoint_options"):
        if isinstance(kwargs.get(name), dict):  # X.grid_points may ask for a gradient; times of jumps are constants
            kwargs[name] = {k: v.detach() if isinstance(v, Tensor) else v for k, v in kwargs[name].items()}
    _warn_of_moving_kinks(X)
    if adjoint:
        kwargs = _back_to_knots(X, {"adjoint_rtol": kwargs["rtol"], "adjoint_atol": kwargs["atol"]} | kwargs)
    field = _ControlledField(X, func)
    field.check(t, z0)
    z = (odeint_adjoint if adjoint else odeint)(field, z0, t, **kwargs)
    return z.movedim(0, -2) if isinstance(z, Tensor) else tuple(x.movedim(0, -2) for x in z)


def _back_to_knots(X: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords, where X asks for gradients with a backward solve whose steps end at its knots.

    The slope of the gradient of coefficients jumps there, and its error has no part in choosing the steps.
    """
    options, method = kwargs.get("options") or {}, kwargs.get("method") or "dopri5"
    knots = [c.grid_points.detach() for c in _controls(X) if isinstance(getattr(c, "grid_points", None), Tensor)]
    given = kwargs.get("adjoint_options") is not None or "jump_t" in options
    if given or not knots or not isinstance(method, str) or not is_adaptive(method):
        return kwargs
    if kwargs.get("adjoint_method") not in (None, method) or not _asks_for_gradient(X):
        return kwargs
    same = {k: v for k, v in options.items() if k != "norm"}
    return kwargs | {"adjoint_options": same | {"jump_t": torch.cat(knots).unique()}}


def _controls(X: Any) -> list[Any]:
    return list(getattr(X, "controls", (X,)))


def _asks_for_gradient(X: Any) -> bool:
    return isinstance(X, nn.Module) and any(x.requires_grad for x in (*X.buffers(), *X.parameters()))


def _warn_of_moving_kinks(X: Any) -> None:
    if any(isinstance(c, LinearInterpolation) and c.grid_points.requires_grad for c in _controls(X)):
        warn(
            "t of a LinearInterpolation requires a gradient, and will get a wrong one: dX/dt jumps at these times, and "
            "the part of the gradient from the jumps that move is left out. Use t.detach(), or CubicSpline with the "
            "coefficients of hermite_cubic_coefficients_with_backward_differences"
        )


@final
class _ControlledField(nn.Module):
    """dz/dt = func(t, z) dX/dt. A module, so that the parameters of X and func are its own."""

    def __init__(self, X: Any, func: Any) -> None:
        super().__init__()
        if not callable(getattr(X, "derivative", None)):
            raise ValueError(f"X must have a method derivative(t), such as torchcde.CubicSpline; got {describe(X)}")
        self.has_prod = hasattr(func, "prod")
        if not self.has_prod and not callable(func):
            raise ValueError(
                f"func must be callable, func(t, z), or have a method prod(t, z, dX); got {describe(func)}"
            )
        self.X: Any = X
        self.func: Any = func

    def forward(self, t: Tensor, z: Any) -> Any:
        slope = self.X.derivative(t)
        if self.has_prod:
            return self.func.prod(t, z, slope)
        matrix = self.func(t, z)
        if isinstance(z, Tensor):
            return (matrix @ slope[..., None])[..., 0]
        return tuple((m @ s[..., None])[..., 0] for m, s in zip(matrix, slope, strict=True))

    def check(self, t: Any, z0: Any) -> None:
        """ValueError where shapes do not fit at the start."""
        if not isinstance(t, Tensor) or t.ndim != 1 or not len(t):
            raise ValueError(f"t must be a tensor of times, (T,); got {describe(t)}")
        if not isinstance(z0, (Tensor, tuple)):
            raise ValueError(f"z0 must be a tensor or a tuple of tensors; got {describe(z0)}")
        first: Any = z0 if isinstance(z0, Tensor) else (*z0, None)[0]
        start = t[0].detach()
        if isinstance(first, Tensor):
            start = start.to(real_dtype(first.dtype))  # as func gets it in the solve
        slope = self.X.derivative(start)
        _check_parts("X.derivative(t)", slope, z0)
        pairs = list(zip(z0, slope, strict=True)) if isinstance(z0, tuple) else [(z0, slope)]
        for pair in pairs:
            _check_control(*pair)
        name = "func.prod(t, z, dX)" if self.has_prod else "func(t, z)"
        value = self.func.prod(start, z0, slope) if self.has_prod else self.func(start, z0)
        _check_parts(name, value, z0)
        for pair, part in zip(pairs, value if isinstance(z0, tuple) else (value,), strict=True):
            _check_value(*pair, part, name, self.has_prod)


def _check_parts(name: str, given: Any, z0: Any) -> None:
    if isinstance(z0, tuple) and not (isinstance(given, (tuple, list)) and len(given) == len(z0)):
        raise ValueError(f"{name} must be a tuple of {len(z0)} tensors, as z0; got {describe(given)}")


def _check_control(z0: Any, slope: Any) -> None:
    _check_tensor("z0", z0)
    _check_tensor("X.derivative(t)", slope)
    if not z0.ndim:
        raise ValueError("z0 must be (..., hidden); got a number: use z0[None]")
    if slope.ndim == 0 or slope.shape[:-1] != z0.shape[:-1]:
        raise ValueError(
            f"X.derivative(t) must be (..., channels) with the leading dimensions of z0, {tuple(z0.shape[:-1])}; got "
            f"shape {tuple(slope.shape)} for z0 of shape {tuple(z0.shape)}"
        )
    if real_dtype(z0.dtype) != slope.dtype:
        raise ValueError(f"z0 and X.derivative(t) must have one dtype; got {z0.dtype} and {slope.dtype}")


def _check_value(z0: Tensor, slope: Tensor, value: Any, name: str, is_product: bool) -> None:
    _check_tensor(name, value)
    expected = z0.shape if is_product else torch.Size((*z0.shape, slope.shape[-1]))
    if value.shape != expected:
        form = "(..., hidden)" if is_product else "(..., hidden, channels)"
        raise ValueError(
            f"{name} must be {form}, {tuple(expected)} for z0 of shape {tuple(z0.shape)} and a control of "
            f"{slope.shape[-1]} channels; got shape {tuple(value.shape)}"
        )
    if not is_product and value.dtype != slope.dtype:
        raise ValueError(f"{name} and X.derivative(t) must have one dtype; got {value.dtype} and {slope.dtype}")


def _check_tensor(name: str, given: Any) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(f"{name} must be a tensor, or a tuple of tensors if z0 is one; got {describe(given)}")
