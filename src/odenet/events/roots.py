"""The first root on [0, 1] of each of many functions of one variable, also where two roots lie close together.

All functions are searched together: tensors without a comment have one entry for each function, in any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .chebyshev import fine_grid, last_coefficients, node_grid, node_points, nodes, value_at

Function = Callable[[Tensor, Tensor], Tensor]
"""(points, needed) -> values: one point for each function; values that are not needed may be anything."""

_NEAR_ZERO = 0.05  # an extremum within this fraction of the values' range from zero is checked by the function
_GOLDEN = (math.sqrt(5) - 1) / 2
# The Lebesgue constant of 9 Chebyshev points is 2.1, so the polynomial exceeds the range of the values by at most 0.55
# of it: with _NEAR_ZERO, a function whose values have one sign and are further than this fraction from zero has no
# root that the polynomial could show.
_FAR = 0.6
_FAR_UNRESOLVED = 4.0  # the same where the values are too few, and many waves may lie between them
_HALVINGS = 6  # so that a step may have some sixty waves
_RESOLVED = 0.05  # nine values are enough if the last three coefficients are below this fraction of their range: a wave
_JUST_PAST = 1e-7  # a function that has its old sign this far past a zero (which may be past 1) only touches zero there
_CHECKPOINTS = (0.2871, 0.7643)  # where the polynomial is compared with the function itself


class RootQuery(NamedTuple):
    """Which crossings are searched for.

    direction: +1 from negative to positive values, -1 from positive to negative ones, 0 both; becoming exactly zero
    counts too. sign: of the function before `left`, where its value may be zero; 0: the function is not searched.
    zeros_from: from here on a value of exactly zero is a root; before, only values of the other sign count.
    """

    direction: Tensor
    sign: Tensor
    left: Tensor
    zeros_from: Tensor

    def select(self, mask: Tensor) -> RootQuery:
        return RootQuery(*(x.expand_as(mask)[mask] for x in self))


class Roots(NamedTuple):
    """The first root of each function.

    A root is where the function leaves its sign: there it is zero, or has the other sign. A touch of zero, with the
    same sign before and after it, is none.

    where: in (0, 1]; inf for no root. rising: the values before the root are negative. sign: where there is no root,
    the sign of the function at 1, 0 where it is zero. since: the function has its sign before the root from here on.
    """

    where: Tensor
    rising: Tensor
    sign: Tensor
    since: Tensor


def first_roots(
    g: Function, values: Tensor, query: RootQuery, rounding: float = 0.0, halvings: int = _HALVINGS
) -> Roots:
    """The first crossing of each function in (0, 1]. values: at `nodes()`, on a last axis.

    Roots of the polynomial through the values are checked by g itself; where nine values are too few for the function,
    both halves of the interval are searched. rounding: of g's values, in units of the largest of `values`.
    """
    sign = query.sign
    signed = values * sign.unsqueeze(-1)
    least = signed.amin(-1)
    size = signed.amax(-1) - least
    possible = (sign != 0) & (least <= _FAR_UNRESOLVED * size) & ((size > 0) | (least < 0))
    near = possible & (least <= _FAR * size)
    unresolved = possible & _unresolved(g, values, size, near & (halvings > 0))
    roots = Roots(torch.full_like(sign, torch.inf), torch.zeros_like(near), sign.clone(), query.left.clone())
    by_halves = partial(_on_halves, halvings=halvings - 1) if halvings else partial(_first_roots, smooth=False)
    for mask, search in ((near & ~unresolved, _first_roots), (unresolved, by_halves)):
        if bool(mask.any()):
            found = search(_subset(g, mask, sign), values[mask], query.select(mask), rounding=rounding)
            for full, part in zip(roots, found, strict=True):
                full[mask] = part
    return roots


def _unresolved(g: Function, values: Tensor, size: Tensor, check: Tensor) -> Tensor:
    """True where nine values are too few: the coefficients do not decay or, in `check`, g is off between the nodes."""
    bound = _RESOLVED * size
    unresolved = (values @ last_coefficients().to(values.device)).abs().sum(-1) > bound
    for x in _CHECKPOINTS:
        needed = check & ~unresolved
        if not bool(needed.any()):
            break
        interpolated = (values @ value_at(x).to(values.device))[..., 0]
        unresolved = unresolved | (needed & ((g(torch.full_like(size, x), needed) - interpolated).abs() > bound))
    return unresolved


def _subset(g: Function, mask: Tensor, like: Tensor) -> Function:
    """The functions in the mask, as one axis."""
    if bool(mask.all()):
        return lambda x, needed: g(x.view_as(like), needed.view_as(like)).view(-1)

    def g_of_subset(x: Tensor, needed: Tensor) -> Tensor:
        full_x, full_needed = torch.zeros_like(like), torch.zeros_like(mask)
        full_x[mask], full_needed[mask] = x, needed
        return g(full_x, full_needed)[mask]

    return g_of_subset


def _on_halves(g: Function, values: Tensor, query: RootQuery, rounding: float, halvings: int) -> Roots:
    """`first_roots` on the first half of the interval; on the second half for functions without a root in the first."""
    direction, sign, left, zeros_from = query
    where, rising = torch.full_like(sign, torch.inf), torch.zeros_like(sign, dtype=torch.bool)
    since = left.clone()
    middle = g(torch.full_like(sign, 0.5), ~rising)
    for begin, first, last in ((0.0, values[..., 0], middle), (0.5, middle, values[..., -1])):
        searched = torch.isinf(where)
        if not bool(searched.any()):
            break

        def half(x: Tensor, needed: Tensor, begin: float = begin) -> Tensor:
            return g(begin + x / 2, needed)

        inner = [half(torch.full_like(sign, x), searched) for x in nodes()[1:-1]]
        half_left, half_zeros_from = (2 * (left - begin)).clamp(0.0, 1.0), 2 * (zeros_from - begin)
        half_values = torch.stack([first, *inner, last], -1)
        if begin:  # a function that has been zero so far has the first sign that it takes
            sign = torch.where(searched & (sign == 0), _first_sign(half_values), sign)
        half_sign = torch.where(searched, sign, 0.0)
        half_query = RootQuery(direction, half_sign, half_left, half_zeros_from)
        found = first_roots(half, half_values, half_query, rounding, halvings)
        where = torch.where(searched, begin + found.where / 2, where)
        # a sign that holds since before this half keeps the `since` of the half before
        since = torch.where(searched & (found.since > 0), begin + found.since / 2, since)
        rising, sign = torch.where(searched, found.rising, rising), torch.where(searched, found.sign, sign)
    return Roots(where, rising, sign, since)


def _first_sign(values: Tensor) -> Tensor:
    """The sign of the first value that is not zero."""
    return values.gather(-1, (values != 0).to(torch.uint8).argmax(-1, keepdim=True)).squeeze(-1).sign()


def _first_roots(g: Function, node_values: Tensor, query: RootQuery, rounding: float, smooth: bool = True) -> Roots:
    """`first_roots` for functions near zero. smooth: use the polynomial; else only the signs at the nodes."""
    direction, sign, left, zeros_from = query
    points, interpolate, is_node = (x.to(node_values.device) for x in (fine_grid() if smooth else node_grid()))
    values, index = node_values @ interpolate.mT, torch.arange(len(points), device=node_values.device)
    near = (values.abs() <= _NEAR_ZERO * (node_values.amax(-1, True) - node_values.amin(-1, True))) & smooth
    zero = (values == 0) & is_node & (points >= zeros_from.unsqueeze(-1))
    where, rising = torch.full_like(sign, torch.inf), torch.zeros_like(sign, dtype=torch.bool)
    passed, searched, since = torch.searchsorted(points, left, right=True) - 1, sign != 0, left
    while True:
        # the first point, past those that were checked, where the polynomial crosses zero or comes near it
        signed = values * sign.unsqueeze(-1)
        crosses, valley = (signed < 0) | zero, torch.zeros_like(near)
        inner = signed[..., 1:-1]
        valley[..., 1:-1] = near[..., 1:-1] & (inner <= signed[..., :-2]) & (inner <= signed[..., 2:])
        suspect = (crosses | valley) & (index > passed.unsqueeze(-1)) & searched.unsqueeze(-1)
        searched = suspect.any(-1)
        if not bool(searched.any()):
            return Roots(where, rising, sign, since)
        i = suspect.to(torch.uint8).argmax(-1)
        by_sign, at_zero = (x.gather(-1, i.unsqueeze(-1)).squeeze(-1) for x in (crosses, zero))
        begin = torch.where(by_sign, left, torch.maximum(left, points[(i - 1).clamp(min=0)]))
        end = points[(i + 1).clamp(max=len(points) - 1)]
        right = torch.where(at_zero, points[i], _other_sign(g, sign, begin, points[i], end, searched & ~at_zero))
        found = searched & torch.isfinite(right)
        passed = torch.where(searched, i, passed)
        if not bool(found.any()):
            continue
        right = torch.where(found, right, 1.0)
        nearest = _last_node_with_sign(node_values, sign, left, right)
        noise, close = rounding * node_values.abs().amax(-1), 2 * rounding
        root, exact = _refined(g, nearest, right, sign, found & ~at_zero, noise, close)
        exact = found & (at_zero | exact)
        root = _begin_of_zero(g, nearest, root, sign, exact, noise, close)
        touches = exact & (g(right + _JUST_PAST, exact) * sign > 0) if bool(exact.any()) else exact
        found, sign_since, left = found & ~touches, left, torch.where(touches, right, left)
        matching = found & ((direction == 0) | ((direction > 0) == (sign < 0)))
        where, rising = torch.where(matching, root, where), torch.where(matching, sign < 0, rising)
        since = torch.where(matching, sign_since, since)
        searched, crossed = searched & ~matching, found & ~matching
        # after a crossing in the other direction: a function that is zero has the sign that it takes next, which may be
        # its old one
        ahead = torch.where((points > right.unsqueeze(-1)) & is_node, values, 0.0)
        next_sign = torch.where(exact & at_zero, _first_sign(ahead), -sign)
        left, sign = torch.where(crossed, right, left), torch.where(crossed, next_sign, sign)
        past = torch.where(exact & at_zero, (ahead != 0).to(torch.uint8).argmax(-1), torch.searchsorted(points, right))
        passed, searched = torch.where(crossed, past, passed), searched & (sign != 0)


def _last_node_with_sign(node_values: Tensor, sign: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The last node between left and right where the function has `sign`; left where there is none."""
    x = node_points().to(node_values.device)
    fits = (x < right.unsqueeze(-1)) & (x >= left.unsqueeze(-1)) & (node_values * sign.unsqueeze(-1) > 0)
    return torch.maximum(left, torch.where(fits, x, 0.0).amax(-1))


