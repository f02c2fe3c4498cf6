"""Every gradient of the name table inherits the suite."""

from gradient_suite import GradientSuite
from odenet.gradients import GRADIENTS


class TestDiscrete(GradientSuite):
    name, exact, states_a_step = "discrete", True, 1.1


class TestBackprop(GradientSuite):
    name, exact, states_a_step = "backprop", True, 10.0


class TestAdjoint(GradientSuite):
    name, exact, states_a_step = "adjoint", False, 0.02


def test_every_gradient_has_its_class() -> None:
    assert {c.name for c in GradientSuite.__subclasses__()} == set(GRADIENTS)
