"""Names from torchdiffeq's private modules that other programs import.

Latent-ODE, FFJORD, CNF, neural-CDE and graph-diffusion code bases reach into `torchdiffeq._impl`: they register solver
classes, step existing ones by hand, collect parameters, reuse norms and read tableaus. These names exist here in the
same modules, so such programs run unchanged; docs/migrate.md lists them. This library imports none of them.
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
from .. import solver_functions as _steps
from .. import solvers as _solvers


def _named(module: Any, names: str) -> dict[str, Any]:
    """torchdiffeq's names -> objects of a module, where the same names have no underscore."""
    return {name: getattr(module, name.removeprefix("_")) for name in names.split()}


_NORMS = "_flat_to_shape _rms_norm _mixed_norm _linf_norm _zero_norm"
_STEP_CONTROL = "_optimal_step_size _compute_error_ratio _select_initial_step _handle_unused_kwargs Perturb"
_WRAPPERS = "_PerturbFunc _ReverseFunc _TupleFunc _TupleInputOnlyFunc _null_callback _decreasing _nextafter"
_STEPS = (
    "_ButcherTableau _RungeKuttaState _UncheckedAssign _runge_kutta_step _sort_tvals rk4_step_func rk4_alt_step_func "
    "rk3_step_func rk2_step_func"
)
_PAIRS = {  # by module: the names of the tableau and of the weights for the middle of a step
    "dopri5": ("_DORMAND_PRINCE_SHAMPINE_TABLEAU", "DPS_C_MID"),
    "dopri8": ("_DOPRI8_TABLEAU", "_C_mid"),
    "tsit5": ("_TSITOURAS_TABLEAU", "TSIT_C_MID"),
    "bosh3": ("_BOGACKI_SHAMPINE_TABLEAU", "_BS_C_MID"),
    "fehlberg2": ("_FEHLBERG2_TABLEAU", "_FE_C_MID"),
    "adaptive_heun": ("_ADAPTIVE_HEUN_TABLEAU", "_AH_C_MID"),
}


def _modules() -> dict[str, dict[str, Any]]:
    interp, step_control = _named(_steps, "_interp_fit _interp_evaluate"), _named(_steps, _STEP_CONTROL)
    adaptive = "AdaptiveStepsizeODESolver AdaptiveStepsizeEventODESolver"
    explicit, implicit, pairs = (
        {solver_class.__name__: solver_class for solver_class in table.values()}
        for table in (_solvers.EXPLICIT, _solvers.IMPLICIT, _solvers.ADAPTIVE)
    )
    adams = _named(_fixed, "AdamsBashforthMoulton AdamsBashforth")
    scipy = _named(_adaptive, "ScipyWrapperODESolver")
    check = _named(_custom, "_check_inputs") | _named(_norms, "_flat_to_shape")
    events = _named(_steps, "find_event combine_event_functions")
    modules = {
        "odeint": {
            **_named(_methods, "SOLVERS"), **_named(_solve, "odeint odeint_dense"), **_named(_events, "odeint_event"),
            **explicit, **implicit, **pairs, **adams, **scipy, **check, **interp,
        },
        "adjoint": {
            **_named(_adjoint, "odeint_adjoint find_parameters OdeintAdjointMethod"),
            **_named(_norms, "handle_adjoint_norm_ _mixed_norm"), **_named(_methods, "SOLVERS"),
            **_named(_solve, "odeint"), **check,
        },
        "solvers": {**_named(_fixed, "FixedGridODESolver"), **_named(_adaptive, adaptive), **events, **step_control},
        "fixed_grid": {**explicit, **_named(_fixed, "FixedGridODESolver"), **_named(_steps, _STEPS), **step_control},
        "fixed_grid_implicit": {**implicit, **_named(_fixed, "FixedGridFIRKODESolver FixedGridDIRKODESolver")},
        "fixed_adams": {
            **adams, **_named(_steps, "_dot_product rk4_alt_step_func"), **_named(_fixed, "FixedGridODESolver"),
            **step_control, "_MIN_ORDER": 4, "_MAX_ORDER": 12, "_MAX_ITERS": 4,
        },
        "scipy_wrapper": scipy,
        "rk_common": {
            **_named(_steps, _STEPS), **_named(_adaptive, f"RKAdaptiveStepsizeODESolver {adaptive}"),
            **_named(_fixed, "FixedGridODESolver FixedGridFIRKODESolver FixedGridDIRKODESolver"),
            **step_control, **interp, **events,
        },
        "interp": interp,
        "misc": {
            **check, **step_control, **events, **_named(_norms, _NORMS), **_named(_steps, _WRAPPERS),
            "_all_callback_names": [*_custom.CALLBACKS],
            "_all_adjoint_callback_names": [f"{name}_adjoint" for name in _custom.CALLBACKS],
        },
        "event_handling": events,
    }  # fmt: skip
    for name, (tableau, middle) in _PAIRS.items():
        solver_class = _solvers.ADAPTIVE[name]
        modules[name] = {solver_class.__name__: solver_class, tableau: solver_class.tableau, middle: solver_class.mid}
        modules[name] |= _named(_steps, "_ButcherTableau") | _named(_adaptive, "RKAdaptiveStepsizeODESolver")
    return modules


def _install() -> None:
    """Create the modules, so that `from torchdiffeq._impl.misc import ...` works.

    A function hides the module of the same name, as in torchdiffeq.
    """
    for name, contents in _modules().items():
        module = ModuleType(f"{__name__}.{name}", "See odenet.compat.torchdiffeq._impl.")
        vars(module).update(contents)
        sys.modules[module.__name__] = module
        globals()[name] = contents.get(name, module)


_install()
odeint_adjoint, odeint_dense, odeint_event = _adjoint.odeint_adjoint, _solve.odeint_dense, _events.odeint_event
