"""`gradient_report`: its numbers, its table, and what it shows of an ODE that contracts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import odenet

D = torch.float64


def contracting(t: Tensor, y: Tensor) -> Tensor:
    """Fast towards sin(t), so that going back in time leaves the solution at the rate 25."""
    return -25 * (y - torch.sin(t)) * (1 + 0.2 * torch.tanh(y))


@pytest.mark.slow
def test_the_adjoint_drifts_where_the_others_do_not() -> None:
    report = odenet.gradient_report(
        contracting, torch.tensor([0.5, -0.2], dtype=D), [0.0, 2.0], lambda sol: sol.y1.square().sum(),
        gradients=["discrete", odenet.Discrete(checkpoints=4), "adjoint", odenet.Reversible(0.9)],
        method="rk4", step=0.004, repeats=1,
    )  # fmt: skip
    by = {row.gradient: row for row in report}
    assert by["discrete"].relative_error < 1e-12 and by["Discrete(checkpoints=4)"].relative_error < 1e-12
    assert by["Reversible(coupling=0.9)"].relative_error < 1e-7
    assert by["adjoint"].relative_error > 1e-3
    assert all(row.seconds > 0 and row.peak_bytes > 0 and row.nfe > 0 for row in report)


def test_the_table() -> None:
    report = odenet.gradient_report(
        odenet.nn.MLPField(2), torch.randn(3, 2), [0.0, 0.5, 1.0], lambda ys: ys.mean(), rtol=1e-6, atol=1e-6
    )
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["gradient", "relative", "error"] and len(lines) == 2 + len(report)
    assert [row.gradient for row in report] == ["discrete", "backprop", "adjoint", "gauss", "reversible"]
    assert all(row.relative_error < 1e-3 and row.true_error < 1e-3 for row in report)


def test_a_failing_gradient_is_a_row() -> None:
    report = odenet.gradient_report(
        contracting, torch.ones(1, dtype=D), [0.0, 3.0], lambda sol: sol.y1.sum(),
        gradients=["discrete", odenet.Adjoint(max_steps=2)], repeats=1,
    )  # fmt: skip
    assert report[0].note == "" and math.isnan(report[1].relative_error) and "backward solve" in report[1].note


def test_wrong_arguments() -> None:
    one = torch.ones(1, dtype=D)
    for options, kind, match in (
        ({"gradient": "discrete"}, TypeError, "gradients="),
        ({"loss": 3}, TypeError, "loss must be callable as loss"),
        ({"loss": lambda sol: sol.ys}, TypeError, "loss must return a scalar"),
        ({"gradients": ["adjont"]}, ValueError, "Did you mean 'adjoint'"),
        ({"repeats": 0}, ValueError, "repeats"),
    ):
        call = {"f": contracting, "y0": one, "ts": [0.0, 1.0], "loss": lambda sol: sol.y1.sum()} | options
        with pytest.raises(kind, match=match):
            odenet.gradient_report(**call)  # type: ignore[arg-type]
