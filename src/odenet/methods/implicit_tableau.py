"""Coefficients of implicit Runge-Kutta methods, checked on construction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

_RTOL = 1e-12


@dataclass(frozen=True)
class ImplicitTableau:
    """The Butcher tableau of one implicit Runge-Kutta method, in the notation of Hairer & Wanner II, section IV.5.

        k_i = f(t0 + c_i dt, y0 + dt sum_j a_ij k_j),    y1 = y0 + dt sum_i b_i k_i

    Attributes:
        name: Name in messages.
        order: Order of `b`.
        c: The s nodes.
        a: s rows of s entries.
        b: The s weights.
        error: e with r = dt (start f(t0, y0) + sum_i e_i k_i) an unfiltered error estimate. The estimate is
            (I - dt g J)^-1 r, with g the diagonal entry of a stage that is solved alone, or the real eigenvalue of `a`.
            Hosea & Shampine 1996 ("smoothed"), Hairer & Wanner II, (IV.8.19). None: there is no estimate.
        start: Weight of the slope at t0 in the estimate, for methods whose first stage is not that slope.
        error_order: k, where the estimate falls like dt^k for smooth solutions.
        caution: Factor of the estimate, where the estimate is small beside the error of the solution.
        dense: The interpolant, one row for each stage and each extra stage: y(t0 + theta dt) = y0 + dt sum_i k_i sum_d
            dense[i][d] theta^(d+1). None: cubic Hermite.
        extra_c: Nodes of the extra stages, used by the dense output alone and solved on request: see `refined`.
        extra_a: Row j has s + 1 entries: the stages, and the extra stage itself.
        extra_predictor: Row j has the weights of the stages' slopes whose sum is the guess of extra stage j.
        predictor: Row i has the weights of earlier slopes whose sum is the guess of k_i, for stages solved alone.

    Raises:
        ValueError: If shapes disagree, a row does not sum to its node, or the weights do not sum to one.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] | None = None
    start: float = 0.0
    error_order: int | None = None
    caution: float = 1.0
    dense: tuple[tuple[float, ...], ...] | None = None
    predictor: tuple[tuple[float, ...], ...] | None = None
    extra_c: tuple[float, ...] = ()
    extra_a: tuple[tuple[float, ...], ...] = ()
    extra_predictor: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        s = len(self.b)
        if len(self.c) != s or len(self.a) != s or any(len(row) != s for row in self.a):
            raise ValueError(f"tableau {self.name!r}: c, b, a and each row of a must have the same number of entries")
        if (self.error is None) != (self.error_order is None):
            raise ValueError(f"tableau {self.name!r}: error and error_order go together")
        sums = [*((f"a[{i}]", row, node) for i, (row, node) in enumerate(zip(self.a, self.c, strict=True)))]
        sums.append(("b", self.b, 1.0))
        if self.error is not None:
            self._check_length("error", len(self.error))
            sums.append(("start and error", (self.start, *self.error), 0.0))
        if len(self.extra_a) != len(self.extra_c) or any(len(row) != s + 1 for row in self.extra_a):
            raise ValueError(f"tableau {self.name!r}: extra_a must have a row of {s + 1} entries for each of extra_c")
        sums += [(f"extra_a[{i}]", row, c) for i, (row, c) in enumerate(zip(self.extra_a, self.extra_c, strict=True))]
        if self.dense is not None:
            weights = self.b + (0.0,) * len(self.extra_c)
            if len(self.dense) != len(weights):
                raise ValueError(f"tableau {self.name!r}: dense must have {len(weights)} rows, got {len(self.dense)}")
            sums += [(f"dense[{i}]", row, b) for i, (row, b) in enumerate(zip(self.dense, weights, strict=True))]
        if self.predictor is not None:
            self._check_length("predictor", len(self.predictor))
            sums += [(f"predictor[{i}]", row, 1.0) for i, row in enumerate(self.predictor) if any(row)]
        for what, row, value in sums:
            # `not <=` so that NaN fails
            if not abs(math.fsum(row) - value) <= _RTOL * max(1.0, math.fsum(map(abs, row))):
                raise ValueError(f"tableau {self.name!r}: {what} must sum to {value!r}, got {math.fsum(row)!r}")

    def _check_length(self, what: str, length: int) -> None:
        if length != len(self.b):
            raise ValueError(f"tableau {self.name!r}: {what} must have an entry for each of b, got {length}")

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def stiffly_accurate(self) -> bool:
        """True where the state of the last stage is y1."""
        return self.a[-1] == self.b

    @property
    def blocks(self) -> list[range]:
        """The stages in groups to be solved together, in order: one per group in a DIRK, all s where `a` is full."""
        blocks: list[range] = []
        first, last = 0, 0
        for i, row in enumerate(self.a):
            last = max([last, i, *(j for j, x in enumerate(row) if x != 0.0)])
            if last == i:
                blocks.append(range(first, i + 1))
                first = last = i + 1
        return blocks


def collocation(c: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """`dense` of a collocation method: its polynomial has the slopes of the stages at the nodes."""
    return tuple(tuple(x / (d + 1) for d, x in enumerate(basis)) for basis in _lagrange(c))


def refined(tableau: ImplicitTableau, nodes: Sequence[float]) -> ImplicitTableau:
    """The same method with a dense output that is accurate for stiff components too, by an extra stage at each node.

    With p the polynomial of `dense`, g the diagonal entry and theta a node, the extra stage satisfies

        Y = p(theta) + g dt (f(t0 + theta dt, Y) - p'(theta)).

    It is as accurate as p where the equation is not stiff, and lies on the slow manifold where it is. The new
    polynomial interpolates these states and both ends of the step.
    """
    assert tableau.dense is not None
    s, g, count = len(tableau.b), tableau.a[-1][-1], len(nodes)
    slopes = [tuple(math.fsum((d + 1) * w * x**d for d, w in enumerate(row)) for row in tableau.dense) for x in nodes]
    values = [tuple(math.fsum(w * x ** (d + 1) for d, w in enumerate(row)) for row in tableau.dense) for x in nodes]
    extra_a = [(*(v - g * k for v, k in zip(*pair, strict=True)), g) for pair in zip(values, slopes, strict=True)]
    basis = _lagrange((0.0, *nodes, 1.0))[1:]
    # weights of all slopes in the states at the inner nodes and at the end
    states = (
        *((*row[:s], *(g * (i == j) for j in range(count))) for i, row in enumerate(extra_a)),
        (*tableau.b, *(0.0,) * count),
    )
    dense = tuple(
        tuple(math.fsum(state[k] * b[d + 1] for state, b in zip(states, basis, strict=True)) for d in range(count + 1))
        for k in range(s + count)
    )
    return replace(tableau, dense=dense, extra_c=tuple(nodes), extra_a=tuple(extra_a), extra_predictor=tuple(slopes))


def _lagrange(nodes: Sequence[float]) -> list[list[float]]:
    """The Lagrange basis: for each node the polynomial that is one there and zero at the others, rising powers."""
    polynomials: list[list[float]] = []
    for i, node in enumerate(nodes):
        polynomial = [1.0]
        for j, other in enumerate(nodes):
            if j != i:
                shifted = zip([0.0, *polynomial], [*(-other * x for x in polynomial), 0.0], strict=True)
                polynomial = [(a + b) / (node - other) for a, b in shifted]
        polynomials.append(polynomial)
    return polynomials
