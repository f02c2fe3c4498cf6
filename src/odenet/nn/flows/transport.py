"""Discrete optimal transport between two batches of equal weights: assignments, and entropic plans.

Both take the `affinity` of shape (rows, columns), 2 <a_i, b_j> for the points a_i of the one and b_j of the other. The
squared distance is |a_i|^2 + |b_j|^2 - 2 <a_i, b_j>, and terms of one index alone change no optimal plan.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALL = 80  # assignments of fewer rows are found sooner than potentials for them
ITERATIONS = 10  # of Sinkhorn's algorithm for each regularisation
RELAXATION = 1.6  # 1 is Sinkhorn's algorithm; from 1.4 to 1.7 times differ little
LIMIT = 1e18  # of a scaling factor: products of two are still far from overflow


def assignment(affinity: Tensor) -> Tensor:
    """The permutation p, of shape (B,), with the largest sum of affinity[i, p[i]], found by SciPy.

    SciPy adds one row after the other by a shortest augmenting path. These are short where potentials that are nearly
    optimal were subtracted from the costs, which leaves the optimum where it is. Those of an entropic plan are: for
    1024 points in the plane Sinkhorn's algorithm takes 9 ms, and SciPy 16 ms instead of 260 ms. Rounding of the
    potentials does no harm, because every row gets the same.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError('coupling="ot" needs SciPy: pip install "torch-odenet[flows]"') from None
    cost = torch.empty_like(affinity, dtype=torch.float64)
    g = 0.0
    if len(affinity) >= SMALL:
        # in the memory of the costs: new memory takes as long as several iterations
        kernel = cost.view(-1).view(torch.float32)[: cost.numel()].view_as(cost)
        g = column_potential(affinity.float(), kernel)
    cost.copy_(affinity).add_(g).neg_()
    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(affinity.device)


def column_potential(affinity: Tensor, kernel: Tensor) -> Tensor:
    """Nearly optimal dual variables g of the columns: affinity + g has its row maxima in most columns.

    kernel: memory of the shape and dtype of the affinity, which is overwritten.
    """
    (first, spread), g = _scales(affinity), affinity.new_zeros(affinity.shape[1])
    if spread == 0.0:
        return g
    # the last plan has rows of a few entries: what is near a point is one part in B of all
    for level in _levels(first, 3.0 * spread / len(affinity)):
        _rows_of_plan(affinity, g, level, kernel)
        g = g + level * _log_scaling(kernel, ITERATIONS)
    f = torch.add(affinity, g, out=kernel).amax(1)
    return torch.sub(f.unsqueeze(1), affinity, out=kernel).amin(0)  # every column is some row's first choice


def entropic_plan(
    affinity: Tensor, regularisation: float, tolerance: float, max_iterations: int
) -> tuple[Tensor, float]:
    """The entropic plan, scaled such that each row sums to 1, and the error of its columns.

    This is the mean over the columns of |sum / (rows / columns) - 1|, the L1 distance of the marginals. Iterations
    stop when it is at most `tolerance`. The regularisation falls from a large one to its own value (Schmitzer 2019,
    "Stabilized sparse scaling algorithms for entropy regularized transport problems"), and the scaling factors go
    into the potentials time and again, so that nothing overflows.
    """
    g, kernel = affinity.new_zeros(affinity.shape[1]), torch.empty_like(affinity)
    for level in _levels(_scales(affinity)[0], regularisation)[:-1]:
        _rows_of_plan(affinity, g, level, kernel)
        g = g + level * _log_scaling(kernel, ITERATIONS)
    error, iterations = math.inf, 0
    while True:
        _rows_of_plan(affinity, g, regularisation, kernel)
        error = (kernel.mean(0) * affinity.shape[1] - 1.0).abs().mean().item()
        if error <= tolerance or iterations >= max_iterations:
            return kernel, error
        g = g + regularisation * _log_scaling(kernel, 2 * ITERATIONS)
        iterations += 2 * ITERATIONS


def draw(rows: Tensor, generator: torch.Generator | None) -> Tensor:
    """A column for each row of probabilities, by inversion of their sums, which overwrite `rows`. Shape (rows,)."""
    sums = rows.cumsum_(1)
    device = rows.device if generator is None else generator.device
    u = torch.rand(len(rows), 1, dtype=rows.dtype, generator=generator, device=device).to(rows.device)
    return torch.searchsorted(sums, u * sums[:, -1:], right=True).squeeze(1).clamp_(max=rows.shape[1] - 1)


def _scales(affinity: Tensor) -> tuple[float, float]:
    """The first regularisation, which is large for data with outliers, and the standard deviation, of some rows."""
    low, high = torch.aminmax(affinity)
    spread = affinity[:: max(1, len(affinity) // 64)].std(correction=0)
    low, high, spread = torch.stack((low, high, spread)).tolist()
    return max(0.1 * spread, 0.02 * high, -0.02 * low), spread


def _levels(first: float, last: float) -> list[float]:
    """From `first` down to `last` by equal factors of at most 10; `last` alone where it is the larger one."""
    if last >= first:
        return [last]
    count = math.ceil(math.log10(first / last))
    return [first * (last / first) ** (k / count) for k in range(count + 1)]


def _rows_of_plan(affinity: Tensor, g: Tensor, regularisation: float, out: Tensor) -> None:
    torch.add(g / regularisation, affinity, alpha=1.0 / regularisation, out=out)
    torch.softmax(out, 1, out=out)


def _log_scaling(kernel: Tensor, iterations: int) -> Tensor:
    """Log of the factors of the columns after over-relaxed iterations of Sinkhorn's algorithm; the rows sum to 1.

    It has an arbitrary constant, which the next normalisation of the rows takes out: columns are brought to the sum 1.
    Thibault et al. 2021, "Overrelaxed Sinkhorn-Knopp algorithm for regularized optimal transport".
    """
    transposed = kernel.T
    v = kernel.sum(0).clamp_(1.0 / LIMIT, LIMIT).reciprocal_()
    for _ in range(iterations - 1):
        sums = transposed.mv(kernel.mv(v).reciprocal_()).mul_(v)
        v.mul_(sums.pow_(-RELAXATION)).clamp_(1.0 / LIMIT, LIMIT)
    return v.log_()