def _other_sign(g: Function, sign: Tensor, a: Tensor, middle: Tensor, b: Tensor, searched: Tensor) -> Tensor:
    """A point of [a, b] where the function has the other sign: `middle`, or by golden section; NaN where there is none.

    The search ends where the values in the bracket differ by less than the smallest of them, and so hide no zero.
    """
    value = g(middle, searched) * sign
    other = searched & (value < 0)
    found, searched = torch.where(other, middle, torch.nan), searched & ~other
    if not bool(searched.any()):
        return found
    c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    ends = torch.maximum(g(a, searched) * sign, g(b, searched) * sign)
    at_c, at_d = g(c, searched) * sign, g(d, searched) * sign
    for point, value in ((d, at_d), (c, at_c)):
        found = torch.where(searched & (value < 0), point, found)
    searched = searched & ~torch.isfinite(found)
    for _ in range(40):
        least = torch.minimum(at_c, at_d)
        spread = torch.maximum(ends, torch.maximum(at_c, at_d)) - least
        searched = searched & (b - a >= 1e-9) & (spread >= least) & (spread > 0)
        if not bool(searched.any()):
            break
        lower = at_c < at_d
        ends = torch.where(lower, at_d, at_c)  # at the new end of the bracket; the other end is no lower
        a, b = torch.where(lower, a, c), torch.where(lower, d, b)
        new = torch.where(lower, b - _GOLDEN * (b - a), a + _GOLDEN * (b - a))
        value = g(new, searched) * sign
        c, d = torch.where(lower, new, d), torch.where(lower, c, new)
        at_c, at_d = torch.where(lower, value, at_d), torch.where(lower, at_c, value)
        found = torch.where(searched & (value < 0), new, found)
        searched = searched & ~torch.isfinite(found)
    return found


