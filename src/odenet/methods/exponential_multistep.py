"""Exponential multistep methods for flow and diffusion models: DPM-Solver++ and UniPC.

f is the velocity u of a path x_t = alpha(t) x1 + sigma(t) x0 from noise x0 to data x1. Its predictions of the data and
of the noise,

    D = (sigma u - sigma' x) / W,      E = (alpha' x - alpha u) / W,      W = sigma alpha' - sigma' alpha,

change slowly along a solution. A step is exact for constant predictions, x1 = alpha1 D + sigma1 E, and adds the
integral of a polynomial through the last values of D: see interpolation_weights.py. Where time decreases, D and E
exchange their parts, and with them alpha and sigma.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ..core.affine_paths import AffinePath, affine_path
from ..core.dense import Coefficients, hermite
from ..core.leaves import Leaves, being_recorded, expand_over
from ..core.serialization import settings_repr
from ..core.torch_func import any_true, largest
from ..core.validate import integer, one_of
from .interpolation_weights import Interpolation, LogRatio, NoiseShare
from .method import Field, Method, Step, StepInput

_MAX_ORDER = 3

Terms = list[tuple[Tensor, Leaves]]
"""Terms of a sum: a coefficient, () or (B,), and what it multiplies."""


class ExponentialMultistep(Method):
    """Base of `DPMSolverPP` and `UniPC`.

    carry: the last predictions, leaf by leaf, the latest first; their times, on a last axis; their number. () where the
    history has no entries.
    """

    error_order = None
    carry_is_slope = False
    traceable = True
    history_size: int

    def __init__(self, order: int, path: str | AffinePath, start: str) -> None:
        self.order, self.path = integer("order", order, maximum=_MAX_ORDER), affine_path(path)
        self.start = one_of("start", start, ("full", "short"))
        self.interpolation_space: type[Interpolation] = NoiseShare if start == "full" else LogRatio
        self.silent_start = self.path.start > 0.0

    def __repr__(self) -> str:
        return settings_repr(self)

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        n = self.history_size
        if n == 0:
            return ()
        past = tuple(torch.zeros_like(x) for _ in range(n) for x in y)
        return (*past, torch.stack([t] * n, -1), torch.zeros_like(t))

    @abstractmethod
    def correction(self, w: Interpolation, count: Tensor, predictions: list[Leaves]) -> Terms:
        """What is added to the state at the start of a step, as the prediction there is known now."""

    def step(self, at: StepInput) -> Step:
        t0, t1, y, size, n = at.t0, at.t1, at.y, len(at.y), self.history_size
        self._check_times(t0, t1)
        slope = at.f(t0, y)
        ends = torch.stack((t1, t0), -1)
        times, count = (at.carry[-2], at.carry[-1].detach()) if n else (ends[..., :0], t0)
        nodes = torch.cat((ends, times), -1)
        alpha, sigma = self.path.alpha(nodes), self.path.sigma(nodes)
        alpha_dot, sigma_dot = self.path.alpha_dot(t0), self.path.sigma_dot(t0)
        (a1, a0), (s1, s0) = (x[..., :2].unbind(-1) for x in (alpha, sigma))
        determinant = s0 * alpha_dot - sigma_dot * a0
        # alpha1 D + sigma1 E - y, without dividing by sigma
        terms: Terms = [
            (((s1 - s0) * alpha_dot - (a1 - a0) * sigma_dot) / determinant, y),
            ((a1 * s0 - a0 * s1) / determinant, slope),
        ]
        carry: Leaves = ()
        if n:
            back = t1 < t0
            from_y = torch.where(back, alpha_dot, -sigma_dot) / determinant
            from_u = torch.where(back, -a0, s0) / determinant
            history = [at.carry[k * size : (k + 1) * size] for k in range(n)]
            predictions = [_total([(from_y, y), (from_u, slope)]), *history]
            signal = torch.where(back.unsqueeze(-1), sigma, alpha).unbind(-1)
            noise = torch.where(back.unsqueeze(-1), alpha, sigma).unbind(-1)
            w, most = self.interpolation_space(signal, noise), self.order - 1
            weights = w.weights(1, w.known(1, count, most), most, False)
            terms += _differences(weights, predictions[1:], predictions[0])
            kept = noise[0] / torch.where(noise[1] > 0, noise[1], 1.0)
            terms += [(kept * c, x) for c, x in self.correction(w, count, predictions)]
            past = (x for leaves in predictions[:n] for x in leaves)
            carry = (*past, nodes[..., 1 : n + 1], (count + 1.0).clamp(max=n))
        y1 = tuple(x + dx for x, dx in zip(y, _total(terms), strict=True))
        return Step(y1, carry, (slope,))

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        """Cubic Hermite; evaluates f once more."""
        slope = at.f(at.t1, step.y)
        return hermite(expand_over(at.t1 - at.t0, at.y), at.y, step.y, step.stages[0], slope)

    def _check_times(self, t0: Tensor, t1: Tensor) -> None:
        if torch.compiler.is_compiling() or being_recorded():
            return
        t0, t1, end = t0.detach(), t1.detach(), self.path.end
        low, high = torch.minimum(t0, t1), torch.maximum(t0, t1)
        room = 0.01 * (1.0 - end)  # for times in float32
        if any_true((low < 0.0) | (high > end + room)):
            worst = largest(high) if largest(high) > end else -largest(-low)
            raise ValueError(
                f"ts must lie in [0, {end}], from noise to data, with method={self.name!r} on the path {self.path!r}; "
                f"got a step that reaches {worst}"
            )
        if self.silent_start and any_true((t0 == 0.0) & (t1 > 0.0)):
            raise ValueError(
                f"ts must begin after 0 with method={self.name!r} on the path {self.path!r}, whose velocity is zero "
                "there and says nothing of the data; got a step from 0: begin at 0.01, say"
            )


def _differences(weights: list[Tensor], values: Sequence[Leaves], base: Leaves) -> Terms:
    """weights[j] (values[j] - base)."""
    out: Terms = []
    for weight, value in zip(weights, values, strict=False):
        out.append((weight, tuple(a - b for a, b in zip(value, base, strict=True))))
    return out


def _total(terms: Terms) -> Leaves:
    """The sum of the terms."""
    (first, leaves), *others = terms
    total = [x * c for x, c in zip(leaves, expand_over(first, leaves), strict=True)]
    for coefficient, leaves in others:
        factors = expand_over(coefficient, leaves)
        total = [a + x * c for a, x, c in zip(total, leaves, factors, strict=True)]
    return tuple(total)


@final
class DPMSolverPP(ExponentialMultistep):
    """DPM-Solver++ with the last 1, 2 or 3 predictions of the data ("ddim", "dpmpp_2m", "dpmpp_3m").

    Lu et al. 2022 (arXiv 2211.01095). f is the velocity of an affine probability path, the state anywhere on it, of any
    shape. Every step evaluates f once, the first one too. There is no error estimate: give `step=` or an
    `odenet.Grid`. Times lie in [0, path.end], in either order; where they decrease, the method is that of the noise
    prediction.

    order: 1 is DDIM, and on "cond_ot" Euler's method. path: a name, "cond_ot", "vp", "cosine", "linear_vp" or
    "polynomial", or an `AffinePath`.
    start: "full": the solve has the full order on all of [0, 1]. The predictions are interpolated in the share of the
    noise, sigma / (alpha + sigma), as steps of equal time near 0 and 1 are too long for lambda = log(alpha / sigma).
    For order 3 the second step corrects the first by the trapezoidal rule; an output at the end of the first step is
    before that correction, of order 2.
    "short": as published, in lambda: the order rises from step to step, the step to sigma = 0 takes the last
    prediction alone, and order 3 is attained only where both ends of the solve are away from infinite lambda, up to an
    error of O(h^2) of the first step. The code published with the paper halves the second difference of order 3; here
    it has the weight of the polynomial.

    Raises ValueError for times outside [0, path.end], and for a start at 0 on a path whose velocity is zero there.
    """

    def __init__(self, order: int = 2, path: str | AffinePath = "cond_ot", start: str = "full") -> None:
        super().__init__(order, path, start)
        self.name, self.history_size = "ddim" if order == 1 else f"dpmpp_{order}m", order - 1

    def correction(self, w: Interpolation, count: Tensor, predictions: list[Leaves]) -> Terms:
        """The trapezoidal rule for the first step, whose own error would be too large for order 3."""
        if self.order < 3 or self.start == "short":
            return []
        known = torch.where(count == 1.0, w.known(2, count - 1.0, 0), -1.0)
        return _differences(w.weights(2, known, 0, True), predictions, predictions[1])


@final
class UniPC(ExponentialMultistep):
    """UniPC: a predictor as `DPMSolverPP`, and a corrector with its prediction ("unipc_1", "unipc_2", "unipc_3").

    Zhao et al. 2023 (arXiv 2302.04867), data prediction, multistep, B(h) = e^h - 1. The prediction at the end of a step
    is the first one of the next, which first corrects its state: still one evaluation of f in each step, and n steps
    take n. Outputs are those of the predictor, as published.

    order: of the predictor, 1 to 3; inside (0, 1) orders 1 and 2 converge by one order faster. path, start, times,
    errors: as those of `DPMSolverPP`.
    """

    def __init__(self, order: int = 2, path: str | AffinePath = "cond_ot", start: str = "full") -> None:
        super().__init__(order, path, start)
        self.name, self.history_size = f"unipc_{order}", order

    def correction(self, w: Interpolation, count: Tensor, predictions: list[Leaves]) -> Terms:
        """The corrector of the last step, through the prediction at its end, less the predictor of that step."""
        most = self.order - 1
        known = w.known(2, count - 1.0, most)
        end, *past = w.weights(2, known, most, True)
        change = [a - b for a, b in zip(past, w.weights(2, known, most, False), strict=True)]
        values = [predictions[0], *predictions[2:]]
        return _differences([end, *change], values, predictions[1])
