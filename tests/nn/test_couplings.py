"""Couplings: optimal by brute force and by SciPy, plans by their marginals, contexts that are respected."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from torch import Tensor

from odenet.errors import ConvergenceWarning
from odenet.nn.flows import transport
from odenet.nn.flows.couplings import NAMES, OT, Coupling, Independent, Sinkhorn, coupling

ALL = [Independent(), OT(), Sinkhorn()]


def _batches(kind: str, n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x0, x1 = torch.randn(n, 2, dtype=dtype), 2.0 * torch.randn(n, 2, dtype=dtype).sign() + 5.0
    if kind == "clusters":  # tight ones, so that many pairs cost nearly the same
        x1 = x1 + 0.05 * torch.randn_like(x1)
    elif kind == "images":
        x0, x1 = torch.randn(n, 1, 4, 5, dtype=dtype), torch.randn(n, 1, 4, 5, dtype=dtype).exp()
    elif kind == "moved":
        x1 = torch.randn_like(x0) @ torch.tensor([[3.0, 1.0], [0.0, 0.2]], dtype=dtype) + 100.0
    elif kind == "equal":
        x0, x1 = torch.ones_like(x0), torch.zeros_like(x0)
    elif kind == "outliers":
        x1 = x1 + torch.randn_like(x1) / torch.rand_like(x1).square()
    return x0, x1


def _costs(x0: Tensor, x1: Tensor) -> Tensor:
    """Rows of x1, columns of x0, by differences in float64."""
    a, b = x0.double().flatten(1), x1.double().flatten(1)
    return (b.unsqueeze(1) - a.unsqueeze(0)).square().sum(2)


def _total(costs: Tensor, index: Tensor) -> float:
    assert sorted(index.tolist()) == list(range(len(costs)))  # every sample of noise once
    return costs[torch.arange(len(costs)), index].sum().item()


@pytest.mark.parametrize("n", [1, 2, 40, 81, 300])
@pytest.mark.parametrize("kind", ["duplicates", "clusters", "images", "equal", "outliers"])
def test_ot_is_optimal(kind: str, n: int) -> None:
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x0, x1 = _batches(kind, n, dtype)
        costs = _costs(x0, x1)
        best = costs.numpy()[linear_sum_assignment(costs.numpy())].sum()
        assert _total(costs, OT().pairs(x0, x1)) == pytest.approx(best, rel=rtol, abs=1e-12)


def test_ot_by_brute_force() -> None:
    x0, x1 = _batches("clusters", 7)
    costs = _costs(x0, x1)
    best = min(sum(costs[j, i].item() for j, i in enumerate(p)) for p in itertools.permutations(range(7)))
    assert _total(costs, OT().pairs(x0, x1)) == pytest.approx(best, rel=1e-13)


def test_sorts_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ties, and without SciPy, which more numbers need."""
    torch.manual_seed(0)
    x0, x1 = torch.randn(50, 1), torch.randn(50, 1).round()
    costs = _costs(x0, x1)
    best = costs.numpy()[linear_sum_assignment(costs.numpy())].sum()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert _total(costs, OT().pairs(x0, x1)) == pytest.approx(best, rel=1e-6)
    assert _total(costs, OT().pairs(x0[:, 0], x1[:, 0])) == pytest.approx(best, rel=1e-6)
    with pytest.raises(ImportError, match=r"torch-odenet\[flows\]"):
        OT().pairs(torch.randn(3, 2), torch.randn(3, 2))


@pytest.mark.parametrize("kind", ["moved", "clusters", "images"])
def test_potentials_are_nearly_optimal(kind: str) -> None:
    """Any potentials bound the optimum. SciPy's paths are short where the bound is close."""
    a, b = (x.flatten(1) - x.flatten(1).mean(0) for x in _batches(kind, 300, torch.float32))
    affinity = 2.0 * a @ b.T
    best = affinity[torch.arange(300), transport.assignment(affinity)].sum()

    def gap(g: Tensor) -> float:
        return (((affinity + g).amax(1).sum() - g.sum() - best) / 300 / affinity.std()).item()

    g = transport.column_potential(affinity, torch.empty_like(affinity))
    assert 0.0 <= gap(g) < 0.05 * gap(torch.zeros(300))


@pytest.mark.parametrize("kind", ["duplicates", "clusters", "images", "equal", "outliers"])
def test_sinkhorn_converges_by_default(kind: str) -> None:
    """A ConvergenceWarning is an error here."""
    x0, x1 = _batches(kind, 200, torch.float32)
    index = Sinkhorn().pairs(x0, x1)
    assert index.min() >= 0 and index.max() < 200 and len(index.unique()) > 50


