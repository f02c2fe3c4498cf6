"""Batches in which some samples fail, each in its own way, and what is compared with the same batch without them.

All fields are elementwise over samples, so that a sample's numbers have to be those it has in any other batch, bit for
bit. k has a row a sample and says which one fails; w is shared by all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import odenet

Field = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
D = torch.float64


def until(t: Tensor, y: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """NaN from t = k on, with a derivative that grows without bound before."""
    return torch.sqrt(k - t[:, None].to(y.real.dtype)) * w * y


def infinite(t: Tensor, y: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return torch.where(t[:, None] > k, torch.inf, 1.0).to(y.dtype) * -w * y


def squared(t: Tensor, y: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return w * k * y * y


def decay(t: Tensor, y: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return -w * k * y


def jump(t: Tensor, y: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return torch.where(t[:, None] < k, 0.0, 1e9).to(y.dtype) - 1e-3 * w * y


def steep(t: Tensor, y: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """Overflows in attempts that are too long, and in no other."""
    return -w * k * y * torch.exp(y * y)


@dataclass(frozen=True)
class Kind:
    """How samples fail: f, the k of those that do not (a range) and that of those that do, y0 of these, options.

    status: how they end with adaptive steps. once: with constant steps they fail too.
    """

    f: Field
    good: tuple[float, float]
    bad: float
    status: odenet.Status
    y0: float | None = None
    once: bool = True
    rtol: float = 1e-5
    atol: float = 1e-7
    max_steps: int = 10_000


S = odenet.Status
KINDS = {
    "f is NaN from a time on": Kind(until, (5.0, 9.0), 0.37, S.NON_FINITE),
    "f is infinite from a time on": Kind(infinite, (5.0, 9.0), 0.37, S.NON_FINITE),
    "blow-up": Kind(squared, (0.1, 0.2), 5.0, S.BLOW_UP),
    "max_steps": Kind(decay, (1.0, 2.0), 3000.0, S.MAX_STEPS, once=False, max_steps=60),
    "step underflow": Kind(jump, (5.0, 9.0), 1 / 3, S.STEP_UNDERFLOW, once=False, rtol=1e-14, atol=0.0),
    "NaN in y0": Kind(decay, (1.0, 2.0), 1.0, S.NON_FINITE, y0=math.nan),
    "infinity in y0": Kind(squared, (0.1, 0.2), 1.0, S.NON_FINITE, y0=math.inf),
    "NaN in args": Kind(decay, (1.0, 2.0), math.nan, S.NON_FINITE),
}
OVERFLOW = Kind(steep, (0.1, 0.2), 1.0, S.SUCCESS, y0=6.0)


@dataclass(frozen=True)
class Batch:
    f: Field
    y0: Tensor
    k: Tensor
    w: Tensor
    ts: Tensor

    def without(self, failing: Sequence[int]) -> Batch:
        keep = kept(len(self.y0), failing)
        return Batch(self.f, self.y0[keep], self.k[keep], self.w, self.ts[keep])


def kept(count: int, failing: Sequence[int]) -> Tensor:
    return torch.tensor([i for i in range(count) if i not in failing], dtype=torch.int64)


def batch(
    kind: Kind, count: int, failing: Sequence[int], *, dtype: torch.dtype = D, times: int = 4, down: bool = False,
    seed: int = 0,
) -> Batch:  # fmt: skip
    made = torch.Generator().manual_seed(seed)
    y0 = torch.rand(count, 2, generator=made, dtype=D) + 0.5
    k = kind.good[0] + (kind.good[1] - kind.good[0]) * torch.rand(count, 1, generator=made, dtype=D)
    for i in failing:
        k[i] = kind.bad
        if kind.y0 is not None:
            y0[i, 0] = kind.y0
    ts = torch.linspace(0.0, 1.0, times, dtype=D).repeat(count, 1)
    f, sign = kind.f, -1.0 if down else 1.0
    field = f if not down else lambda t, y, k, w: -f(-t, y, k, w)
    real = dtype.to_real() if dtype.is_complex else dtype
    return Batch(field, y0.to(dtype), k.to(real), torch.tensor([0.9, 1.1], dtype=real), sign * ts)


@dataclass
class Run:
    """A solve and the gradients of a loss over all samples: to y0, k (None where f closes over it), ts (or None), w."""

    sol: odenet.Solution
    y0: Tensor
    k: Tensor | None
    ts: Tensor | None
    w: Tensor


def weights(count: int, times: int) -> Tensor:
    """Of the loss: a row a sample, the same in any batch."""
    return torch.rand(count, times + 1, 2, generator=torch.Generator().manual_seed(3), dtype=D)


def solved(
    b: Batch, kind: Kind, loss: Tensor, *, closure: bool = False, moving: bool = False, dense: bool = False,
    **options: Any,
) -> Run:  # fmt: skip
    """loss: weights of ys, of which the numbers are summed, and of y1; with `dense` of two times within each solve."""
    y0, k, w = (x.clone().requires_grad_() for x in (b.y0, b.k, b.w))
    ts = b.ts.clone().requires_grad_(moving)
    settings: dict[str, Any] = {"rtol": kind.rtol, "atol": kind.atol, "max_steps": kind.max_steps} | options
    field: Any = (lambda t, y, w: b.f(t, y, k, w)) if closure else b.f
    sol = odenet.solve(
        field, y0, ts, args=(w,) if closure else (k, w), per_sample=True, on_failure="return", dense=dense, **settings
    )
    loss = loss.to(sol.ys.dtype)
    total = numbers(sol.ys * loss[:, :-1]) + (sol.y1 * loss[:, -1]).sum()
    if dense:
        alive = (torch.as_tensor(sol.status) == S.SUCCESS)[:, None]
        asked = torch.where(alive, b.ts[:, :1] + (b.ts[:, -1:] - b.ts[:, :1]) * torch.tensor([0.13, 0.7]), b.ts[:, :1])
        total = total + numbers(sol(asked) * loss[:, :2])
    total = total.real if total.is_complex() else total
    wanted = [y0, w, *(() if closure else (k,)), *((ts,) if moving else ())]
    got = list(torch.autograd.grad(total, wanted, materialize_grads=True))
    return Run(sol, got.pop(0), None if closure else got[1], got[-1] if moving else None, got[0])


def numbers(x: Tensor) -> Tensor:
    """The sum of what is not NaN, also of complex numbers."""
    return torch.where(x.isnan(), 0.0, x).sum()


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN where NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(torch.where(a.isnan(), 0, a), torch.where(b.isnan(), 0, b))


def check_alone(
    kind: Kind, count: int, failing: Sequence[int], *, counts: bool = True, fails: bool = True, down: bool = False,
    dtype: torch.dtype = D, seed: int = 0, bits_of_ts: bool = True, sums: float = 200.0, **options: Any,
) -> None:  # fmt: skip
    """The others are what they are without the failing ones; these have zero gradients, and add nothing to w's.

    sums: rounding errors that w's may differ by, whose terms may be summed in another order.
    """
    whole = batch(kind, count, failing, dtype=dtype, down=down, seed=seed)
    keep, times = kept(count, failing), whole.ts.shape[1]
    loss = weights(count, times)
    a = solved(whole, kind, loss, **options)
    b = solved(whole.without(failing), kind, loss[keep], **options)
    lost, status = list(failing), torch.as_tensor(a.sol.status)
    if fails:
        assert bool((status[lost] > 0).all()) and bool((status[keep] == 0).all()), status
    assert same(a.sol.ys[keep], b.sol.ys) and same(a.sol.y1[keep], b.sol.y1)
    for name in ("nfe", "accepted", "rejected") if counts else ("accepted", "rejected"):
        assert torch.equal(a.sol.stats[name][keep], b.sol.stats[name]), name
    for name in ("y0", "k", "ts"):
        mine, theirs = getattr(a, name), getattr(b, name)
        if mine is None:
            continue
        if name == "ts" and not bits_of_ts:
            torch.testing.assert_close(mine[keep], theirs, rtol=1e-13, atol=1e-13)
        else:
            assert same(mine[keep], theirs), (name, float((mine[keep] - theirs).abs().max()))
        assert bool(theirs.isfinite().all())
        assert not fails or torch.equal(mine[lost], torch.zeros_like(mine[lost])), (name, mine[lost])
    if fails:
        eps = sums * torch.finfo(a.w.dtype).eps
        torch.testing.assert_close(a.w, b.w, rtol=eps, atol=eps)
