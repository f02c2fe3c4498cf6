"""Random calls of `solve` against the closed form of a forced linear equation."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import odenet
from odenet.core.pytrees import flatten, unflatten
from odenet.methods import METHODS, ImplicitRK

STRUCTURES: dict[str, Any] = {
    "tensor": 0,
    "dict": {"a": 0, "b": 0},
    "nested": (0, [{"x": 0}, (0,)]),
}


def exact(t: Tensor, t0: Tensor, y0: Tensor, k: float) -> Tensor:
    """The solution of y' = -k y + sin(t): a particular one, and a decaying difference from it."""

    def particular(s: Tensor) -> Tensor:
        return (k * torch.sin(s) - torch.cos(s)) / (1 + k * k)

    return particular(t) + (y0 - particular(t0)) * torch.exp(-k * (t - t0))


@st.composite
def times(draw: st.DrawFn) -> list[float]:
    """2 to 5 times in [-1, 2], in either direction, some of them repeated."""
    count = draw(st.integers(2, 5))
    whole = draw(st.lists(st.integers(-100, 200), min_size=count, max_size=count))
    return sorted((i / 100 for i in whole), reverse=draw(st.booleans()))


@settings(max_examples=20)
@given(data=st.data())
def test_against_closed_form(data: st.DataObject) -> None:
    check_against_closed_form(data)


@pytest.mark.slow
@settings(max_examples=200)
@given(data=st.data())
def test_against_closed_form_many(data: st.DataObject) -> None:
    check_against_closed_form(data)


def check_against_closed_form(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(sorted(METHODS)), label="method")
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.complex128]), label="dtype")
    structure = data.draw(st.sampled_from(sorted(STRUCTURES)), label="structure")
    per_sample = data.draw(st.booleans(), label="per_sample")
    own_times = per_sample and data.draw(st.booleans(), label="own_times")
    dense = data.draw(st.booleans(), label="dense")
    k = data.draw(st.sampled_from([0.0, 0.5, 2.0]), label="k")
    batch = 3
    rows = [data.draw(times(), label="ts") for _ in range(batch if own_times else 1)]
    longest = max(map(len, rows))
    rows = [row + [row[-1]] * (longest - len(row)) for row in rows]
    ts = torch.tensor(rows if own_times else rows[0], dtype=torch.float64)

    plain, spec = flatten(STRUCTURES[structure])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), label="seed"))
    shapes = [(batch, *[2] * i) for i in range(len(plain))]
    leaves = [torch.randn(s, dtype=torch.float64, generator=generator).to(dtype) for s in shapes]

    def f(t: Tensor, y: Any) -> Any:
        def one(x: Tensor) -> Tensor:
            return -k * x + torch.sin(t).view(t.shape + (1,) * (x.ndim - t.ndim)).to(x.dtype)

        return unflatten([one(x) for x in flatten(y)[0]], spec)

    adaptive = METHODS[method].error_order is not None
    implicit = isinstance(METHODS[method], ImplicitRK)  # these take their time
    options: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6} if adaptive else {"step": 2e-2 if implicit else 5e-3}
    sol = odenet.solve(f, unflatten(leaves, spec), ts, method=method, per_sample=per_sample, dense=dense, **options)

    rough = {"euler": 5e-2, "implicit_euler": 2e-1, "midpoint": 1e-3, "fehlberg2": 1e-3}
    tol = rough.get(method, 1e-3 if implicit and METHODS[method].order == 2 else 2e-4)
    for j in range(longest):
        for got, y0 in zip(flatten(sol.ys)[0], leaves, strict=True):
            assert got.dtype == dtype
            for b in range(batch):
                line = ts[b] if own_times else ts
                want = exact(line[j], line[0], y0[b], k)
                mine = got[b, j] if per_sample else got[j, b]
                assert float((mine - want).abs().max()) < tol * (1 + float(want.abs().max()))
    if not dense:
        return
    middle = (ts[..., :1] + ts[..., -1:]) / 2
    between = sol(middle)
    for got, y0 in zip(flatten(between)[0], leaves, strict=True):
        for b in range(batch):
            line, t = (ts[b], middle[b, 0]) if own_times else (ts, middle[0])
            mine = got[b, 0] if per_sample else got[0, b]
            want = exact(t, line[0], y0[b], k)
            assert float((mine - want).abs().max()) < tol * (1 + float(want.abs().max()))