@pytest.mark.parametrize("regularisation", [0.1, 2.0, 1e6])
def test_entropic_plan(regularisation: float) -> None:
    """Against Sinkhorn's algorithm in NumPy, with 40 and 60 points."""
    x0, x1 = _batches("clusters", 60)
    a, b = x0[:40] - x0[:40].mean(0), x1 - x1.mean(0)
    plan, error = transport.entropic_plan(2.0 * b @ a.T, regularisation, 1e-9, 100_000)
    log_kernel, f, g = -_costs(a, b).numpy() / regularisation, np.zeros(60), np.zeros(40)
    for _ in range(100_000):
        f = -math.log(60) - logsumexp(log_kernel + g, axis=1)
        change = -math.log(40) - logsumexp(log_kernel + f[:, None], axis=0) - g
        g = g + change
        if np.abs(change).max() < 1e-12:
            break
    assert error <= 1e-9
    np.testing.assert_allclose(plan.numpy() / 60, np.exp(f[:, None] + g + log_kernel), atol=1e-10)
    np.testing.assert_allclose(plan.sum(1).numpy(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(plan.sum(0).numpy(), 1.5, rtol=1e-7)


def test_draws_from_the_plan() -> None:
    x0, x1 = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]]).repeat(10_000, 1)
    index = Sinkhorn(0.5).pairs(x0, x1, generator=torch.Generator().manual_seed(0))
    # the plan of two equal pairs of points: proportional to 1 and exp(-1 / 0.5)
    near = (x0[index] == x1).all(1).double().mean().item()
    assert near == pytest.approx(1.0 / (1.0 + math.exp(-2.0)), abs=4.0 * math.sqrt(0.105 / 20_000))


def test_limits_of_the_regularisation() -> None:
    """Towards zero it is OT, towards infinity every pair is as likely."""
    x0, x1 = _batches("images", 50)
    best = OT().pairs(x0, x1)
    agree = (Sinkhorn(1e-3, tolerance=1e-2, max_iterations=20_000).pairs(x0, x1) == best).double().mean()
    assert agree > 0.95
    assert (Sinkhorn(1e6).pairs(x0, x1) == best).double().mean() < 0.2


def test_sinkhorn_says_that_it_did_not_converge() -> None:
    x0, x1 = _batches("clusters", 50)
    with pytest.warns(ConvergenceWarning, match="marginal error of .*tolerance=1e-06, in max_iterations=20"):
        Sinkhorn(1e-3, tolerance=1e-6, max_iterations=20).pairs(x0, x1)


