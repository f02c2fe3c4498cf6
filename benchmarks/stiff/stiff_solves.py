"""One solve of a stiff problem by odenet, SciPy or diffrax."""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp

import odenet

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from stiff_problems import PROBLEMS, StiffProblem

MAX_STEPS = 200_000
SOLVERS = (
    *(f"odenet {name}" for name in ("radauIIA5", "esdirk54", "kvaerno5", "kvaerno3", "trbdf2")),
    *("SciPy Radau", "SciPy BDF", "SciPy LSODA", "diffrax Kvaerno5", "diffrax Kvaerno3"),
)
# the tightest tolerance of a method of low order, which takes too many steps beyond it
LOW_ORDER = {"odenet kvaerno3": 1e-6, "odenet trbdf2": 1e-6, "diffrax Kvaerno3": 1e-6}


@dataclass(frozen=True)
class Row:
    """One solve. Counts are None where the library does not give them; seconds are without compilation.

    nfe: as the library counts it. evaluations: of f, without those of Jacobians. digits: `StiffProblem.scd`; None
    where the solve failed.
    """

    problem: str
    solver: str
    rtol: float
    accepted: int | None = None
    rejected: int | None = None
    nfe: int | None = None
    evaluations: int | None = None
    njev: int | None = None
    nlu: int | None = None
    digits: float | None = None
    seconds: float | None = None
    note: str = ""

    @property
    def steps(self) -> int | None:
        """Return the attempted steps: accepted and, where they are known, rejected ones."""
        return None if self.accepted is None else self.accepted + (self.rejected or 0)

    @property
    def work(self) -> int | None:
        """Return the evaluations, and one for each component of each Jacobian, as finite differences need."""
        if self.evaluations is None or self.njev is None:
            return None
        return self.evaluations + by_name(self.problem).y0.numel() * self.njev


def by_name(name: str) -> StiffProblem:
    return next(p for p in PROBLEMS if p.name == name)


def tolerances(solver: str) -> list[float]:
    return [rtol for rtol in (10.0**-k for k in range(3, 9)) if rtol > 0.9 * LOW_ORDER.get(solver, 0.0)]


def _digits(problem: StiffProblem, y1: Any) -> float | None:
    digits = problem.scd(y1)
    return digits if math.isfinite(digits) else None


def _first_line(message: object) -> str:
    return (str(message).strip().splitlines() or [""])[0][:200]


def solve_with_odenet(p: StiffProblem, solver: str, rtol: float) -> Row:
    row, start = Row(p.name, solver, rtol), time.perf_counter()
    how: dict[str, Any] = {
        "method": solver.split()[1],
        "rtol": rtol,
        "atol": rtol * p.atol_over_rtol,
        "max_steps": MAX_STEPS,
    }
    try:
        with torch.no_grad():
            sol = odenet.solve(p.f, p.y0, [0.0, p.t1], **how)
    except odenet.SolveError as e:
        return replace(row, seconds=time.perf_counter() - start, note=f"failed: {type(e).__name__}: {_first_line(e)}")
    seconds = time.perf_counter() - start
    counts = {name: int(sol.stats[name]) for name in ("accepted", "rejected", "nfe", "njev", "nlu")}
    outside = counts["nfe"] - counts["njev"]
    return replace(row, **counts, evaluations=outside, digits=_digits(p, sol.y1), seconds=seconds)


def solve_with_scipy(p: StiffProblem, solver: str, rtol: float) -> Row:
    times: set[float] = set()

    def f(t: float, y: np.ndarray) -> np.ndarray:
        times.add(float(t))
        return p.numpy_f(t, y)

    start, method = time.perf_counter(), solver.split()[1]
    sol = solve_ivp(f, (0.0, p.t1), p.y0.numpy(), method=method, rtol=rtol, atol=rtol * p.atol_over_rtol)
    seconds, accepted = time.perf_counter() - start, sol.t.size - 1
    # the start, the trial of the first step, and then three stages of each attempt
    rejected = round((len(times) - 2) / 3) - accepted if method == "Radau" else None
    within = p.y0.numel() * sol.njev if method == "LSODA" else 0
    counts = {"nfe": int(sol.nfev), "njev": int(sol.njev), "nlu": int(sol.nlu), "evaluations": int(sol.nfev - within)}
    note = "" if sol.success else f"failed: {_first_line(sol.message)}"
    digits = _digits(p, sol.y[:, -1]) if sol.success else None
    return Row(p.name, solver, rtol, accepted, rejected, **counts, digits=digits, seconds=seconds, note=note)


def solve_with_diffrax(problems: list[str], solvers: list[str]) -> list[dict[str, Any]]:
    """Return the fields of `Row` for every solve, in a child process with float64 in JAX."""
    return [row for name in problems for solver in solvers for row in _diffrax_rows(by_name(name), solver)]


def _diffrax_rows(p: StiffProblem, solver: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each tolerance; where diffrax finds no first step, from a given one."""
    import diffrax  # pyright: ignore[reportMissingImports]  (the extra `bench`)
    import jax  # pyright: ignore[reportMissingImports]

    formulas = inspect.getclosurevars(p.numpy_f).nonlocals["formulas"]  # on a list of components, of any library
    term = diffrax.ODETerm(lambda t, y, args: jax.numpy.stack(formulas(list(y))))

    @jax.jit
    def solve(y0: Any, rtol: float, atol: float, dt0: float | None) -> Any:
        sol = diffrax.diffeqsolve(
            term,
            getattr(diffrax, solver.split()[1])(),
            0.0,
            p.t1,
            dt0,
            y0,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, pcoeff=0.3, icoeff=0.4),
            saveat=diffrax.SaveAt(t1=True),
            max_steps=MAX_STEPS,
            throw=False,
        )
        ys, ts = sol.ys, sol.ts
        assert ys is not None and ts is not None
        return ys[-1], sol.stats, sol.result == diffrax.RESULTS.successful, ts[-1]

    for rtol in tolerances(solver):
        notes, row = [], {}
        for dt0 in (None, 1e-6):
            inputs = (jax.numpy.array(p.y0.tolist()), rtol, rtol * p.atol_over_rtol, dt0)
            jax.block_until_ready(solve(*inputs))  # compiles
            start = time.perf_counter()
            y1, stats, ok, t = jax.block_until_ready(solve(*inputs))
            counts = {k: int(stats[f"num_{k}_steps"]) for k in ("accepted", "rejected")}
            row: dict[str, Any] = {
                "problem": p.name,
                "solver": solver,
                "rtol": rtol,
                "seconds": time.perf_counter() - start,
                **counts,
            }
            if bool(ok):
                row["digits"] = _digits(p, y1.tolist())
                notes += [] if dt0 is None else [f"run with dt0={dt0:g}"]
                break
            notes.append(f"fails at t={float(t):.3g} with dt0={dt0}")
        yield row | {"note": ("" if row.get("digits") is not None else "failed: ") * bool(notes) + ", ".join(notes)}
