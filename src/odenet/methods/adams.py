"""The Adams family with variable steps: linear multistep methods with a history of slopes.

Hairer, Norsett & Wanner I, section III.5, "Variable step size Adams methods" (after Krogh and Gear). With the modified
divided differences of the slopes

    phi_0(n) = f_n,   phi_{j+1}(n) = phi_j(n) - phi*_j(n-1),   phi*_j(n) = beta_j(n) phi_j(n),

the predictor uses k terms, and the corrector one more:

    p = y_n + h sum_{j<k} g_j phi*_j(n),     y_{n+1} = p + h g_k (f(t_{n+1}, y_{n+1}) - sum_{j<k} phi*_j(n)).

The coefficients beta and g come from the times of the steps, which may have any lengths.
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
from ..core.validate import integer
from ..errors import unknown_name, warn
from .adams_coefficients import adams_coefficients, combine, predictor_powers
from .explicit import ExplicitRK
from .method import Field, Method, Step, StepInput
from .tableaus.butcher5 import TABLEAU as BUTCHER5
from .tableaus.dopri8 import TABLEAU as DOPRI8
from .tableaus.rk4 import RK4_38

MAX_ORDER = 12
_ROUND_OFF = 8.0  # a term below this many units in the last place of y does not justify a lower order
# Terms must fall by this factor. With 1, errors grow too far before the terms show it; 1/4 costs accuracy.
_MAX_TERM_RATIO = 0.5
_SHORT_START = 3  # Runge-Kutta steps in a short start: four known slopes give a local error of h^5, as these steps have
_SLOW = 4  # corrector iterations: one evaluation less than a Runge-Kutta step of order 5
_FEW_TERMS = 6  # with fewer terms than this, that Runge-Kutta step is the more accurate one


@final
class Adams(Method):
    """Adams-Bashforth ("explicit_adams"), or Adams-Moulton solved by functional iteration ("implicit_adams").

    max_order: 1 to 12. An explicit step evaluates f once. An implicit step evaluates it at least once more, and up to
    max_iters times more: until an iteration changes every component by at most atol + rtol |y|. A step that is too long
    for the order uses fewer terms: see `_terms_used`.

    start: "full": Runge-Kutta steps, of as high an order as the Adams steps, until the history is full.
    "short": three Runge-Kutta steps, then one order more with each step: for solves of few steps. Explicit: steps by
    the 3/8 rule with four evaluations each; the next three steps are corrected once by the implicit formula, as their
    own error would exceed that of the first three; n > 5 steps take 12 + n evaluations. Implicit: two steps of order 5
    (Butcher's) and one by the 3/8 rule, 16 evaluations. Both have an error of order 5, for every max_order. Where later
    the corrector is slow and fewer than six terms fall, as the step is long, a step of order 5 replaces it: six
    evaluations instead of five, for a smaller error.

    carry: for each leaf its phi*_j of the last step, stacked on an axis behind the batch; 1.0 where the corrector was
    slow; the times of the history, the latest first; the number of its entries.
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
        max_order, max_iters = integer("max_order", max_order, maximum=MAX_ORDER), integer("max_iters", max_iters)
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
        self.num_terms = max(max_order - implicit, 1)  # of the predictor
        self.history_size = self.num_terms - 1
        # A local error of h^order in the few starting steps preserves the order of the solve. Beyond order 9 the error
        # constant decides: that of dopri8 is far below that of an Adams method.
        self.starter = ExplicitRK(RK4_38 if max_order <= 4 or start == "short" else DOPRI8)
        self.first_starter = ExplicitRK(BUTCHER5)  # of the first two steps of an implicit short start
        full, short = self.history_size, min(self.history_size, _SHORT_START)
        self.num_start_steps = full if start == "full" else short
        # explicit steps are corrected while the history is shorter than this
        self.corrected_below = 0 if implicit or start == "full" else min(self.history_size, 2 * _SHORT_START)

    def __repr__(self) -> str:
        return f"Adams(max_order={self.order}, implicit={self.implicit})"

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        axis, n = t.ndim, self.history_size
        stacks = tuple(x.new_zeros((*x.shape[:axis], n, *x.shape[axis:])) for x in y)
        return (*stacks, torch.zeros_like(t), t.new_zeros((*t.shape, n)), torch.zeros_like(t))

    def step(self, at: StepInput) -> Step:
        f, t0, t1, y = at.f, at.t0, at.t1, at.y
        *last_phi_star, slow, past_times, count = at.carry
        slow, count = slow.detach(), count.detach()
        if not (differentiable(t0) or differentiable(t1)):
            past_times = past_times.detach()  # constant too: saves the graph of the coefficients
        h, axis = t1 - t0, t0.ndim
        slope = f(t0, y)
        beta, g = adams_coefficients(t0, t1, past_times, count, self.num_terms)
        scaled: list[Tensor] = []
        for phi_0, stack in zip(slope, last_phi_star, strict=True):
            phi = [phi_0]
            for last in stack.unbind(axis):
                phi.append(phi[-1] - last)
            stacked = torch.stack(phi, axis)
            scaled.append(stacked * expand_to(beta, stacked))
        phi_star = tuple(scaled)
        zero_length = h == 0  # finished samples of a batch: y1 = y by either formula
        used = self._terms_used(y, phi_star, h, g, count)
        runge_kutta = count < self.num_start_steps
        if self.implicit and self.start == "short":
            runge_kutta = runge_kutta | ((slow > 0) & (used < min(_FEW_TERMS, self.num_terms)))
        *y1, slow = _by_mask(
            runge_kutta, zero_length, t0, t1,
            lambda end: (*self._runge_kutta_step(f, t0, end, y, slope, count, zero_length), slow),
            lambda end: self._adams_step(f, t0, end, y, phi_star, g, used, count),
        )  # fmt: skip
        y1 = tuple(y1)
        history = tuple(x.narrow(axis, 0, self.history_size) for x in phi_star)
        times = torch.cat((t0.unsqueeze(-1), past_times), -1)[..., : self.history_size]
        count = (count + 1.0).clamp(max=self.history_size)
        return Step(y1, (*history, slow, times, count), (phi_star, (used,)))

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        """The integral of the predictor's slope, plus a cubic that makes the value and the slope at t1 exact."""
        phi_star, (used,) = step.stages
        t1, y, n = at.t1, at.y, self.num_terms
        h = t1 - at.t0
        table = predictor_powers(at.t0, t1, step.carry[-2], used, n)
        powers: list[Leaves] = []
        for d in range(n):
            powers.append(combine(table[..., d:, d] / (d + 1), tuple(x.narrow(h.ndim, d, n - d) for x in phi_star)))
        zero = tuple(torch.zeros_like(x) for x in y)
        powers += [zero] * (3 - n)
        value_defect = tuple(b - a for a, b in zip(y, step.y, strict=True))
        slope_defect = scale(expand_over(h, y), at.f(t1, step.y))
        for d, power in enumerate(powers, 1):
            value_defect = tuple(a - b for a, b in zip(value_defect, power, strict=True))
            slope_defect = tuple(a - d * b for a, b in zip(slope_defect, power, strict=True))
        powers[1] = tuple(p + 3 * v - s for p, v, s in zip(powers[1], value_defect, slope_defect, strict=True))
        powers[2] = tuple(p + s - 2 * v for p, v, s in zip(powers[2], value_defect, slope_defect, strict=True))
        return tuple(powers)

    def _runge_kutta_step(
        self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, slope: Leaves, count: Tensor, zero_length: Tensor
    ) -> Leaves:
        """y1 by a starting method."""

        def step_of(starter: ExplicitRK) -> Callable[[Tensor], Leaves]:
            return lambda end: starter.step(StepInput(f, t0, end, y, slope)).y

        if self.start == "full" or not self.implicit:
            return step_of(self.starter)(t1)
        first, third = step_of(self.first_starter), step_of(self.starter)
        return _by_mask(count != 2, zero_length | (t1 == t0), t0, t1, first, third)

    def _adams_step(
        self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, phi_star: Leaves, g: Tensor, used: Tensor, count: Tensor
    ) -> Leaves:
        """y1 by the predictor; corrected where the method is implicit or the history short. Last entry: slow."""
        h, index = t1 - t0, torch.arange(self.num_terms + 1, device=t0.device)
        weights = torch.where(index < used.unsqueeze(-1), g * h.unsqueeze(-1), 0.0)[..., : self.num_terms]
        predicted = tuple(x + s for x, s in zip(y, combine(weights, phi_star), strict=True))
        corrected_once = count < self.corrected_below
        if not self.implicit and not bool(corrected_once.any()):
            return (*predicted, torch.zeros_like(h))
        used = used.clamp(max=self.order - 1)
        g_last = torch.where(index == used.unsqueeze(-1), g, 0.0).sum(-1)  # a sum of one nonzero term: exact
        weights = torch.where(index < used.unsqueeze(-1), (g - g_last.unsqueeze(-1)) * h.unsqueeze(-1), 0.0)
        explicit_terms = combine(weights[..., : self.num_terms], phi_star)
        base = tuple(x + s for x, s in zip(y, explicit_terms, strict=True))
        weight = expand_over(g_last * h, y)
        if self.implicit:
            return self._iterate_corrector(f, t0, t1, predicted, base, weight)
        corrected = select(corrected_once, add_scaled(base, weight, f(t1, predicted)), predicted)
        return (*corrected, torch.zeros_like(h))

    def _iterate_corrector(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, base: Leaves, weight: Leaves) -> Leaves:
        """Solve y = base + weight f(t1, y) by functional iteration; a sample that has converged no longer changes.

        The last entry is 1.0 where that took `_SLOW` iterations or more, else 0.0.
        """
        active = t1.detach() != t0.detach()
        slow = torch.zeros_like(t1, requires_grad=False)
        for iteration in range(1, self.max_iters + 1):
            if iteration >= _SLOW:
                slow = torch.where(active, 1.0, slow)
            new = add_scaled(base, weight, f(t1, y))
            with torch.no_grad():
                converged = torch.ones_like(active)
                for a, b in zip(new, y, strict=True):
                    close = (a - b).abs() <= self.atol + self._rtol(b) * a.abs()
                    converged = converged & (flatten_samples(close).all(1) if t1.ndim else close.all())
            y = select(active, new, y) if t1.ndim else new
            active = active & ~converged
            if not bool(active.any()):
                return (*y, slow)
        for x in y:  # NaN and infinity end the solve with an error of their own
            finite = torch.isfinite(x.detach())
            active = active & (flatten_samples(finite).all(1) if t1.ndim else finite.all())
        if bool(active.any()):
            t = float(t1.detach()[active][0])
            warn(
                f"implicit_adams: the corrector of the step to t = {t:.6g} did not converge in {self.max_iters} "
                "iterations, and the solution may be inaccurate. Take a smaller step, or a larger max_iters, rtol or "
                "atol: Adams(implicit=True, max_iters=...)."
            )
        return (*y, slow)

    @torch.no_grad()
    def _terms_used(self, y: Leaves, phi_star: Leaves, h: Tensor, g: Tensor, count: Tensor) -> Tensor:
        """The number of terms of a step, () or (B,); a constant in derivatives.

        The size of a term estimates the error without it. The sum ends at the first term that is not clearly smaller
        than both terms before it (one of two in a row may be zero by chance). The step is then too long for a higher
        order: its errors would alternate from step to step, and each further difference would double them. Shampine &
        Gordon 1975 lower the order by similar comparisons that begin at the last term; these miss a growth that begins
        among the middle terms. Sizes are maxima in units of the tolerance: the same in any batch.
        """
        used = count + 1.0
        if self.num_terms < 3:
            return used
        size, round_off = h.new_zeros((*h.shape, self.num_terms)), 0.0
        for x, stack in zip(y, phi_star, strict=True):
            if x.numel() == 0:
                continue
            rtol = self._rtol(x)
            tolerance = (self.atol + rtol * x.abs()).unsqueeze(h.ndim)
            largest = (stack.abs() / tolerance).unsqueeze(-1).flatten(h.ndim + 1).amax(-1)
            size = torch.maximum(size, cast(largest, size.dtype))
            round_off = max(round_off, _ROUND_OFF * torch.finfo(x.dtype).eps / rtol)
        size = round_to_float32(size * (g[..., : self.num_terms] * h.unsqueeze(-1)).abs())
        first, second, later = size[..., :-2], size[..., 1:-1], size[..., 2:]
        falls = (later <= _MAX_TERM_RATIO * torch.maximum(first, second)) | (later <= round_off)
        num_falling = 2 + falls.to(torch.int8).cumprod(-1).sum(-1)
        # a large second term alone is no reason: the slope may cross zero
        only_first = ~falls[..., 0] & (second[..., 0] > _MAX_TERM_RATIO * first[..., 0])
        num_falling = torch.where(only_first, 1, num_falling)
        return torch.minimum(num_falling.to(h.dtype), used)

    def _rtol(self, x: Tensor) -> float:
        return max(self.rtol, 4.0 * torch.finfo(real_dtype(x.dtype)).eps)


def _by_mask(
    mask: Tensor,
    zero_length: Tensor,
    t0: Tensor,
    t1: Tensor,
    step_if: Callable[[Tensor], Leaves],
    step_else: Callable[[Tensor], Leaves],
) -> Leaves:
    """step_if for the samples of `mask` and step_else for the others; both are functions of the end of the step.

    Each runs on the whole batch. Samples of the other one take a step of zero length, where nothing can go wrong.
    Samples with zero_length may go with either.
    """
    if bool((mask | zero_length).all()):
        return step_if(t1)
    if not bool((mask & ~zero_length).any()):
        return step_else(t1)
    return select(mask, step_if(torch.where(mask, t1, t0)), step_else(torch.where(mask, t0, t1)))