@pytest.mark.parametrize("c", ALL[1:], ids=repr)
def test_classes_keep_their_noise(c: Coupling) -> None:
    """Only within a class, and as good as the coupling of each class alone."""
    x0, x1 = _batches("images", 120)
    classes = torch.randint(4, (120,))
    index = c.pairs(x0, x1, classes)
    assert bool((classes[index] == classes).all())
    both = torch.stack((classes % 2, classes // 2), 1)
    assert bool((classes[c.pairs(x0, x1, both)] == classes).all())
    if isinstance(c, OT):
        for k in range(4):
            rows = (classes == k).nonzero()[:, 0]
            torch.testing.assert_close(index[rows], rows[OT().pairs(x0[rows], x1[rows])])


@pytest.mark.parametrize("discrete", [True, False])
def test_context_weight(discrete: bool) -> None:
    """A finite weight is a term of the cost: with 0 the context makes no difference, with a large one it rules."""
    x0, x1 = _batches("images", 100)
    context = torch.randint(5, (100,)) if discrete else torch.randn(100, 3)
    c = context.double().reshape(100, -1)
    distance = (c.unsqueeze(1) != c.unsqueeze(0)).any(2) if discrete else (c.unsqueeze(1) - c.unsqueeze(0)).square()
    distance = distance.double() if discrete else distance.sum(2)
    moved = []
    for weight in (0.0, 3.0, 1e3):
        costs = _costs(x0, x1) + weight * distance
        index = OT(context_weight=weight).pairs(x0, x1, context)
        best = costs.numpy()[linear_sum_assignment(costs.numpy())].sum()
        assert _total(costs, index) == pytest.approx(best, rel=1e-6)
        moved.append(distance[torch.arange(100), index].mean().item())
    assert moved[0] > moved[1] > moved[2]
    torch.testing.assert_close(OT(context_weight=0.0).pairs(x0, x1, context), OT().pairs(x0, x1))


@pytest.mark.parametrize("c", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_index(c: Coupling, dtype: torch.dtype) -> None:
    """Shape, dtype, seeds; no graph; usable in a graph; autocast and copies make no difference."""
    x0, x1 = _batches("images", 30, torch.float32)
    x0, x1 = x0.to(dtype).requires_grad_(), x1.to(dtype)

    def draw(with_coupling: Coupling) -> Tensor:
        return with_coupling.pairs(x0, x1, generator=torch.Generator().manual_seed(3))

    index = draw(c)
    assert index.shape == (30,) and index.dtype == torch.long and index.device == x1.device
    x0[index].sum().backward()
    assert x0.grad is not None
    with torch.autocast("cpu"):
        torch.testing.assert_close(draw(c), index)
    for other in (copy.deepcopy(c), pickle.loads(pickle.dumps(c))):
        torch.testing.assert_close(draw(other), index)
    torch.manual_seed(5)
    first = c.pairs(x0, x1)
    torch.manual_seed(5)
    torch.testing.assert_close(c.pairs(x0, x1), first)


def test_low_matmul_precision_is_not_used() -> None:
    x0, x1 = _batches("images", 60, torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        index = OT().pairs(x0, x1)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(index, OT().pairs(x0.double(), x1.double()))


def test_by_name() -> None:
    assert [type(coupling(name, sigma=0.5)) for name in NAMES] == [Independent, OT, Sinkhorn, Sinkhorn]
    bridge = coupling("bridge", sigma=0.5)
    assert isinstance(bridge, Sinkhorn) and bridge.regularisation == 0.5
    assert repr(bridge) == "Sinkhorn(0.5)"
    assert coupling(bridge) is bridge


X = torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0], [3.0, 0.0]], dtype=torch.float32)
NAN = torch.tensor([[math.nan, 0.0]], dtype=torch.float32).expand(4, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: coupling("emd"), ValueError, "coupling='emd' is unknown.*Known: bridge, independent, ot, sinkhorn"),
        (lambda: coupling(None), TypeError, "coupling must be a name"),  # pyright: ignore[reportArgumentType]
        (lambda: coupling("bridge"), ValueError, "needs the deviation of its noise: give sigma=.*got None"),
        (lambda: coupling("bridge", sigma=0.0), ValueError, "needs the deviation of its noise.*got 0.0"),
        (lambda: OT(context_weight=-1.0), ValueError, "context_weight must not be negative; got -1.0"),
        (lambda: Sinkhorn(0.0), ValueError, "regularisation must be positive and finite, or None; got 0.0"),
        (lambda: Sinkhorn(tolerance=1.0), ValueError, "tolerance must be between 0 and 1; got 1.0"),
        (lambda: Sinkhorn(max_iterations=0), ValueError, "max_iterations must be at least 1; got 0"),
        (lambda: OT().pairs(X, NAN), ValueError, "x1 has NaN or infinity"),
        (lambda: OT().pairs(NAN, X), ValueError, "x0 has NaN or infinity"),
        (lambda: OT().pairs(X, 1e30 * X), ValueError, "x1 has values whose squares overflow"),
        (lambda: OT().pairs(X, X[:3]), ValueError, "same batch size, at least 1; got 4 and 3: .*Sinkhorn"),
        (lambda: Independent().pairs(X, X[:3]), ValueError, "same batch size, at least 1; got 4 and 3"),
        (lambda: Sinkhorn().pairs(X[:0], X[:0]), ValueError, "at least 1; got 0 and 0"),
        (lambda: OT().pairs(X, X[:, :1]), ValueError, r"in all axes but the first; got x0 of shape \(4, 2\)"),
        (lambda: OT().pairs(X.long(), X), TypeError, "x0 must be a tensor of real numbers.*got Tensor"),
        (
            lambda: OT().pairs(X, X, X[:3, 0]),
            ValueError,
            "x0, x1 and context must have the same batch size.*4, 4 and 3",
        ),
        (lambda: Sinkhorn().pairs(X[:3], X, X[:, 0]), ValueError, "x0, x1 and context must have the same batch size"),
        (lambda: OT().pairs(X, X, "label"), TypeError, "context must be a tensor"),  # pyright: ignore[reportArgumentType]
        (lambda: OT().pairs(X, X, NAN), ValueError, "context has NaN or infinity"),
        (lambda: OT().pairs(X, X, X), ValueError, "no two of the 4 contexts are equal.*finite context_weight"),
    ],
)
def test_wrong_arguments(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
