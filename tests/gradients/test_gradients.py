"""Every gradient of the name table inherits the suite, and so do its variants."""

from __future__ import annotations

from typing import Any

import pytest

import odenet
from gradient_suite import GradientSuite
from odenet.gradients import GRADIENTS, backward_pass
from odenet.methods import METHODS
from odenet.methods.reversible_method import ReversibleMethod


class TestDiscrete(GradientSuite):
    """Graphs are stored, so the backward pass evaluates nothing."""

    name, exact, states_a_step, evaluates_backwards = "discrete", True, 1.1, False


class TestCheckpoints(GradientSuite):
    name, exact, states_a_step = "discrete", True, 0.02
    gradient = odenet.Discrete(checkpoints=3)


class TestMemory(GradientSuite):
    name, exact, states_a_step = "discrete", True, 0.02
    gradient = odenet.Discrete(memory="1.5MiB")


class TestBackprop(GradientSuite):
    name, exact, states_a_step, evaluates_backwards = "backprop", True, 10.0, False


class TestAdjoint(GradientSuite):
    name, exact, states_a_step = "adjoint", False, 0.02


class TestGauss(GradientSuite):
    name, exact, states_a_step = "gauss", False, 5.1


class TestGaussFromCheckpoints(GradientSuite):
    name, exact, states_a_step = "gauss", False, 1.0
    gradient = odenet.GaussAdjoint(interpolate="checkpoints", checkpoints=4)


class TestReversible(GradientSuite):
    name, exact, states_a_step = "reversible", True, 0.02

    def same_solution(self, options: dict[str, Any]) -> dict[str, Any]:
        return options | {"method": ReversibleMethod(METHODS[options["method"]], 0.99)}


class Stagewise:
    """Steps use one graph per evaluation, as those of large states do."""

    @pytest.fixture(autouse=True)
    def stagewise_from_zero_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backward_pass, "STAGEWISE_BYTES", 0)


class TestCheckpointsStagewise(Stagewise, TestCheckpoints):
    pass


class TestReversibleStagewise(Stagewise, TestReversible):
    pass


class TestForward(GradientSuite):
    name, exact, states_a_step, evaluates_backwards = "forward", True, 0.02, False

    def same_solution(self, options: dict[str, Any]) -> dict[str, Any]:
        """Samples that have ended stay in the batch, which callbacks see: a tanh may round by its place in memory."""
        return options | {"callbacks": odenet.Callbacks()}


def test_every_gradient_has_its_class() -> None:
    assert {c.name for c in GradientSuite.__subclasses__()} == set(GRADIENTS)
