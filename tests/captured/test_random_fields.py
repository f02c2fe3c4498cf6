"""Training over random fields finds the gradients of backpropagation, in every mode; and that is right by hand."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import odenet
from captured.random_fields import KEPT, SWITCH, TERMS, Field, by_hand, trained
from odenet import PID, Discrete
from odenet.errors import CaptureError

NEW = bool(os.environ.get("ODENET_NEW_CASES"))
EXACT = ["discrete", Discrete(checkpoints=2), "forward", "reversible"]
CONTINUOUS = ["adjoint", "gauss"]
STEPS: dict[str, Any] = {"method": "rk4", "step": 0.25}
quick = settings(max_examples=75, deadline=None, derandomize=not NEW, suppress_health_check=list(HealthCheck))
many = settings(max_examples=2000, deadline=None, derandomize=not NEW, suppress_health_check=list(HealthCheck))

cases = st.fixed_dictionaries(
    {
        "terms": st.lists(st.sampled_from(sorted(TERMS)), min_size=1, max_size=4, unique=True),
        "kept": st.lists(st.sampled_from(KEPT), max_size=3, unique=True),
        "seed": st.integers(0, 10_000),
        "per_sample": st.booleans(),
        "mode": st.sampled_from([*EXACT, *CONTINUOUS]),
    }
)


def check(terms: list[str], kept: list[str], seed: int, per_sample: bool, mode: Any) -> None:
    options = dict(STEPS, per_sample=per_sample)
    close = 1e-9
    if mode in CONTINUOUS:
        options = {"rtol": 1e-6, "atol": 1e-8, "per_sample": per_sample, "controller": PID(jump_ts=[SWITCH])}
        close = 1e-4
    # the reversible method is a method of its own, whose exact gradient is near that of any other at small steps
    if mode == "reversible":
        options, close = {"rtol": 1e-6, "atol": 1e-8, "per_sample": per_sample}, 1e-4
        options["controller"] = PID(jump_ts=[SWITCH])
    try:
        mine = trained(terms, kept, seed, mode, **options)
    except CaptureError:
        # one that is first used later, after the tangents have begun
        assert mode == "forward" and "late computed" in terms
        return
    except UserWarning as warning:  # the field contracts too fast for steps of this length: the cure that it names
        assert mode == "reversible" and "Use a smaller coupling, step" in str(warning)
        options["controller"] = PID(jump_ts=[SWITCH], max_step=0.02)
        mine = trained(terms, kept, seed, mode, **options)
    same(mine, trained(terms, kept, seed, "backprop", **options), close)


def same(mine: list[dict[str, Tensor]], expected: list[dict[str, Tensor]], close: float) -> None:
    for a, b in zip(mine, expected, strict=True):
        assert a.keys() == b.keys()
        top = max((float(x.abs().max()) for x in b.values()), default=0.0)
        for name in b:
            torch.testing.assert_close(
                a[name], b[name], rtol=close, atol=close * top, msg=lambda m, n=name: f"{n}: {m}"
            )


@quick
@given(cases)
def test_as_backpropagation(case: dict[str, Any]) -> None:
    check(**case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@many
@given(cases)
def test_as_backpropagation_many(case: dict[str, Any]) -> None:
    check(**case)


@pytest.mark.parametrize("mode", [*EXACT, *CONTINUOUS], ids=str)
@pytest.mark.parametrize("name", sorted(TERMS))
def test_each_term(name: str, mode: Any) -> None:
    check([name], KEPT, 7, per_sample=False, mode=mode)


@pytest.mark.parametrize("name", sorted(TERMS))
def test_backpropagation_by_hand(name: str) -> None:
    """A loop written by hand is the witness of `backprop`."""
    f = Field([name, "leaf"], KEPT, 3)
    f.before_step("backprop")
    y0 = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).view(2, 3)
    odenet.solve(f, y0, [0.0, 1.0], gradient="backprop", **STEPS).y1.square().mean().backward()
    mine = {n: p.grad for n, p in f.named_parameters() if p.grad is not None}
    same([mine], [by_hand([name, "leaf"], KEPT, 3, STEPS["step"])], 1e-10)
