"""What clients take from torchdiffeq's private modules; and other people's programs on the drop-in."""

from __future__ import annotations

import ast
import importlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from odenet.compat.torchdiffeq._impl.misc import _flat_to_shape, _mixed_norm, _rms_norm
from odenet.compat.torchdiffeq._impl.odeint import SOLVERS
from odenet.compat.torchdiffeq._impl.solvers import FixedGridODESolver
from torch import Tensor, nn

import odenet.compat.torchdiffeq as drop_in
from compat.sides import Riccati, Rotation, close, double, rotation_start, start

SOURCE = Path(drop_in.__file__).parent.parent.parent
NAMES = {
    "odeint": "SOLVERS odeint odeint_dense odeint_event Dopri5Solver Euler RK4 _check_inputs _flat_to_shape",
    "adjoint": "odeint_adjoint OdeintAdjointMethod find_parameters handle_adjoint_norm_",
    "solvers": "FixedGridODESolver AdaptiveStepsizeODESolver AdaptiveStepsizeEventODESolver",
    "fixed_grid": "Euler Midpoint Heun2 Heun3 RK4",
    "fixed_grid_implicit": "ImplicitEuler ImplicitMidpoint Trapezoid GaussLegendre4 GaussLegendre6 RadauIIA3 RadauIIA5 "
    "SDIRK2 TRBDF2",
    "fixed_adams": "AdamsBashforth AdamsBashforthMoulton _dot_product",
    "scipy_wrapper": "ScipyWrapperODESolver",
    "dopri5": "Dopri5Solver _DORMAND_PRINCE_SHAMPINE_TABLEAU DPS_C_MID",
    "dopri8": "Dopri8Solver _DOPRI8_TABLEAU _C_mid",
    "tsit5": "Tsit5Solver _TSITOURAS_TABLEAU TSIT_C_MID",
    "bosh3": "Bosh3Solver _BOGACKI_SHAMPINE_TABLEAU _BS_C_MID",
    "fehlberg2": "Fehlberg2 _FEHLBERG2_TABLEAU _FE_C_MID",
    "adaptive_heun": "AdaptiveHeunSolver _ADAPTIVE_HEUN_TABLEAU _AH_C_MID",
    "rk_common": "RKAdaptiveStepsizeODESolver FixedGridFIRKODESolver FixedGridDIRKODESolver _ButcherTableau "
    "_RungeKuttaState _UncheckedAssign _runge_kutta_step rk4_step_func rk4_alt_step_func rk3_step_func rk2_step_func "
    "_optimal_step_size",
    "interp": "_interp_fit _interp_evaluate",
    "misc": "_check_inputs _flat_to_shape _PerturbFunc _ReverseFunc _TupleFunc _TupleInputOnlyFunc Perturb _rms_norm "
    "_linf_norm _mixed_norm _zero_norm _select_initial_step _compute_error_ratio _optimal_step_size "
    "_handle_unused_kwargs _null_callback _nextafter _decreasing _all_callback_names _all_adjoint_callback_names",
    "event_handling": "find_event combine_event_functions",
}


@pytest.mark.parametrize("module", NAMES)
def test_every_name_exists(module: str) -> None:
    found = importlib.import_module(f"odenet.compat.torchdiffeq._impl.{module}")
    text = (SOURCE.parent.parent / "docs" / "migrate.md").read_text(encoding="utf-8")
    for name in NAMES[module].split():
        assert getattr(found, name) is not None
        assert f"`{name}`" in text, "what is there is listed"


def test_nothing_imports_them() -> None:
    for file in SOURCE.rglob("*.py"):
        if "_impl" in file.parts or file.name == "launch.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert "_impl" not in (node.module or "").split("."), file


