"""Roots of many functions of one variable on [0, 1]: the first of each, also where two lie close together."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .chebyshev import at_the_nodes, between_nodes, finely, last_coefficients, node_points, nodes

Function = Callable[[Tensor, Tensor], Tensor]
"""(points, wanted) -> values: one point for each function; only those that are wanted are looked at."""

_DOUBT = 0.05  # an extremum within this part of the samples' range is looked at itself
_GOLDEN = (math.sqrt(5) - 1) / 2
# The Lebesgue constant of 9 Chebyshev points is 2.1, so the polynomial stays within 0.55 of the samples' range of them:
# with _DOUBT, samples of one sign that are further than this part of their range from zero leave nothing to look for.
_FAR = 0.6
_HIDDEN = 4.0  # the same where the samples are too few, and many waves may lie between them
_HALVINGS = 6  # so that a step may have some sixty waves
_RESOLVED = 0.05  # the last three of nine coefficients, as a part of the samples' range, where these are enough: a wave
_NEXT = 1e-7  # how far past a zero, maybe past 1, a function has to have left its sign for more than a touch
_ELSEWHERE = (0.2871, 0.7643)  # where the polynomial of samples is held against the function itself


class RootQuery(NamedTuple):
    """Which crossings: one number for each function.

    direction: +1 for those from negative to positive, -1 for the others, 0 for both; to exactly zero counts as well.
    sign: that of the function before `left`, where its value may be zero; 0: not looked at. zeros_from: from there on a
    value of exactly zero is one; before it only values of the other sign count.
    """

    direction: Tensor
    sign: Tensor
    left: Tensor
    zeros_from: Tensor

    def of(self, these: Tensor) -> RootQuery:
        return RootQuery(*(x.expand_as(these)[these] for x in self))


class Roots(NamedTuple):
    """where: in (0, 1], infinite where there is none; there `sign` is that of the function at 1, 0 where it is zero.

    rising: the function comes from negative values to its root. A root is where the function has left its sign: it is
    zero there, or has the other one; a touch of zero, before and after which it has the same sign, is none. since: from
    where on it had that sign.
    """

    where: Tensor
    rising: Tensor
    sign: Tensor
    since: Tensor


def first_roots(
    g: Function, samples: Tensor, sought: RootQuery, rounding: float = 0.0, halvings: int = _HALVINGS
) -> Roots:
    """The first crossing of each function in (0, 1], given its samples at `nodes()` on the last axis.

    What the samples' polynomial says is checked by g itself; where the samples are too few for the function, its halves
    are looked at, and theirs. rounding: of values of g, as a part of the largest sample.
    """
    sign = sought.sign
    signed = samples * sign.unsqueeze(-1)
    least = signed.amin(-1)
    size = signed.amax(-1) - least
    near = (sign != 0) & (least <= _HIDDEN * size) & ((size > 0) | (least < 0))
    some = near & (least <= _FAR * size)
    poor = near & _poor(g, samples, size, some & (halvings > 0))
    roots = Roots(torch.full_like(sign, torch.inf), torch.zeros_like(some), sign.clone(), sought.left.clone())
    further = partial(_on_halves, halvings=halvings - 1) if halvings else partial(_first_roots, smooth=False)
    for these, search in ((some & ~poor, _first_roots), (poor, further)):
        if bool(these.any()):
            found = search(_of(g, these, sign), samples[these], sought.of(these), rounding=rounding)
            for whole, part in zip(roots, found, strict=True):
                whole[these] = part
    return roots


def _poor(g: Function, samples: Tensor, size: Tensor, some: Tensor) -> Tensor:
    """Whether the samples are too few: their polynomial does not converge or, of some, misses g in between."""
    bound = _RESOLVED * size
    poor = (samples @ last_coefficients().to(samples.device)).abs().sum(-1) > bound
    for x in _ELSEWHERE:
        asked = some & ~poor
        if not bool(asked.any()):
            break
        says = (samples @ between_nodes(x).to(samples.device))[..., 0]
        poor = poor | (asked & ((g(torch.full_like(size, x), asked) - says).abs() > bound))
    return poor


def _of(g: Function, these: Tensor, like: Tensor) -> Function:
    """The function of some alone."""
    if bool(these.all()):
        return lambda x, live: g(x.view_as(like), live.view_as(like)).view(-1)

    def g_of_these(x: Tensor, live: Tensor) -> Tensor:
        at, wanted = torch.zeros_like(like), torch.zeros_like(these)
        at[these], wanted[these] = x, live
        return g(at, wanted)[these]

    return g_of_these


def _on_halves(g: Function, samples: Tensor, sought: RootQuery, rounding: float, halvings: int) -> Roots:
    """`first_roots` on the first half, and of what has none there on the second."""
    direction, sign, left, zeros_from = sought
    where, rising = torch.full_like(sign, torch.inf), torch.zeros_like(sign, dtype=torch.bool)
    since = left.clone()
    middle = g(torch.full_like(sign, 0.5), ~rising)
    for begin, first, last in ((0.0, samples[..., 0], middle), (0.5, middle, samples[..., -1])):
        live = torch.isinf(where)
        if not bool(live.any()):
            break

        def half(x: Tensor, wanted: Tensor, begin: float = begin) -> Tensor:
            return g(begin + x / 2, wanted)

        inner = [half(torch.full_like(sign, x), live) for x in nodes()[1:-1]]
        at_left, zeros = (2 * (left - begin)).clamp(0.0, 1.0), 2 * (zeros_from - begin)
        column = torch.stack([first, *inner, last], -1)
        if begin:  # what is zero so far has the sign that it takes first
            sign = torch.where(live & (sign == 0), _first_sign(column), sign)
        signs = torch.where(live, sign, 0.0)
        found = first_roots(half, column, RootQuery(direction, signs, at_left, zeros), rounding, halvings)
        where = torch.where(live, begin + found.where / 2, where)
        # what begins before this half does so in the one before it, or where it did
        since = torch.where(live & (found.since > 0), begin + found.since / 2, since)
        rising, sign = torch.where(live, found.rising, rising), torch.where(live, found.sign, sign)
    return Roots(where, rising, sign, since)


def _first_sign(samples: Tensor) -> Tensor:
    """That of the first sample that is not zero."""
    return samples.gather(-1, (samples != 0).to(torch.uint8).argmax(-1, keepdim=True)).squeeze(-1).sign()


def _first_roots(g: Function, samples: Tensor, sought: RootQuery, rounding: float, smooth: bool = True) -> Roots:
    """`first_roots` of functions that may have one; of those that are not `smooth` by the samples' signs alone."""
    direction, sign, left, zeros_from = sought
    points, interpolate, sampled = (x.to(samples.device) for x in (finely() if smooth else at_the_nodes()))
    values, index = samples @ interpolate.mT, torch.arange(len(points), device=samples.device)
    near = (values.abs() <= _DOUBT * (samples.amax(-1, True) - samples.amin(-1, True))) & smooth
    zero = (values == 0) & sampled & (points >= zeros_from.unsqueeze(-1))
    where, rising = torch.full_like(sign, torch.inf), torch.zeros_like(sign, dtype=torch.bool)
    passed, live, since = torch.searchsorted(points, left, right=True) - 1, sign != 0, left
    while True:
        signed = values * sign.unsqueeze(-1)
        crosses, valley = (signed < 0) | zero, torch.zeros_like(near)
        inner = signed[..., 1:-1]
        valley[..., 1:-1] = near[..., 1:-1] & (inner <= signed[..., :-2]) & (inner <= signed[..., 2:])
        seen = (crosses | valley) & (index > passed.unsqueeze(-1)) & live.unsqueeze(-1)
        live = seen.any(-1)
        if not bool(live.any()):
            return Roots(where, rising, sign, since)
        i = seen.to(torch.uint8).argmax(-1)
        by_sign, at_zero = (x.gather(-1, i.unsqueeze(-1)).squeeze(-1) for x in (crosses, zero))
        begin = torch.where(by_sign, left, torch.maximum(left, points[(i - 1).clamp(min=0)]))
        end = points[(i + 1).clamp(max=len(points) - 1)]
        right = torch.where(at_zero, points[i], _beyond(g, sign, begin, points[i], end, live & ~at_zero))
        found = live & torch.isfinite(right)
        passed = torch.where(live, i, passed)
        if not bool(found.any()):
            continue
        right = torch.where(found, right, 1.0)
        nearest = _nearest(samples, sign, left, right)
        noise, close = rounding * samples.abs().amax(-1), 2 * rounding
        root, exact = _refined(g, nearest, right, sign, found & ~at_zero, noise, close)
        exact = found & (at_zero | exact)
        root = _where_it_begins(g, nearest, root, sign, exact, noise, close)
        touches = exact & (g(right + _NEXT, exact) * sign > 0) if bool(exact.any()) else exact
        found, begun, left = found & ~touches, left, torch.where(touches, right, left)
        good = found & ((direction == 0) | ((direction > 0) == (sign < 0)))
        where, rising = torch.where(good, root, where), torch.where(good, sign < 0, rising)
        since = torch.where(good, begun, since)
        live, turned = live & ~good, found & ~good
        # a function that is zero now has the sign that it takes next, maybe that from before
        ahead = torch.where((points > right.unsqueeze(-1)) & sampled, values, 0.0)
        other = torch.where(exact & at_zero, _first_sign(ahead), -sign)
        left, sign = torch.where(turned, right, left), torch.where(turned, other, sign)
        beyond = torch.where(
            exact & at_zero, (ahead != 0).to(torch.uint8).argmax(-1), torch.searchsorted(points, right)
        )
        passed, live = torch.where(turned, beyond, passed), live & (sign != 0)


