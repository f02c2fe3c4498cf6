"""The cache of simplified Newton iterations: what one step attempt leaves to the next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .block_eigensystem import BlockEigensystem
from .linear_solvers import fits_dense
from .matrix_layout import MatrixLayout
from .method import Cache

# Columns of `NewtonCache.numbers`. Flags are 0.0 or 1.0; a step size of 0 means that there was none.
FACTORS_DT = 0  # step size of the factors
ACCEPTED_DT = 1  # length of the step of `accepted`
ATTEMPTED_DT = 2  # length of the step of `attempted`
STALE = 3  # flag: the next step needs a new Jacobian
FRESH = 4  # flag: the Jacobian is that at the start of the last attempt
FAILURES = 5  # failed attempts in a row
RATE = 6  # contraction rate of the last iteration
_NUM_COLUMNS = 7


class NewtonCache(NamedTuple):
    """Memory from attempt to attempt, for B samples of n unknowns; dimension 0 is the batch.

    jacobian: (B, n, n). factors, pivots: LU of I - dt l J for each of E eigenvalues l, (B, E, n, n) and (B, E, n).
    These three have no entries in a matrix-free solve (too many unknowns).
    numbers: (B, 7), see the columns above.
    accepted, attempted: coefficients of the dense output of the last accepted step and of the last attempt, (B, D, n),
        where they predict the stages of the next step: `attempted` after an accepted attempt, `accepted` after a
        rejected one. D = 0: the tableau has a predictor instead.
    """

    jacobian: Tensor
    factors: Tensor
    pivots: Tensor
    numbers: Tensor
    accepted: Tensor
    attempted: Tensor


def empty_cache(t: Tensor, layout: MatrixLayout, eigensystem: BlockEigensystem, num_powers: int) -> NewtonCache:
    """The cache before the first step. num_powers: D."""
    count, width, like = layout.num_samples, layout.width, t.new_zeros((), dtype=layout.dtype)
    size = width if fits_dense(count, width, len(eigensystem)) else 0
    numbers = like.new_zeros(count, _NUM_COLUMNS)
    numbers[:, STALE] = 1.0
    jacobian, polynomial = like.new_zeros(count, size, size), like.new_zeros(count, num_powers, width)
    # factors of the identity: valid ones for samples that never run, in the batch of those that do
    identity = torch.eye(size, dtype=eigensystem.factor_dtype(layout.dtype), device=t.device)
    factors = identity.repeat(count, len(eigensystem), 1, 1)
    pivots = torch.arange(1, size + 1, dtype=torch.int32, device=t.device).repeat(count, len(eigensystem), 1)
    return NewtonCache(jacobian, factors, pivots, numbers, polynomial, polynomial)


def failure_reason(cache: Cache, sample: int | None) -> str:
    """Why the last iterations of a sample failed; a clause of an error message."""
    if not cache:
        return "the matrix of Newton's iteration is singular"
    numbers = NewtonCache(*cache).numbers[sample or 0]
    count, rate = int(numbers[FAILURES]), float(numbers[RATE])
    if rate == 0.0:
        reason = "met a singular matrix, or NaN, or infinity"
    elif rate >= 1.0:
        reason = f"diverged (each update {rate:.3g} times the last)"
    else:
        reason = f"was too slow ({rate:.3g} an iteration)"
    attempts = f"last {count} attempts (each half as long as the one before)" if count > 1 else "last attempt"
    return f"Newton's iteration failed in the {attempts}, and {reason}"
