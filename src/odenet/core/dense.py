"""One local polynomial over a step: y(theta) = y0 + sum_d theta^(d+1) coefficients[d], theta = (t - t0) / (t1 - t0)."""

from __future__ import annotations

from collections.abc import Sequence

from .leaves import Leaves, scale

Coefficients = tuple[Leaves, ...]


def hermite(dt: Leaves, y0: Leaves, y1: Leaves, f0: Leaves, f1: Leaves) -> Coefficients:
    """The cubic through both ends with both slopes: order 3, from what every method has. dt: spread over the leaves."""
    d0, d1 = scale(dt, f0), scale(dt, f1)
    rise = tuple(b - a for a, b in zip(y0, y1, strict=True))
    square = tuple((3 * r).sub_(a, alpha=2).sub_(b) for r, a, b in zip(rise, d0, d1, strict=True))
    cube = tuple(r.sub_(a).sub_(s) for r, a, s in zip(rise, d0, square, strict=True))  # r - a - s = a + b - 2 r
    return (d0, square, cube)


def slope_at_end(coefficients: Sequence[Leaves]) -> Leaves:
    """dy/dtheta at theta = 1."""
    total = coefficients[0]
    for d, c in enumerate(coefficients[1:], 2):
        total = tuple(a + d * b for a, b in zip(total, c, strict=True))
    return total


def slope(coefficients: Sequence[Leaves], theta: Leaves) -> Leaves:
    """dy/dtheta at theta, which is given as in `evaluate`."""
    out = []
    for i, x in enumerate(theta):
        total, count = coefficients[-1][i] * len(coefficients), len(coefficients)
        for d in range(count - 1, 0, -1):
            total = total * x + d * coefficients[d - 1][i]
        out.append(total)
    return tuple(out)


def evaluate(y0: Leaves, coefficients: Sequence[Leaves], theta: Leaves) -> Leaves:
    """Horner; `theta` holds one tensor a leaf that broadcasts against the leaf, in its real dtype."""
    out = []
    for i, (start, x) in enumerate(zip(y0, theta, strict=True)):
        total = coefficients[-1][i] * x
        for c in reversed(coefficients[:-1]):
            total = (total + c[i]) * x
        out.append(start + total)
    return tuple(out)