def _nearest(samples: Tensor, sign: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The last node between left and right where the function has `sign`; left where there is none."""
    x = node_points().to(samples.device)
    fits = (x < right.unsqueeze(-1)) & (x >= left.unsqueeze(-1)) & (samples * sign.unsqueeze(-1) > 0)
    return torch.maximum(left, torch.where(fits, x, 0.0).amax(-1))


def _beyond(g: Function, sign: Tensor, a: Tensor, middle: Tensor, b: Tensor, live: Tensor) -> Tensor:
    """A point of [a, b] where the function has the other sign: `middle`, or by golden section; NaN where there is none.

    The search ends where the values in the bracket differ by less than the smallest of them, and so hide no zero.
    """
    value = g(middle, live) * sign
    good = live & (value < 0)
    found, live = torch.where(good, middle, torch.nan), live & ~good
    if not bool(live.any()):
        return found
    c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    ends = torch.maximum(g(a, live) * sign, g(b, live) * sign)
    at_c, at_d = g(c, live) * sign, g(d, live) * sign
    for point, value in ((d, at_d), (c, at_c)):
        found = torch.where(live & (value < 0), point, found)
    live = live & ~torch.isfinite(found)
    for _ in range(40):
        least = torch.minimum(at_c, at_d)
        apart = torch.maximum(ends, torch.maximum(at_c, at_d)) - least
        live = live & (b - a >= 1e-9) & (apart >= least) & (apart > 0)
        if not bool(live.any()):
            break
        lower = at_c < at_d
        ends = torch.where(lower, at_d, at_c)  # the one of the bracket's ends that is new; the other is no lower
        a, b = torch.where(lower, a, c), torch.where(lower, d, b)
        new = torch.where(lower, b - _GOLDEN * (b - a), a + _GOLDEN * (b - a))
        value = g(new, live) * sign
        c, d = torch.where(lower, new, d), torch.where(lower, c, new)
        at_c, at_d = torch.where(lower, value, at_d), torch.where(lower, at_c, value)
        found = torch.where(live & (value < 0), new, found)
        live = live & ~torch.isfinite(found)
    return found


def _refined(
    g: Function, a: Tensor, b: Tensor, sign: Tensor, live: Tensor, noise: Tensor, close: float
) -> tuple[Tensor, Tensor]:
    """The root between a, where the function has `sign` (or is zero at the very start), and b, where it has the other.

    It has the other sign there, or is zero; and whether it is. The others come back as their b. The search ends where
    a and b are `close` and values at both no more than noise, which a search down to the last bit only follows.
    T. R. Chandrupatla, A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without
    using derivatives, Advances in Engineering Software 28 (1997), 145-149.
    """
    fa, fb = g(a, live), g(b, live)
    fa = torch.where(fa * sign <= 0, torch.copysign(torch.full_like(sign, 1e-300), sign), fa)
    exact = live & (fb == 0)
    done = ~live | exact
    best, part = b, torch.full_like(a, 0.5)
    a, b, fa, fb = b, a, fb, fa
    c, fc = b, fb
    for _ in range(100):
        if bool(done.all()):
            break
        x = a + part * (b - a)
        fx = g(x, ~done)
        exact = exact | (~done & (fx == 0))
        same = (fx > 0) == (fa > 0)
        c, fc, b, fb = (torch.where(same, u, v) for u, v in ((a, b), (fa, fb), (b, a), (fb, fa)))
        a, fa = x, fx
        best = torch.where(done, best, torch.where(fa * sign <= 0, a, b))  # of both ends the one that has crossed
        done = done | exact | (((b - a).abs() <= close) & (torch.maximum(fa.abs(), fb.abs()) <= noise))
        least = (2e-16 + 4e-16 * best.abs()) / torch.where(b == c, 1e-300, (b - c).abs())
        done = done | (least > 0.5)
        part = _between(a, b, c, fa, fb, fc)
        part = torch.minimum(torch.maximum(part, least), 1 - least)
        part = torch.where(torch.isfinite(part), part, 0.5)
    return best, exact


def _where_it_begins(
    g: Function, a: Tensor, b: Tensor, sign: Tensor, live: Tensor, noise: Tensor, close: float
) -> Tensor:
    """The first point from a, where the function has `sign`, to b, where it is zero, at which it has not.

    Looked for back from b: mostly it is b itself. noise, close: see `_refined`.
    """
    step, back, at_a = torch.full_like(a, 4e-16), live, torch.full_like(a, torch.inf)
    for _ in range(100):
        live = live & (b - a > 2e-16 + 4e-16 * b) & ~((b - a <= close) & (at_a <= noise))
        if not bool(live.any()):
            break
        x = b - step
        x = torch.where(back & (x > a), x, a + 0.5 * (b - a))
        value = g(x, live) * sign
        before = value > 0
        at_a = torch.where(live & before, value, at_a)
        a, b = torch.where(live & before, x, a), torch.where(live & ~before, x, b)
        back, step = back & ~before, 16 * step
    return b


def _between(a: Tensor, b: Tensor, c: Tensor, fa: Tensor, fb: Tensor, fc: Tensor) -> Tensor:
    """Where between a and b to look next: by inverse quadratic interpolation where it can be trusted, else halfway."""
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    part = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
    return torch.where((phi * phi < xi) & ((1 - phi) ** 2 < 1 - xi) & torch.isfinite(part), part, 0.5)
