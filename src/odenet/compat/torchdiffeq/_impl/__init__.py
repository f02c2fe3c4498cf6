"""Names from torchdiffeq's private modules that other people's programs import all the same.

Latent-ODE, FFJORD, CNF, neural-CDE and graph-diffusion code bases reach into `torchdiffeq._impl`: they register solvers
of their own, step those that are there by hand, ask for parameters, reuse norms and read tableaus. Those names are
here, module by module, so that such a program runs unchanged; docs/migrate.md lists them. Nothing in this library
imports them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .. import adaptive_solvers as _adaptive
from .. import adjoint_call as _adjoint
from .. import adjoint_norms as _norms
from .. import custom_solvers as _custom
from .. import event_call as _events
from .. import fixed_solvers as _fixed
from .. import method_names as _methods
from .. import plain_call as _solve
from .. import solver_functions as _functions
from .. import solvers as _solvers


def _named(module: Any, names: str) -> dict[str, Any]:
    return {name: getattr(module, name.removeprefix("_")) for name in names.split()}


_NORMS = "_flat_to_shape _rms_norm _mixed_norm _linf_norm _zero_norm"
_DECIDE = "_optimal_step_size _compute_error_ratio _select_initial_step _handle_unused_kwargs Perturb"
_WRAPPERS = "_PerturbFunc _ReverseFunc _TupleFunc _TupleInputOnlyFunc _null_callback _decreasing _nextafter"
_STEPS = (
    "_ButcherTableau _RungeKuttaState _UncheckedAssign _runge_kutta_step _sort_tvals rk4_step_func rk4_alt_step_func "
    "rk3_step_func rk2_step_func"
)
_PAIRS = {  # the module's name, and what it calls the tableau and the weights for the middle of a step
    "dopri5": ("_DORMAND_PRINCE_SHAMPINE_TABLEAU", "DPS_C_MID"),
    "dopri8": ("_DOPRI8_TABLEAU", "_C_mid"),
    "tsit5": ("_TSITOURAS_TABLEAU", "TSIT_C_MID"),
    "bosh3": ("_BOGACKI_SHAMPINE_TABLEAU", "_BS_C_MID"),
    "fehlberg2": ("_FEHLBERG2_TABLEAU", "_FE_C_MID"),
    "adaptive_heun": ("_ADAPTIVE_HEUN_TABLEAU", "_AH_C_MID"),
}


def _modules() -> dict[str, dict[str, Any]]:
    interp, decide = _named(_functions, "_interp_fit _interp_evaluate"), _named(_functions, _DECIDE)
    adaptive = "AdaptiveStepsizeODESolver AdaptiveStepsizeEventODESolver"
    explicit, implicit, pairs = (
        {kind.__name__: kind for kind in table.values()}
        for table in (_solvers.EXPLICIT, _solvers.IMPLICIT, _solvers.ADAPTIVE)
    )
    adams = _named(_fixed, "AdamsBashforthMoulton AdamsBashforth")
    scipy = _named(_adaptive, "ScipyWrapperODESolver")
    check = _named(_custom, "_check_inputs") | _named(_norms, "_flat_to_shape")
    events = _named(_functions, "find_event combine_event_functions")
    found = {
        "odeint": {
            **_named(_methods, "SOLVERS"), **_named(_solve, "odeint odeint_dense"), **_named(_events, "odeint_event"),
            **explicit, **implicit, **pairs, **adams, **scipy, **check, **interp,
        },
        "adjoint": {
            **_named(_adjoint, "odeint_adjoint find_parameters OdeintAdjointMethod"),
            **_named(_norms, "handle_adjoint_norm_ _mixed_norm"), **_named(_methods, "SOLVERS"),
            **_named(_solve, "odeint"), **check,
        },
        "solvers": {**_named(_fixed, "FixedGridODESolver"), **_named(_adaptive, adaptive), **events, **decide},
        "fixed_grid": {**explicit, **_named(_fixed, "FixedGridODESolver"), **_named(_functions, _STEPS), **decide},
        "fixed_grid_implicit": {**implicit, **_named(_fixed, "FixedGridFIRKODESolver FixedGridDIRKODESolver")},
        "fixed_adams": {
            **adams, **_named(_functions, "_dot_product rk4_alt_step_func"), **_named(_fixed, "FixedGridODESolver"), **decide,
            "_MIN_ORDER": 4, "_MAX_ORDER": 12, "_MAX_ITERS": 4,
        },
        "scipy_wrapper": scipy,
        "rk_common": {
            **_named(_functions, _STEPS), **_named(_adaptive, f"RKAdaptiveStepsizeODESolver {adaptive}"),
            **_named(_fixed, "FixedGridODESolver FixedGridFIRKODESolver FixedGridDIRKODESolver"),
            **decide, **interp, **events,
        },
        "interp": interp,
        "misc": {
            **check, **decide, **events, **_named(_norms, _NORMS), **_named(_functions, _WRAPPERS),
            "_all_callback_names": [*_custom.CALLBACKS],
            "_all_adjoint_callback_names": [f"{name}_adjoint" for name in _custom.CALLBACKS],
        },
        "event_handling": events,
    }  # fmt: skip
    for name, (tableau, middle) in _PAIRS.items():
        kind = _solvers.ADAPTIVE[name]
        found[name] = {kind.__name__: kind, tableau: kind.tableau, middle: kind.mid}
        found[name] |= _named(_functions, "_ButcherTableau") | _named(_adaptive, "RKAdaptiveStepsizeODESolver")
    return found


def _install() -> None:
    """Each module by its name, so that `from torchdiffeq._impl.misc import ...` finds it; functions hide theirs."""
    for name, contents in _modules().items():
        module = ModuleType(f"{__name__}.{name}", "See odenet.compat.torchdiffeq._impl.")
        vars(module).update(contents)
        sys.modules[module.__name__] = module
        globals()[name] = contents.get(name, module)


_install()
odeint_adjoint, odeint_dense, odeint_event = _adjoint.odeint_adjoint, _solve.odeint_dense, _events.odeint_event
