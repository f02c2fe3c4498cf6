"""Names from torchdiffeq's private modules that well-known programs import all the same.

Latent-ODE, FFJORD, CNF, neural-CDE and graph-diffusion code bases reach into `torchdiffeq._impl`: they register
fixed-step solvers of their own, ask for parameters, reuse norms and read tableaus. Those names are here, module by
module, so that such a program runs unchanged. Nothing in this library imports them. Adaptive solver classes are there
to be named, not to be run: stop a solve early with an event, or with `odenet.solve(max_steps=...)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from ....gradients.attach import _Attach
from .. import adjoint as _adjoint
from .. import events as _events
from .. import methods as _methods
from .. import solve as _solve
from . import _functions as _f
from . import _solvers as _s


def _modules() -> dict[str, dict[str, Any]]:
    dopri5, dopri8, bosh3 = (
        _s._adaptive(name, name.lower()[:6].removesuffix("s"))
        for name in ("Dopri5Solver", "Dopri8Solver", "Bosh3Solver")
    )
    interp = {"_interp_fit": _f._interp_fit, "_interp_evaluate": _f._interp_evaluate}
    decide = {
        "_optimal_step_size": _f._optimal_step_size,
        "_compute_error_ratio": _f._compute_error_ratio,
        "_select_initial_step": _f._select_initial_step,
        "Perturb": _f.Perturb,
    }
    adjoint = ("odeint_adjoint", "find_parameters")
    fixed = {"Euler": "euler", "Midpoint": "midpoint", "Heun2": "heun", "Heun3": "heun3", "RK4": "rk4_38"}
    return {
        "odeint": {
            "SOLVERS": _methods.SOLVERS,
            "odeint": _solve.odeint,
            "odeint_dense": _solve.odeint_dense,
            "odeint_event": _events.odeint_event,
        },
        "adjoint": {
            **{n: getattr(_adjoint, n) for n in adjoint},
            "OdeintAdjointMethod": _Attach,
            "handle_adjoint_norm_": _f.handle_adjoint_norm_,
        },
        "solvers": {
            "FixedGridODESolver": _s.FixedGridODESolver,
            "AdaptiveStepsizeODESolver": _s.AdaptiveStepsizeODESolver,
            "AdaptiveStepsizeEventODESolver": _s.AdaptiveStepsizeODESolver,
        },
        "fixed_grid": {name: _s._fixed(name, method) for name, method in fixed.items()},
        "dopri5": {"Dopri5Solver": dopri5, "_DORMAND_PRINCE_SHAMPINE_TABLEAU": dopri5.tableau},
        "dopri8": {"Dopri8Solver": dopri8, "_DOPRI8_TABLEAU": dopri8.tableau},
        "bosh3": {"Bosh3Solver": bosh3, "_BOGACKI_SHAMPINE_TABLEAU": bosh3.tableau},
        "rk_common": {
            "RKAdaptiveStepsizeODESolver": _s.RKAdaptiveStepsizeODESolver,
            "_ButcherTableau": _s._ButcherTableau,
            "_RungeKuttaState": _s._RungeKuttaState,
            "_runge_kutta_step": _s._runge_kutta_step,
            "rk4_alt_step_func": _s.rk4_alt_step_func,
            **decide,
            **interp,
        },
        "interp": interp,
        "misc": {
            "_check_inputs": _f._check_inputs,
            "_flat_to_shape": _f._flat_to_shape,
            "_PerturbFunc": _f._PerturbFunc,
            "_ReverseFunc": _f._ReverseFunc,
            "_TupleFunc": _f._TupleFunc,
            "_rms_norm": _f._rms_norm,
            "_mixed_norm": _f._mixed_norm,
            "_linf_norm": _f._linf_norm,
            "_handle_unused_kwargs": _f._handle_unused_kwargs,
            "_null_callback": _f._null_callback,
            "_decreasing": _f._decreasing,
            **decide,
        },
        "event_handling": {"find_event": _f.find_event},
    }


def _install() -> None:
    """Each module by its name, so that `from torchdiffeq._impl.misc import ...` finds it; functions hide theirs."""
    for name, contents in _modules().items():
        module = ModuleType(f"{__name__}.{name}", "See odenet.compat.torchdiffeq._impl.")
        vars(module).update(contents)
        sys.modules[module.__name__] = module
        globals()[name] = contents.get(name, module)


_install()
odeint_adjoint, odeint_dense, odeint_event = _adjoint.odeint_adjoint, _solve.odeint_dense, _events.odeint_event
