"""The local polynomial of one step: y(theta) = y0 + sum_d theta^(d+1) coefficients[d], theta = (t - t0) / (t1 - t0)."""

from __future__ import annotations

from collections.abc import Sequence

from .leaves import Leaves, scale

Coefficients = tuple[Leaves, ...]


def hermite(dt: Leaves, y0: Leaves, y1: Leaves, f0: Leaves, f1: Leaves) -> Coefficients:
    """The cubic with the values y0, y1 and the slopes f0, f1 at both ends: order 3. dt comes from `expand_over`."""
    d0, d1 = scale(dt, f0), scale(dt, f1)
    rise = tuple(b - a for a, b in zip(y0, y1, strict=True))
    quadratic = tuple((3 * r).sub_(a, alpha=2).sub_(b) for r, a, b in zip(rise, d0, d1, strict=True))
    cubic = tuple(r.sub_(a).sub_(q) for r, a, q in zip(rise, d0, quadratic, strict=True))  # r - a - q = a + b - 2 r
    return (d0, quadratic, cubic)


def slope_at_end(coefficients: Sequence[Leaves]) -> Leaves:
    """dy/dtheta at theta = 1."""
    total = coefficients[0]
    for power, c in enumerate(coefficients[1:], 2):
        total = tuple(a + power * b for a, b in zip(total, c, strict=True))
    return total


def slope(coefficients: Sequence[Leaves], theta: Leaves) -> Leaves:
    """dy/dtheta at theta, with theta as in `evaluate`."""
    out = []
    degree = len(coefficients)
    for i, x in enumerate(theta):
        total = coefficients[-1][i] * degree
        for d in range(degree - 1, 0, -1):
            total = total * x + d * coefficients[d - 1][i]
        out.append(total)
    return tuple(out)


def evaluate(y0: Leaves, coefficients: Sequence[Leaves], theta: Leaves) -> Leaves:
    """y(theta) by Horner's rule; theta: for each leaf a tensor in its real dtype that broadcasts against it."""
    out = []
    for i, (start, x) in enumerate(zip(y0, theta, strict=True)):
        total = coefficients[-1][i] * x
        for c in reversed(coefficients[:-1]):
            total = (total + c[i]) * x
        out.append(start + total)
    return tuple(out)
