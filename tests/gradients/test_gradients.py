"""Every gradient of the name table inherits the suite."""

from gradient_suite import GradientSuite
from odenet.gradients import GRADIENTS


class TestDiscrete(GradientSuite):
    name, exact = "discrete", True


class TestBackprop(GradientSuite):
    name, exact = "backprop", True


class TestAdjoint(GradientSuite):
    name, exact = "adjoint", False


def test_every_gradient_has_its_class() -> None:
    assert {c.name for c in GradientSuite.__subclasses__()} == set(GRADIENTS)