def _refined(
    g: Function, a: Tensor, b: Tensor, sign: Tensor, needed: Tensor, noise: Tensor, close: float
) -> tuple[Tensor, Tensor]:
    """A root between a, where the function has `sign` (or is zero at the very start), and b, where it has not.

    At the returned point the function has the other sign, or is zero; the second result is True where it is zero. b
    where not needed. The search ends where both ends are `close` and their values at most `noise`: past that it would
    follow the noise down to the last bit.
    T. R. Chandrupatla, A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without
    using derivatives, Advances in Engineering Software 28 (1997), 145-149.
    """
    fa, fb = g(a, needed), g(b, needed)
    fa = torch.where(fa * sign <= 0, torch.copysign(torch.full_like(sign, 1e-300), sign), fa)
    exact = needed & (fb == 0)
    done = ~needed | exact
    best, fraction = b, torch.full_like(a, 0.5)
    a, b, fa, fb = b, a, fb, fa
    c, fc = b, fb
    for _ in range(100):
        if bool(done.all()):
            break
        x = a + fraction * (b - a)
        fx = g(x, ~done)
        exact = exact | (~done & (fx == 0))
        same = (fx > 0) == (fa > 0)
        c, fc, b, fb = (torch.where(same, u, v) for u, v in ((a, b), (fa, fb), (b, a), (fb, fa)))
        a, fa = x, fx
        best = torch.where(done, best, torch.where(fa * sign <= 0, a, b))  # the end that has crossed
        done = done | exact | (((b - a).abs() <= close) & (torch.maximum(fa.abs(), fb.abs()) <= noise))
        least = (2e-16 + 4e-16 * best.abs()) / torch.where(b == c, 1e-300, (b - c).abs())
        done = done | (least > 0.5)
        fraction = _next_fraction(a, b, c, fa, fb, fc)
        fraction = torch.minimum(torch.maximum(fraction, least), 1 - least)
        fraction = torch.where(torch.isfinite(fraction), fraction, 0.5)
    return best, exact


