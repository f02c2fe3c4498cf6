"""Coefficients of implicit Runge-Kutta methods, which check themselves when they are built."""

from __future__ import annotations

import math
from dataclasses import dataclass

_RTOL = 1e-12


@dataclass(frozen=True)
class ImplicitTableau:
    """The Butcher tableau of one implicit Runge-Kutta method, in the notation of Hairer & Wanner II, section IV.5.

        k_i = f(t0 + c_i dt, y0 + dt sum_j a_ij k_j),    y1 = y0 + dt sum_i b_i k_i

    name, order: as in `Tableau`. c: the s nodes. a: s rows of s entries. b: the s weights.

    Raises ValueError where shapes disagree, or rows do not sum to their nodes and the weights to one.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def __post_init__(self) -> None:
        s = len(self.b)
        if len(self.c) != s or len(self.a) != s or any(len(row) != s for row in self.a):
            raise ValueError(f"tableau {self.name!r}: c, b, a and each row of a must have the same number of entries")
        rows = [*((f"a[{i}]", row, node) for i, (row, node) in enumerate(zip(self.a, self.c, strict=True)))]
        for what, row, value in [*rows, ("b", self.b, 1.0)]:
            if not abs(math.fsum(row) - value) <= _RTOL * max(1.0, math.fsum(map(abs, row))):
                raise ValueError(f"tableau {self.name!r}: {what} must sum to {value!r}, got {math.fsum(row)!r}")

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def blocks(self) -> list[range]:
        """Stages that have to be found together, in order; all of them where the matrix is full, one each in a DIRK."""
        out, first, last = [], 0, 0
        for i, row in enumerate(self.a):
            last = max([last, i, *(j for j, x in enumerate(row) if x != 0.0)])
            if last == i:
                out.append(range(first, i + 1))
                first = last = i + 1
        return out
