"""Coefficients of explicit Runge-Kutta methods, checked on construction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

_RTOL = 1e-12


@dataclass(frozen=True)
class Tableau:
    """The Butcher tableau of one explicit Runge-Kutta method.

    The notation is that of Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, section II.1 and, for
    dense output, II.6. Entries are Python floats, so a compiled step sees constants and nothing moves between devices.

        k_i = f(t0 + c_i dt, y0 + dt sum_{j<i} a_ij k_j),    y1 = y0 + dt sum_i b_i k_i

    Attributes:
        name: Name in messages.
        order: Order of the solution, that of `b`.
        c: The s nodes; c[0] == 0.
        a: The strictly lower triangle: row i has i entries, so a[0] == ().
        b: The s weights of the solution. Of an embedded pair, those of higher order (local extrapolation).
        error: b - b_hat, s entries, so that dt * sum_i error_i k_i estimates the local error of the lower-order
            formula. None: the method has no error estimate. Papers print b_hat, or b_hat - b: convert.
        embedded_order: Order of b_hat = b - error; None if and only if `error` is None.
        fsal: "First same as last": the last stage is f(t1, y1), the first stage of the next step. Requires
            a[-1] == b[:-1], b[-1] == 0 and c[-1] == 1.
        dense: The interpolant in the layout of SciPy's `P`, which starts at theta^1:
            y(t0 + theta dt) = y0 + dt sum_i k_i sum_d dense[i][d] theta^(d+1). One row for each stage, then one for
            each extra stage. None: cubic Hermite through y0, f(t0, y0), y1, f(t1, y1).
        dense_order: Uniform order of the interpolant: its local error is O(dt^(dense_order + 1)) for every theta.
            Set to min(3, order) where `dense` is None.
        extra_c: Nodes of the extra stages, used by the dense output alone; evaluated on request, on accepted steps.
        extra_a: Row j has s + j entries: the stages, then the extra stages before it. A row equal to `b`, at node 1, is
            f(t1, y1): the first stage of the next step of a method that is not FSAL.

    Raises:
        ValueError: If shapes disagree or a consistency condition fails; the message names the method, the row and the
            value. Order conditions beyond the first are tested, not checked here.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] | None = None
    embedded_order: int | None = None
    fsal: bool = False
    dense: tuple[tuple[float, ...], ...] | None = None
    dense_order: int = 3
    extra_c: tuple[float, ...] = ()
    extra_a: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        """Check every field against the others."""
        if self.dense is None:
            object.__setattr__(self, "dense_order", min(3, self.order))
        self._check_shapes()
        self._check_stages()
        self._check_weights()
        if self.fsal:
            self._check_fsal()
        if self.dense is not None:
            self._check_dense(self.dense)

    @property
    def stages(self) -> int:
        """Number of stages of a step, without extra stages."""
        return len(self.b)

    @property
    def extra_stages(self) -> int:
        """Number of evaluations of f that the dense output adds to an accepted step."""
        return len(self.extra_c)

    @property
    def error_state_weights(self) -> tuple[float, ...]:
        """w with sum_i error_i g_i = dt sum_j w_j k_j, where g_i = y0 + dt sum_j a_ij k_j is the state of stage i."""
        return () if self.error is None else _error_state_weights(self.a, self.error)

    @property
    def real_stability(self) -> float:
        """The largest x <= 100, to 0.01, for which steps are stable at every dt * eigenvalue in [-x, 0]."""
        return _real_stability(self.a, self.b)

    def _check_shapes(self) -> None:
        s, extra = self.stages, self.extra_stages
        self._check_length("b", s, "at least one stage", max(s, 1))
        self._check_length("c", len(self.c), "one node for each entry of b", s)
        self._check_length("a", len(self.a), "one row for each entry of b", s)
        self._check_length("extra_a", len(self.extra_a), "one row for each entry of extra_c", extra)
        for i, row in enumerate(self.a):
            self._check_length(f"a[{i}]", len(row), "the strictly lower triangle", i)
        for j, row in enumerate(self.extra_a):
            self._check_length(f"extra_a[{j}]", len(row), "the stages and the extra stages before it", s + j)
        if self.error is not None:
            self._check_length("error", len(self.error), "one entry for each entry of b", s)
        if (self.error is None) != (self.embedded_order is None):
            self._fail("error and embedded_order go together", f"got {self.error} and {self.embedded_order}")
        if self.dense is None:
            if extra:
                self._fail("extra stages need `dense`", f"got {extra} of them and dense=None")
            return
        self._check_length("dense", len(self.dense), "one row for each stage and each extra stage", s + extra)
        degree = max(len(self.dense[0]), 1)
        for i, row in enumerate(self.dense):
            self._check_length(f"dense[{i}]", len(row), "the same degree in every row", degree)

    def _check_stages(self) -> None:
        for i, (node, row) in enumerate(zip(self.c, self.a, strict=True)):
            self._check_sum(f"a[{i}]", row, f"c[{i}]", node)
        for j, (node, row) in enumerate(zip(self.extra_c, self.extra_a, strict=True)):
            self._check_sum(f"extra_a[{j}]", row, f"extra_c[{j}]", node)

    def _check_weights(self) -> None:
        self._check_sum("b", self.b, "one", 1.0)
        if self.error is not None:
            self._check_sum("error", self.error, "zero", 0.0)

    def _check_fsal(self) -> None:
        if self.a[-1] != self.b[:-1]:
            self._fail(f"fsal=True needs a[{self.stages - 1}] to equal b[:-1]", f"got {self.a[-1]} and {self.b[:-1]}")
        if self.b[-1] != 0.0:
            self._fail(f"fsal=True needs b[{self.stages - 1}] == 0", f"got {self.b[-1]}")
        if self.c[-1] != 1.0:
            self._fail(f"fsal=True needs c[{self.stages - 1}] == 1", f"got {self.c[-1]}")

    def _check_dense(self, dense: tuple[tuple[float, ...], ...]) -> None:
        if not 1 <= self.dense_order <= self.order:
            self._fail(f"dense_order must lie between 1 and the order {self.order}", f"got {self.dense_order}")
        for i, (row, weight) in enumerate(zip(dense, self.b + (0.0,) * self.extra_stages, strict=True)):
            self._check_sum(f"dense[{i}]", row, f"b[{i}]" if i < self.stages else "zero (an extra stage)", weight)
        for d, column in enumerate(zip(*dense, strict=True)):
            self._check_sum(f"dense[:][{d}]", column, "zero" if d else "one (the slope of y' = 1)", 0.0 if d else 1.0)

    def _check_length(self, what: str, length: int, rule: str, expected: int) -> None:
        if length != expected:
            self._fail(f"{what} must have {expected} entries ({rule})", f"got {length}")

    def _check_sum(self, what: str, row: Iterable[float], target: str, value: float) -> None:
        row = tuple(row)
        total = math.fsum(row)
        # `not <=` so that NaN fails; relative to the sum of magnitudes, because large terms may cancel
        if not abs(total - value) <= _RTOL * max(1.0, math.fsum(map(abs, row))):
            self._fail(f"{what} must sum to {target} = {value!r}", f"got {total!r}")

    def _fail(self, rule: str, got: str) -> None:
        raise ValueError(f"tableau {self.name!r}: {rule}, {got}")


_Matrix = tuple[tuple[float, ...], ...]


@lru_cache(maxsize=64)
def _error_state_weights(a: _Matrix, error: tuple[float, ...]) -> tuple[float, ...]:
    pairs = list(zip(error, a, strict=True))
    return tuple(math.fsum(e * row[j] for e, row in pairs if j < len(row)) for j in range(len(a)))


@lru_cache(maxsize=64)
def _real_stability(a: _Matrix, b: tuple[float, ...]) -> float:
    for n in range(1, 10_000):
        z, states = -0.01 * n, list[float]()  # y' = y from y0 = 1 with the step z: the stability function R(z)
        for row in a:
            states.append(1.0 + z * math.fsum(x * g for x, g in zip(row, states, strict=True)))
        if abs(1.0 + z * math.fsum(x * g for x, g in zip(b, states, strict=True))) > 1.0 + 1e-9:
            return 0.01 * (n - 1)
    return 100.0
