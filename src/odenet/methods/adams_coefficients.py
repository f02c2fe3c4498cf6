"""The coefficients of Adams methods with variable steps, and sums with them.

Hairer, Norsett & Wanner I, section III.5. Times and sizes of steps are (), or (B,) per sample; a history of n entries
is stacked on an axis behind the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.leaves import Leaves, expand_to


def adams_coefficients(
    t0: Tensor, t1: Tensor, past_times: Tensor, count: Tensor, num_terms: int
) -> tuple[Tensor, Tensor]:
    """beta_0..beta_{n-1} and g_0..g_n on a last axis, for n = num_terms, by their recurrences.

    past_times: (..., n - 1), the latest first, of which the first `count` are known; beta is zero for the others. A
    step of zero length has beta = 1, 0, 0...
    """
    h, n = t1 - t0, num_terms - 1
    known = torch.arange(n, device=h.device) < count.unsqueeze(-1)
    # distances to t_{n-j} from t1 and from t0
    from_t1 = t1.unsqueeze(-1) - torch.cat((t0.unsqueeze(-1), past_times), -1)
    from_t0 = torch.where(known, t0.unsqueeze(-1) - past_times, 1.0)
    growth = torch.where(known, from_t1.narrow(-1, 0, n) / from_t0, 0.0)
    ratios = torch.where(known, h.unsqueeze(-1) / torch.where(known, from_t1.narrow(-1, 1, n), 1.0), 1.0)
    beta, c = [torch.ones_like(h)], 1.0 / torch.arange(1, num_terms + 2, dtype=h.dtype, device=h.device)
    for x in growth.unbind(-1):
        beta.append(beta[-1] * x)
    c, g = c.expand((*h.shape, num_terms + 1)), list[Tensor]()
    for j, ratio in enumerate((1.0, *ratios.unsqueeze(-1).unbind(-2))):
        g.append(c.narrow(-1, 0, 1))
        size = num_terms - j
        c = c.narrow(-1, 0, size) - c.narrow(-1, 1, size) * ratio
    return torch.stack(beta, -1), torch.cat((*g, c), -1)


def predictor_powers(t0: Tensor, t1: Tensor, past_times: Tensor, used: Tensor, num_terms: int) -> Tensor:
    """h times the basis polynomials N_j of the predictor in powers of theta = (t - t0) / h: (..., j, power).

    The predictor's slope is sum_j N_j(theta) phi*_j, with N_0 = 1, N_{j+1} = N_j (1 - r_j + r_j theta) and
    r_j = h / (t1 - t_{n-j}). The rows from `used` on are zero.
    """
    h, n = t1 - t0, num_terms
    known = torch.arange(n, device=h.device) < used.unsqueeze(-1)
    basis = [torch.cat((torch.ones_like(h).unsqueeze(-1), h.new_zeros((*h.shape, n - 1))), -1)]
    for j in range(n - 1):
        from_t1 = t1 - past_times[..., j]
        r = torch.ones_like(h) if j == 0 else h / torch.where(known[..., j] & (from_t1 != 0), from_t1, 1.0)
        r, last = r.unsqueeze(-1), basis[-1]
        shifted = torch.cat((torch.zeros_like(r), last[..., :-1]), -1)
        basis.append(last * (1.0 - r) + shifted * r)
    return torch.stack(basis, -2) * torch.where(known, h.unsqueeze(-1), 0.0).unsqueeze(-1)


def combine(weights: Tensor, stacks: Leaves) -> Leaves:
    """sum_j weights[..., j] * stacks[..., j, ...], from the last term, as that is the smallest.

    One elementwise operation for each term, so that the sum of a sample does not depend on the others in the batch.
    """
    axis, sums = weights.ndim - 1, list[Tensor]()
    for stack in stacks:
        terms = zip(reversed(expand_to(weights, stack).unbind(axis)), reversed(stack.unbind(axis)), strict=True)
        weight, term = next(terms)
        total = weight * term
        for weight, term in terms:
            total = total + weight * term if term.is_complex() else torch.addcmul(total, term, weight)
        sums.append(total)
    return tuple(sums)
