"""States of few columns and many rows, which compiled loops hold column by column."""

import pytest
import torch
from torch import Tensor

import odenet.compiled.passes.column_layout as columns
from compiled.sides import same

F64 = torch.float64
OUTPUTS = [0.0, 0.3, 0.31, 1.0, 2.5]
DRAW = torch.Generator().manual_seed(0)
W = [torch.randn(shape, generator=DRAW, dtype=F64).requires_grad_() for shape in ((3, 20), (20,), (20, 3), (3,))]
RATES = torch.rand(18, 4, generator=DRAW, dtype=F64).requires_grad_()
Y0 = torch.randn(18, 3, generator=DRAW, dtype=F64)


def network(t: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(torch.tanh(y @ W[0] + W[1]) @ W[2] + W[3]) * torch.cos(t)


def views(t: Tensor, y: Tensor) -> Tensor:
    """Takes views that want rows without gaps, and puts columns side by side."""
    flat = y.view(-1).view(6, 9).sin().reshape(18, 3)
    return torch.cat([flat[:, :1] * y[:, 1:2], y[:, 1:] @ W[0][:2, :2]], 1) - y


def rates(t: Tensor, y: Tensor) -> Tensor:
    first, second = y[..., 0], y[..., 1]
    third = RATES[:, 2] * first * second - y[..., 2] * torch.cos(t)
    return torch.stack([RATES[:, 0] * second - first, -RATES[:, 1] * first, third], -1)


def one_by_one(t: Tensor, y: Tensor) -> Tensor:
    """Each row times the same matrix, as a batch of matrices."""
    return torch.sin((y.unsqueeze(1) @ W[0][:, :3]).squeeze(1)) - y


CASES = {
    "network": (network, [0.0, 2.0], W, {}),
    "outputs": (network, OUTPUTS, W, {}),
    "dense": (network, OUTPUTS, W, {"dense": True}),
    "fixed": (network, OUTPUTS, W, {"method": "rk4", "step": 0.05}),
    "no slope kept": (network, OUTPUTS, W, {"method": "heun"}),
    "views": (views, OUTPUTS, W[:1], {}),
    "rates": (rates, OUTPUTS, [RATES], {"per_sample": True}),
    "one by one": (one_by_one, OUTPUTS, W[:1], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_as_eager(name: str) -> None:
    f, ts, params, options = CASES[name]
    same(f, Y0, ts, params, counted=name != "no slope kept", **options)


@pytest.mark.slow
def test_two_leaves() -> None:
    """One of few columns, one that is not."""

    def f(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": y["a"] @ W[0][:, :3] - y["a"], "b": torch.sin(y["b"])}

    same(f, {"a": Y0, "b": Y0[:, 0].clone()}, OUTPUTS, W[:1])


@pytest.mark.slow
def test_outputs_are_rows() -> None:
    """The caller may take views of what comes back."""
    sol = same(network, Y0, OUTPUTS, W)
    assert sol.y1.is_contiguous()
    assert sol.y1.view(-1).shape == (54,)


@pytest.mark.parametrize(
    ("shape", "expected"), [((16, 2), True), ((15, 2), False), ((64, 16), False), ((64,), False), ((64, 4, 4), False)]
)
def test_few(shape: tuple[int, ...], expected: bool) -> None:
    assert columns.is_narrow(shape) is expected
    x = torch.randn(shape)
    assert torch.equal(columns.to_loop_layout(x, True), x)
    assert columns.to_loop_layout(x, True).mT.is_contiguous() == expected if x.ndim > 1 else True
    assert columns.tape_tensor(x, 5, True)[0].stride() == columns.to_loop_layout(x, True).stride()
