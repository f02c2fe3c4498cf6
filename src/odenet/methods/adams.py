"""The Adams family with variable steps: linear multistep methods that carry the slopes of the steps before.

Hairer, Norsett & Wanner I, section III.5, "Variable step size Adams methods" (after Krogh and Gear): with

    phi_0(n) = f_n,   phi_{j+1}(n) = phi_j(n) - phi*_j(n-1),   phi*_j(n) = beta_j(n) phi_j(n)

the modified divided differences of the slopes, k terms of them predict and one more corrects:

    p = y_n + h sum_{j<k} g_j phi*_j(n),     y_{n+1} = p + h g_k (f(t_{n+1}, y_{n+1}) - sum_{j<k} phi*_j(n)).

The coefficients beta and g come from the times of the steps themselves, so that no two of these need be alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from ..core.dense import Coefficients
from ..core.leaves import (
    Leaves,
    add_scaled,
    cast,
    differentiable,
    expand_over,
    expand_to,
    flatten_samples,
    real_dtype,
    scale,
    select,
)
from ..core.scalars import round_to_float32
from ..errors import unknown_name, warn
from .explicit import ExplicitRK
from .method import Field, Method, Step, StepInput
from .tableaus.butcher5 import TABLEAU as BUTCHER5
from .tableaus.dopri8 import TABLEAU as DOPRI8
from .tableaus.rk4 import RK4_38

MAX_ORDER = 12
_EPS_OF_NOISE = 8.0  # a term of less than this many units in the last place of y is not worth a lower order
_FALLS = (
    0.5  # by this factor terms must fall; with 1 errors have grown too far before that shows, and 1/4 costs accuracy
)

_SHORT = 3  # steps by Runge-Kutta in a short start: four slopes are then known, for a local error of h^5 as theirs is

_SLOW = 4  # iterations of a corrector: one evaluation less than a Runge-Kutta step of order 5 takes
_FEW = 6  # terms, below which that step is the more accurate one


@final
class Adams(Method):
    """Adams-Bashforth ("explicit_adams"), or Adams-Moulton solved by functional iteration ("implicit_adams").

    max_order: 1 to 12. An explicit step evaluates f once, an implicit one at least once more, max_iters times more at
    the most: until an iteration changes no component by more than atol + rtol |y|. A step that is too long for the
    order goes with fewer terms: see `_terms_used`.

    start: "full": the steps up to a full history are Runge-Kutta steps, of as high an order as the whole is to have.
    "short": only three are, and the order rises from there by one a step: for solves of few steps. Explicit: 3/8-rule
    steps, of four evaluations each, and the three steps after them are corrected once by the implicit formula, as
    their own would leave more of an error than the three before; n > 5 steps take 12 + n evaluations. Implicit: two
    steps of order 5 (Butcher's) and one by the 3/8 rule, 16 evaluations. What either leaves is of order 5, whatever
    max_order. Where later the corrector is slow to converge, and the step so long that fewer than six terms fall, it is
    a step of order 5 as well: six evaluations in place of five, for a smaller error.

    carry: for each leaf its phi*_j of the last step, stacked behind the lane; 1.0 where the corrector was slow; the
    times that the phi* belong to, the latest first; how many of them there are.
    """

    error_order = None
    carry_is_slope = False

    def __init__(
        self,
        max_order: int = MAX_ORDER,
        implicit: bool = False,
        max_iters: int = 4,
        rtol: float = 1e-7,
        atol: float = 1e-9,
        start: str = "full",
    ) -> None:
        for name, value, most in (("max_order", max_order, MAX_ORDER), ("max_iters", max_iters, None)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int; got {type(value).__name__} {value!r}")
            if value < 1 or (most is not None and value > most):
                raise ValueError(f"{name} must be {'at least 1' if most is None else f'1 to {most}'}; got {value}")
        if not (rtol >= 0.0 and atol >= 0.0 and rtol + atol > 0.0):
            raise ValueError(f"rtol and atol must not be negative, nor both zero; got rtol={rtol!r}, atol={atol!r}")
        if start not in ("full", "short"):
            raise unknown_name("start", str(start), ("full", "short"))
        self.start, self.implicit, self.max_iters, self.rtol, self.atol = (
            start,
            implicit,
            max_iters,
            float(rtol),
            float(atol),
        )
        self.name, self.order = "implicit_adams" if implicit else "explicit_adams", max_order
        self.num_stages = 3 if implicit else 1
        self.terms = max(max_order - implicit, 1)  # of the predictor
        self.remembered = self.terms - 1
        # A local error h^order in the few first steps leaves the order of the whole; past 9 it is the constant that
        # tells, which of this tableau is far below that of an Adams method.
        self.starter = ExplicitRK(RK4_38 if max_order <= 4 or start == "short" else DOPRI8)
        self.first = ExplicitRK(BUTCHER5)  # of the first two steps of an implicit short start
        self.begun = self.remembered if start == "full" else min(self.remembered, _SHORT)
        self.helped = 0 if implicit or start == "full" else min(self.remembered, 2 * _SHORT)  # corrected up to here

    def __repr__(self) -> str:
        return f"Adams(max_order={self.order}, implicit={self.implicit})"

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        axis, n = t.ndim, self.remembered
        stacks = tuple(x.new_zeros((*x.shape[:axis], n, *x.shape[axis:])) for x in y)
        return (*stacks, torch.zeros_like(t), t.new_zeros((*t.shape, n)), torch.zeros_like(t))

    def step(self, at: StepInput) -> Step:
        f, t0, t1, y = at.f, at.t0, at.t1, at.y
        *before, slow, past, count = at.carry
        slow, count = slow.detach(), count.detach()
        if not (differentiable(t0) or differentiable(t1)):
            past = past.detach()  # it then comes from the same constant times: no graph of the coefficients
        h, axis = t1 - t0, t0.ndim
        slope = f(t0, y)
        beta, g = _coefficients(t0, t1, past, count, self.terms)
        starred = []
        for first, stack in zip(slope, before, strict=True):
            phi = [first]
            for earlier in stack.unbind(axis):
                phi.append(phi[-1] - earlier)
            stacked = torch.stack(phi, axis)
            starred.append(stacked * expand_to(beta, stacked))
        starred = tuple(starred)
        still = h == 0  # lanes of a batch that have ended: either way gives them nothing
        used = self._terms_used(y, starred, h, g, count)
        runge_kutta = count < self.begun
        if self.implicit and self.start == "short":
            runge_kutta = runge_kutta | ((slow > 0) & (used < min(_FEW, self.terms)))
        *y1, slow = _each(
            runge_kutta, still, t0, t1,
            lambda end: (*self._started(f, t0, end, y, slope, count, still), slow),
            lambda end: self._advanced(f, t0, end, y, starred, g, used, count),
        )  # fmt: skip
        y1 = tuple(y1)
        kept = tuple(x.narrow(axis, 0, self.remembered) for x in starred)
        times = torch.cat((t0.unsqueeze(-1), past), -1)[..., : self.remembered]
        return Step(y1, (*kept, slow, times, (count + 1.0).clamp(max=self.remembered)), (starred, (used,)))

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        """The integral of the predictor's polynomial, and a cubic that leads it to y1 with the slope there.

        In theta = (t - t0) / h the predictor is sum_j N_j(theta) phi*_j with N_{j+1} = N_j (1 - r_j + r_j theta) and
        r_j = h / (t1 - t_{n-j}).
        """
        starred, (used,) = step.stages
        t1, y = at.t1, at.y
        h, past, n = t1 - at.t0, step.carry[-2], self.terms
        known = torch.arange(n, device=h.device) < used.unsqueeze(-1)
        basis = [torch.cat((torch.ones_like(h).unsqueeze(-1), h.new_zeros((*h.shape, n - 1))), -1)]
        for j in range(n - 1):
            ahead = t1 - past[..., j]
            r = torch.ones_like(h) if j == 0 else h / torch.where(known[..., j] & (ahead != 0), ahead, 1.0)
            r, last = r.unsqueeze(-1), basis[-1]
            shifted = torch.cat((torch.zeros_like(r), last[..., :-1]), -1)
            basis.append(last * (1.0 - r) + shifted * r)
        table = torch.stack(basis, -2) * torch.where(known, h.unsqueeze(-1), 0.0).unsqueeze(-1)  # (..., j, power)
        parts: list[Leaves] = []
        for d in range(n):
            parts.append(_combined(table[..., d:, d] / (d + 1), tuple(x.narrow(h.ndim, d, n - d) for x in starred)))
        zero = tuple(torch.zeros_like(x) for x in y)
        parts += [zero] * (3 - n)
        rise = tuple(b - a for a, b in zip(y, step.y, strict=True))
        slope = scale(expand_over(h, y), at.f(t1, step.y))
        for d, part in enumerate(parts, 1):
            rise = tuple(a - b for a, b in zip(rise, part, strict=True))
            slope = tuple(a - d * b for a, b in zip(slope, part, strict=True))
        parts[1] = tuple(p + 3 * r - s for p, r, s in zip(parts[1], rise, slope, strict=True))
        parts[2] = tuple(p + s - 2 * r for p, r, s in zip(parts[2], rise, slope, strict=True))
        return tuple(parts)

    def _started(
        self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, slope: Leaves, count: Tensor, still: Tensor
    ) -> Leaves:
        def by(starter: ExplicitRK) -> Callable[[Tensor], Leaves]:
            return lambda end: starter.step(StepInput(f, t0, end, y, slope)).y

        if self.start == "full" or not self.implicit:
            return by(self.starter)(t1)
        return _each(count != 2, still | (t1 == t0), t0, t1, by(self.first), by(self.starter))

    def _advanced(
        self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, starred: Leaves, g: Tensor, used: Tensor, count: Tensor
    ) -> Leaves:
        """Predict, and correct where the method is implicit, or the history short. The last: whether that was slow."""
        h, index = t1 - t0, torch.arange(self.terms + 1, device=t0.device)
        weights = torch.where(index < used.unsqueeze(-1), g * h.unsqueeze(-1), 0.0)[..., : self.terms]
        predicted = tuple(x + s for x, s in zip(y, _combined(weights, starred), strict=True))
        helped = count < self.helped
        if not self.implicit and not bool(helped.any()):
            return (*predicted, torch.zeros_like(h))
        used = used.clamp(max=self.order - 1)
        # one of the summands is not zero: exact in any order
        last = torch.where(index == used.unsqueeze(-1), g, 0.0).sum(-1)
        weights = torch.where(index < used.unsqueeze(-1), (g - last.unsqueeze(-1)) * h.unsqueeze(-1), 0.0)
        rest = _combined(weights[..., : self.terms], starred)
        base = tuple(x + s for x, s in zip(y, rest, strict=True))
        weight = expand_over(last * h, y)
        if self.implicit:
            return self._corrected(f, t0, t1, predicted, base, weight)
        corrected = select(helped, add_scaled(base, weight, f(t1, predicted)), predicted)
        return (*corrected, torch.zeros_like(h))

    def _corrected(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, base: Leaves, weight: Leaves) -> Leaves:
        """Iterate y = base + weight f(t1, y); a sample that has converged stays, whatever is beside it.

        The last: 1.0 where that took `_SLOW` iterations, or more.
        """
        open_lanes = t1.detach() != t0.detach()
        slow = torch.zeros_like(t1, requires_grad=False)
        for done in range(self.max_iters):
            if done + 1 >= _SLOW:
                slow = torch.where(open_lanes, 1.0, slow)
            new = add_scaled(base, weight, f(t1, y))
            with torch.no_grad():
                close = torch.ones_like(open_lanes)
                for a, b in zip(new, y, strict=True):
                    within = (a - b).abs() <= self.atol + self._rtol(b) * a.abs()
                    close = close & (flatten_samples(within).all(1) if t1.ndim else within.all())
            y = select(open_lanes, new, y) if t1.ndim else new
            open_lanes = open_lanes & ~close
            if not bool(open_lanes.any()):
                return (*y, slow)
        for x in y:  # what is not finite ends the solve with an error of its own
            finite = torch.isfinite(x.detach())
            open_lanes = open_lanes & (flatten_samples(finite).all(1) if t1.ndim else finite.all())
        if bool(open_lanes.any()):
            t = float(t1.detach()[open_lanes][0])
            warn(
                f"implicit_adams: the corrector of the step to t = {t:.6g} did not converge in {self.max_iters} "
                "iterations, and the solution may be inaccurate. Take a smaller step, or a larger max_iters, rtol or "
                "atol: Adams(implicit=True, max_iters=...)."
            )
        return (*y, slow)

    @torch.no_grad()
    def _terms_used(self, y: Leaves, starred: Leaves, h: Tensor, g: Tensor, count: Tensor) -> Tensor:
        """How many terms a step goes with: a lane, and a constant of the differentiation.

        The size of a term is about the error without it. From the first on that is not clearly smaller than both
        before it (of two in a row one may be zero by chance) no more are taken: the step is then too long for a higher
        order, of which errors would alternate from step to step and be doubled by each further difference. Shampine &
        Gordon 1975 lower the order by like comparisons, from the last term on; from there growth went unnoticed that
        had begun among the middle ones. Sizes are in units of the tolerance, and by maximum: the same in any batch.
        """
        used = count + 1.0
        if self.terms < 3:
            return used
        size, noise = h.new_zeros((*h.shape, self.terms)), 0.0
        for x, stack in zip(y, starred, strict=True):
            if x.numel() == 0:
                continue
            rtol = self._rtol(x)
            unit = (self.atol + rtol * x.abs()).unsqueeze(h.ndim)
            largest = (stack.abs() / unit).unsqueeze(-1).flatten(h.ndim + 1).amax(-1)
            size = torch.maximum(size, cast(largest, size.dtype))
            noise = max(noise, _EPS_OF_NOISE * torch.finfo(x.dtype).eps / rtol)
        size = round_to_float32(size * (g[..., : self.terms] * h.unsqueeze(-1)).abs())
        first, second, later = size[..., :-2], size[..., 1:-1], size[..., 2:]
        falls = (later <= _FALLS * torch.maximum(first, second)) | (later <= noise)
        taken = 2 + falls.to(torch.int8).cumprod(-1).sum(-1)
        # alone a second term that is not small says nothing: the slope may go through zero
        taken = torch.where(~falls[..., 0] & (second[..., 0] > _FALLS * first[..., 0]), 1, taken)
        return torch.minimum(taken.to(h.dtype), used)

    def _rtol(self, x: Tensor) -> float:
        return max(self.rtol, 4.0 * torch.finfo(real_dtype(x.dtype)).eps)


def _each(
    lanes: Tensor,
    still: Tensor,
    t0: Tensor,
    t1: Tensor,
    one: Callable[[Tensor], Leaves],
    other: Callable[[Tensor], Leaves],
) -> Leaves:
    """`one` of these lanes and `other` of those, as functions of the end of the step.

    Each is given the other one's lanes standing still, where nothing can go wrong. Those that do so anyway may be with
    either.
    """
    if bool((lanes | still).all()):
        return one(t1)
    if not bool((lanes & ~still).any()):
        return other(t1)
    return select(lanes, one(torch.where(lanes, t1, t0)), other(torch.where(lanes, t0, t1)))


def _coefficients(t0: Tensor, t1: Tensor, past: Tensor, count: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """beta_0..beta_{terms-1} and g_0..g_terms on a last axis, by their recurrences.

    Where the history does not reach, beta is zero. A step of no length has beta = 1, 0, 0...
    """
    h, n = t1 - t0, terms - 1
    known = torch.arange(n, device=h.device) < count.unsqueeze(-1)
    # from t1 and from t0 back to t_{n-j}
    ahead = t1.unsqueeze(-1) - torch.cat((t0.unsqueeze(-1), past), -1)
    behind = torch.where(known, t0.unsqueeze(-1) - past, 1.0)
    grown = torch.where(known, ahead.narrow(-1, 0, n) / behind, 0.0)
    ratios = torch.where(known, h.unsqueeze(-1) / torch.where(known, ahead.narrow(-1, 1, n), 1.0), 1.0)
    betas, c = [torch.ones_like(h)], 1.0 / torch.arange(1, terms + 2, dtype=h.dtype, device=h.device)
    for x in grown.unbind(-1):
        betas.append(betas[-1] * x)
    c, g = c.expand((*h.shape, terms + 1)), []
    for j, ratio in enumerate((1.0, *ratios.unsqueeze(-1).unbind(-2))):
        g.append(c.narrow(-1, 0, 1))
        left = terms - j
        c = c.narrow(-1, 0, left) - c.narrow(-1, 1, left) * ratio
    return torch.stack(betas, -1), torch.cat((*g, c), -1)


def _combined(weights: Tensor, stacks: Leaves) -> Leaves:
    """sum_j weights[..., j] * stacks[..., j], the last first: they are the smallest.

    One elementwise operation a term, so that a sample's sum does not depend on the samples beside it.
    """
    axis, out = weights.ndim - 1, []
    for stack in stacks:
        terms = zip(reversed(expand_to(weights, stack).unbind(axis)), reversed(stack.unbind(axis)), strict=True)
        weight, term = next(terms)
        total = weight * term
        for weight, term in terms:
            total = total + weight * term if term.is_complex() else torch.addcmul(total, term, weight)
        out.append(total)
    return tuple(out)