def test_private_modules_are_attributes(ode: Any) -> None:
    assert ode._impl.misc._rms_norm(torch.tensor([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))
    with pytest.raises(AttributeError, match="odeint2"):
        ode.odeint2  # noqa: B018


def test_version() -> None:
    assert drop_in.__version__ > "0.2.0"
    assert len(SOLVERS) == 24 and "fixed_adams" in SOLVERS  # 23 methods, one of them by two names


@pytest.mark.parametrize("reverse", [False, True])
def test_a_solver_of_a_clients_own(theirs: Any, reverse: bool) -> None:
    """Ralston's method, registered by name in both; as torchdiffeq shows it, time runs forwards and tuples are flat."""

    def ralston(base: type) -> type:
        class Ralston(base):  # type: ignore[misc]
            order = 2

            def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
                assert dt > 0 and y0.ndim == 1
                f0 = func(t0, y0)
                return dt * (f0 / 4 + 3 / 4 * func(t0 + 2 / 3 * dt, y0 + 2 / 3 * dt * f0)), f0

        return Ralston

    from torchdiffeq._impl import odeint as _  # noqa: F401
    from torchdiffeq._impl.solvers import FixedGridODESolver as Theirs

    table = sys.modules["torchdiffeq._impl.odeint"].SOLVERS
    table["ralston"], SOLVERS["ralston"] = ralston(Theirs), ralston(FixedGridODESolver)
    try:
        t = double(1.0, 0.4, 0.0) if reverse else double(0.0, 0.4, 1.0)
        for f, y0 in ((Riccati(), start()), (Rotation(), rotation_start())):
            for options in ({"step_size": 0.05}, {}, {"step_size": 0.07, "interp": "cubic"}):
                got, want = (ode.odeint(f, y0, t, method="ralston", options=options) for ode in (drop_in, theirs))
                close(got, want, 1e-12)
                first = got if isinstance(got, Tensor) else got[0]
                other = want if isinstance(want, Tensor) else want[0]
                grads = [torch.autograd.grad(x[-1].sum(), tuple(f.parameters())) for x in (first, other)]
                close(grads[0], grads[1], 1e-12)
    finally:
        del table["ralston"], SOLVERS["ralston"]


def test_functions_do_what_theirs_do(theirs: Any) -> None:
    from torchdiffeq._impl import interp, misc, rk_common  # noqa: F401

    theirs_of = {name: sys.modules[f"torchdiffeq._impl.{name}"] for name in ("misc", "interp", "rk_common")}
    ours_of = {name: importlib.import_module(f"odenet.compat.torchdiffeq._impl.{name}") for name in theirs_of}
    a, b, c = (torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    both = (theirs_of, ours_of)
    close(*(m["interp"]._interp_fit(a, b, c, b, a, 0.3)[3] for m in both), 1e-13)
    t = [torch.tensor(x, dtype=torch.float64) for x in (0.0, 1.0, 0.3)]
    close(*(m["interp"]._interp_evaluate([a, b, c], *t) for m in both), 1e-13)
    assert float(_rms_norm(a)) == pytest.approx(float(theirs_of["misc"]._rms_norm(a)))
    assert float(_mixed_norm((a, 2 * b))) == pytest.approx(float(theirs_of["misc"]._mixed_norm((a, 2 * b))))
    ten = torch.tensor(10.0, dtype=torch.float64)
    for ratio in (0.0, 0.4, 3.0):
        sizes = [
            float(m["rk_common"]._optimal_step_size(ten, torch.tensor(ratio).double(), ten * 0.09, ten, ten * 0.02, 5))
            for m in both
        ]
        assert sizes[0] == pytest.approx(sizes[1])
    dt, tableau = torch.tensor(0.1, dtype=torch.float64), sys.modules["torchdiffeq._impl.dopri5"].Dopri5Solver.tableau
    mine = importlib.import_module("odenet.compat.torchdiffeq._impl.dopri5").Dopri5Solver.tableau
    f = lambda t, y, perturb=None: -y * torch.cos(t)  # noqa: E731
    for table in (tableau, mine):
        steps = [m["rk_common"]._runge_kutta_step(f, a, -a, t[0], dt, dt, table) for m in both]
        close(tuple(steps[0]), tuple(steps[1]), 1e-13)
    close(*(m["rk_common"].rk4_alt_step_func(f, t[0], dt, dt, a) for m in both), 1e-13)
    shapes = [torch.Size([2]), torch.Size([])]
    close(_flat_to_shape(a, (), shapes), theirs_of["misc"]._flat_to_shape(a, (), shapes), 0.0)


def test_find_parameters(ode: Any) -> None:
    find = importlib.import_module(f"{ode.__name__}._impl.adjoint").find_parameters
    net = nn.Linear(2, 3)
    assert [id(x) for x in find(net)] == [id(x) for x in net.parameters()]
    with pytest.raises(AssertionError):
        find(lambda t, y: y)


PROGRAM = """
import sys
import torch
from torchdiffeq import odeint, odeint_adjoint
from torchdiffeq._impl.odeint import SOLVERS
import torchdiffeq
print(torchdiffeq.__name__, sys.argv[1:], float(odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]))[-1]))
"""


@pytest.mark.parametrize("how", ["script", "module", "register"])
def test_an_unmodified_program(how: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    words = {
        "script": ["-m", "odenet.compat.torchdiffeq", "program.py", "--x", "1"],
        "module": ["-m", "odenet.compat.torchdiffeq", "-m", "program", "--x", "1"],
        "register": ["-c", "import odenet.compat.torchdiffeq as d; d.register(); import program", "--x", "1"],
    }[how]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("odenet.compat.torchdiffeq ['--x', '1'] 0.3678")


def test_wrong_ways_to_start() -> None:
    for words, says in (([], "usage"), (["-m"], "-m needs"), (["missing.py"], "no such file: missing.py")):
        done = subprocess.run(
            [sys.executable, "-m", "odenet.compat.torchdiffeq", *words], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2 and says in done.stdout + done.stderr
    with pytest.raises(RuntimeError, match="imported already"):
        sys.modules.setdefault("torchdiffeq", importlib.import_module("types"))
        drop_in.register()
