"""What the implicit methods rest on: rows of a state, and GMRES."""

import pytest
import torch

from odenet.methods.gmres import gmres
from odenet.methods.matrix_layout import MatrixLayout

D = torch.float64


@pytest.mark.parametrize("batched", [False, True])
def test_rows_and_back(batched: bool) -> None:
    y = (torch.randn(4, 2, dtype=D), torch.randn(4, dtype=torch.complex64), torch.randn(4, 3, 1))
    rows = MatrixLayout(y, batched)
    whole = rows.to_matrix(y)
    assert whole.shape == ((4, 7) if batched else (1, 28)) and whole.dtype == D and rows.width == whole.shape[1]
    for a, b in zip(rows.to_leaves(whole), y, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    stacked = tuple(torch.stack([x, 2 * x]) for x in y)
    lead = rows.to_matrix(stacked)
    assert lead.shape == (2, *whole.shape) and torch.equal(lead[1], 2 * whole)
    assert all(torch.equal(a, b) for a, b in zip(rows.to_leaves(lead), stacked, strict=True))


@pytest.mark.parametrize(("n", "subspace"), [(8, 60), (40, 10), (1, 60)])
def test_gmres(n: int, subspace: int) -> None:
    """Several systems at once, one with a right-hand side of zero; restarted too."""
    generator = torch.Generator().manual_seed(0)
    A = torch.eye(n, dtype=D) + 0.3 * torch.randn(3, n, n, dtype=D, generator=generator) / n**0.5
    b = torch.randn(3, n, dtype=D, generator=generator)
    b[1] = 0.0
    x, converged = gmres(lambda v: (A @ v[..., None])[..., 0], b, 1e-13, subspace)
    assert bool(converged.all()) and bool((x[1] == 0).all())
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-11, atol=1e-12)


def test_gmres_says_where_it_failed() -> None:
    A = torch.stack([torch.eye(3, dtype=D), torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=D)])
    _, converged = gmres(lambda v: (A @ v[..., None])[..., 0], torch.ones(2, 3, dtype=D), 1e-12, cycles=3)
    assert converged.tolist() == [True, False]
