"""Random series for tests: samples of several lengths, empty ones too, with missing values."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from torch import Tensor

from odenet.series import Series


def random_series(
    seed: int,
    size: int = 4,
    rows: int = 6,
    channels: int = 2,
    missing: float = 0.3,
    static: int = 0,
    shortest: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Series:
    draw = torch.Generator().manual_seed(seed)
    length = torch.randint(shortest, rows + 1, (size,), generator=draw)
    t = (0.1 + torch.rand(size, rows, generator=draw, dtype=dtype)).cumsum(1)
    x = torch.randn(size, rows, channels, generator=draw, dtype=dtype)
    mask = torch.rand(size, rows, channels, generator=draw) >= missing
    features = torch.randn(size, static, generator=draw, dtype=dtype) if static else None
    names = [f"c{i}" for i in range(channels)]
    return Series(t, x, mask, length, features, names, list(range(100, 100 + size)))


SERIES = st.builds(
    random_series,
    seed=st.integers(0, 10**6),
    size=st.integers(0, 5),
    rows=st.integers(0, 9),
    channels=st.integers(1, 3),
    missing=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    static=st.integers(0, 2),
)


def same(a: Series, b: Series) -> bool:
    """Whether two series have the same samples, whatever their padding."""
    a, b = a.trimmed(), b.trimmed()
    fields = ("t", "x", "mask", "length", "static")
    equal = all(_equal(getattr(a, name), getattr(b, name)) for name in fields)
    return equal and (a.channels, a.ids) == (b.channels, b.ids)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b)