def _begin_of_zero(
    g: Function, a: Tensor, b: Tensor, sign: Tensor, needed: Tensor, noise: Tensor, close: float
) -> Tensor:
    """The first point from a, where the function has `sign`, to b, where it is zero, at which it has lost that sign.

    Searched for back from b, as mostly it is b itself. noise, close: see `_refined`.
    """
    step, back, at_a = torch.full_like(a, 4e-16), needed, torch.full_like(a, torch.inf)
    for _ in range(100):
        needed = needed & (b - a > 2e-16 + 4e-16 * b) & ~((b - a <= close) & (at_a <= noise))
        if not bool(needed.any()):
            break
        x = b - step
        x = torch.where(back & (x > a), x, a + 0.5 * (b - a))
        value = g(x, needed) * sign
        before = value > 0
        at_a = torch.where(needed & before, value, at_a)
        a, b = torch.where(needed & before, x, a), torch.where(needed & ~before, x, b)
        back, step = back & ~before, 16 * step
    return b


def _next_fraction(a: Tensor, b: Tensor, c: Tensor, fa: Tensor, fb: Tensor, fc: Tensor) -> Tensor:
    """Where between a and b to evaluate next: by inverse quadratic interpolation if that is trusted, else halfway."""
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    fraction = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
    trusted = (phi * phi < xi) & ((1 - phi) ** 2 < 1 - xi) & torch.isfinite(fraction)
    return torch.where(trusted, fraction, 0.5)
