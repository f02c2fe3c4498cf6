"""`cdeint(..., backend="torchsde")`: torchsde's keywords, as those of odeint that take the same steps.

The equation has no noise, and each of torchsde's methods is then one of ordinary equations.
"""

from __future__ import annotations

from typing import Any

from ...core.validate import one_of

# without noise
_METHODS = {
    "euler": "euler",
    "milstein": "euler",
    "euler_heun": "euler",
    "midpoint": "midpoint",
    "log_ode": "midpoint",
    "heun": "heun2",
}
_STEP = 1e-3  # torchsde's
# for noise, for other names of func, and for steps that are not constant
_WITHOUT_EFFECT = ("bm", "rtol", "atol", "dt_min", "options", "adjoint_rtol", "adjoint_atol", "adjoint_options")
_KEPT = ("adjoint_params",)


def odeint_keywords(func: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords of odeint, or of odeint_adjoint, for those of torchsde's sdeint; ValueError for what has no such."""
    given = dict(keywords)
    method = given.pop("method", None)
    if method is None:
        method = "midpoint" if getattr(func, "sde_type", "stratonovich") == "stratonovich" else "srk"
    adjoint_method = given.pop("adjoint_method", None)
    options = {"step_size": float(given.pop("dt", _STEP))}
    found: dict[str, Any] = {"method": _METHODS[_known("method", method)], "options": options}
    if adjoint_method is not None:
        found["adjoint_method"] = _METHODS[_known("adjoint_method", adjoint_method)]
        found["adjoint_options"] = dict(options)
    for name in ("adaptive", "adjoint_adaptive"):
        if given.pop(name, False):
            raise ValueError(
                f'{name}=True is not here with backend="torchsde": backend="torchdiffeq" with method="dopri5" chooses '
                "its steps by rtol and atol"
            )
    found |= {name: given.pop(name) for name in _KEPT if name in given}
    for name in _WITHOUT_EFFECT:
        given.pop(name, None)
    if left := [name for name, value in given.items() if value]:
        raise ValueError(f'{left[0]} has no meaning for cdeint with backend="torchsde": leave it out')
    return found


def _known(name: str, method: Any) -> str:
    if method in ("srk", "reversible_heun", "adjoint_reversible_heun"):
        raise ValueError(
            f'{name}={method!r} is not here: name one of {", ".join(_METHODS)}, or give backend="torchdiffeq" with '
            'method="rk4", options={"step_size": dt}, which is of higher order'
        )
    return one_of(name, method, tuple(_METHODS))
