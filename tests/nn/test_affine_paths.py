"""Affine paths: their ends, derivatives and inverses."""

from __future__ import annotations

import pytest
import torch

from odenet.core.affine_paths import PATHS, VP, Polynomial, affine_path

ALL = [*PATHS.values(), Polynomial(3.5), VP(0.5, 5.0)]


@pytest.mark.parametrize("path", ALL, ids=repr)
def test_path(path) -> None:
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64, requires_grad=True)
    for name in ("alpha", "sigma", "log_ratio"):
        (slope,) = torch.autograd.grad(getattr(path, name)(t).sum(), t)
        torch.testing.assert_close(getattr(path, f"{name}_dot")(t), slope, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(path.time(path.log_ratio(t)), t, rtol=1e-10, atol=1e-12)
    assert bool((path.log_ratio_dot(t) > 0).all())
    infinite = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    assert path.time(infinite)[0] <= 0.0 and path.time(infinite)[1] == 1.0
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert path.alpha(ends)[1] == 1.0 and path.sigma(ends)[1] == 0.0
    # the variance-preserving diffusion begins with a trace of the data
    noise = path.alpha(ends)[0].item() if not isinstance(path, VP) else 0.0
    assert noise == 0.0 and path.sigma(ends)[0].item() == pytest.approx(1.0, abs=0.05)
    last = torch.tensor(path.end, dtype=torch.float64)
    assert all(torch.isfinite(f(last)) for f in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot))


def test_published_values() -> None:
    """Song et al. 2021: alpha of the noise end is exp(-beta_max / 4 - beta_min / 4)."""
    assert VP().alpha(torch.zeros(())).item() == pytest.approx(0.00657, rel=1e-3)


def test_by_name() -> None:
    assert affine_path("cosine") is PATHS["cosine"]
    with pytest.raises(ValueError, match=r"path='cosin' is unknown.*cosine"):
        affine_path("cosin")
    with pytest.raises(TypeError, match="path must be a name, one of cond_ot"):
        affine_path(None)
    with pytest.raises(ValueError, match="n must be finite and at least 1"):
        Polynomial(0.5)
    with pytest.raises(ValueError, match="beta_min must be positive and below beta_max"):
        VP(2.0, 1.0)
