"""Roots of functions of one variable on [0, 1]: how to find the first of them, also where two lie close together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch

Function = Callable[[float], float]

NODES = 9  # samples of a function on a step: its Chebyshev polynomial of degree 8
_FINE = 96  # intervals on which the sign of that polynomial is looked at
_DOUBT = 0.05  # an extremum within this part of the samples' range is looked at itself


@cache
def nodes() -> tuple[float, ...]:
    """The Chebyshev points of [0, 1], both ends among them."""
    return tuple((1 - math.cos(math.pi * i / (NODES - 1))) / 2 for i in range(NODES))


@cache
def _fine() -> tuple[tuple[float, ...], torch.Tensor]:
    """Points, and the matrix that takes samples at the nodes to the values of their polynomial there.

    By the barycentric formula: J.-P. Berrut, L. N. Trefethen, Barycentric Lagrange interpolation, SIAM Review 46
    (2004), 501-517.
    """
    x = nodes()
    points = sorted({i / _FINE for i in range(_FINE + 1)} | set(x))
    weights = [(-1.0) ** i * (0.5 if i in (0, NODES - 1) else 1.0) for i in range(NODES)]
    rows = []
    for point in points:
        if point in x:
            rows.append([float(point == node) for node in x])
            continue
        terms = [w / (point - node) for w, node in zip(weights, x, strict=True)]
        rows.append([term / sum(terms) for term in terms])
    return tuple(points), torch.tensor(rows, dtype=torch.float64)


class Root(NamedTuple):
    """where: in (0, 1]. rising: the function goes from negative to positive there."""

    where: float
    rising: bool


def first_root(g: Function, samples: Sequence[float], direction: int, sign: float) -> Root | None:
    """The first crossing of g in (0, 1], given its samples at `nodes()`.

    direction: +1 for crossings from negative to positive, -1 for the others, 0 for both. sign: that of g before 0,
    where g(0) itself may be zero. A crossing needs both signs: a touch is none. What the samples' polynomial says is
    checked by g itself.
    """
    points, interpolate = _fine()
    values = (interpolate @ torch.tensor(samples, dtype=torch.float64)).tolist()
    doubt = _DOUBT * (max(samples) - min(samples))
    seen: dict[float, float] = dict(zip(nodes(), samples, strict=True))

    def true(x: float) -> float:
        if x not in seen:
            seen[x] = g(x)
        return seen[x]

    left, i = points[0], 0
    while i < len(points) - 1:
        i += 1
        right = points[i]
        crosses = values[i] * sign < 0 or (values[i] == 0.0 and i == len(points) - 1)
        valley = i < len(points) - 1 and abs(values[i]) <= doubt and _turns(values, i, sign)
        if not crosses and not valley:
            continue
        if true(right) * sign >= 0 and not (right == 1.0 and true(right) == 0.0):
            begin, end = left if crosses else points[i - 1], points[min(i + 1, len(points) - 1)]
            low = _lowest(lambda x, side=sign: side * true(x), begin, right, end)
            if low is None:
                continue
            right = low
        start = max((x for x, value in seen.items() if x < right and value * sign > 0 and x >= left), default=left)
        where = _refined(true, start, right, sign) if true(right) != 0.0 else right
        rising = sign < 0
        if direction == 0 or (direction > 0) == rising:
            return Root(where, rising)
        sign, left = -sign, right
        while i < len(points) - 1 and points[i] < right:
            i += 1
    return None


def _turns(values: Sequence[float], i: int, sign: float) -> bool:
    """Whether |values| have a local minimum at i, on the side of `sign`."""
    return sign * values[i] <= sign * values[i - 1] and sign * values[i] <= sign * values[i + 1]


def _lowest(g: Function, left: float, middle: float, right: float) -> float | None:
    """A point of [left, right] where g is negative, by golden section; None where its minimum is not."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = left, right
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    for x in (middle, c, d):
        if g(x) < 0:
            return x
    for _ in range(40):
        if g(c) < g(d):
            b, d = d, c
            c = b - ratio * (b - a)
            new = c
        else:
            a, c = c, d
            d = a + ratio * (b - a)
            new = d
        if g(new) < 0:
            return new
        if b - a < 1e-9:
            break
    return None


def _refined(g: Function, a: float, b: float, sign: float) -> float:
    """The root between a, where g has `sign` (or is zero at the very start), and b, where it has the other.

    T. R. Chandrupatla, A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without
    using derivatives, Advances in Engineering Software 28 (1997), 145-149.
    """
    fa, fb = g(a), g(b)
    if fa * sign <= 0:
        fa = math.copysign(1e-300, sign)
    c, fc, part, best = a, fa, 0.5, b
    a, b, fa, fb = b, a, fb, fa
    for _ in range(100):
        x = a + part * (b - a)
        fx = g(x)
        if fx == 0.0:
            return x
        if (fx > 0) == (fa > 0):
            c, fc = a, fa
        else:
            c, fc, b, fb = b, fb, a, fa
        a, fa = x, fx
        best = a if abs(fa) < abs(fb) else b
        tolerance = 2e-16 + 4e-16 * abs(best)
        least = tolerance / abs(b - c) if b != c else 1.0
        if least > 0.5:
            return best
        xi, phi = (a - b) / (c - b) if c != b else 1.0, (fa - fb) / (fc - fb) if fc != fb else 1.0
        if phi * phi < xi and (1 - phi) ** 2 < 1 - xi and fa != fb and fc != fb and fc != fa and c != a:
            part = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        else:
            part = 0.5
        part = min(max(part, least), 1 - least)
    return best
