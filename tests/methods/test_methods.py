"""Every method in `METHODS` inherits the suite."""

import inspect

import pytest

import odenet
from implicit_suite import AdaptiveImplicitSuite, ImplicitSuite
from method_suite import MethodSuite
from odenet.methods import METHODS


class TestEuler(MethodSuite):
    name, order = "euler", 1


class TestMidpoint(MethodSuite):
    name, order = "midpoint", 2


class TestHeun(MethodSuite):
    name, order = "heun", 2


class TestRalston(MethodSuite):
    name, order = "ralston", 2


class TestBosh3(MethodSuite):
    name, order = "bosh3", 3


class TestRK4(MethodSuite):
    name, order = "rk4", 4


class TestRK438(MethodSuite):
    name, order = "rk4_38", 4


class TestDopri5(MethodSuite):
    name, order = "dopri5", 5


class TestTsit5(MethodSuite):
    name, order = "tsit5", 5


class TestDopri8(MethodSuite):
    name, order = "dopri8", 8
    steps = (0.25, 0.2, 0.125, 0.1)


class TestFehlberg2(MethodSuite):
    name, order = "fehlberg2", 2
    overrun = 3000.0  # its estimate is 1/512 of the difference of two slopes

    def options(self, tol: float = 1e-6) -> dict[str, float]:
        return {"rtol": tol / 1000, "atol": tol / 1000}


class TestHeun3(MethodSuite):
    name, order = "heun3", 3


class TestImplicitEuler(ImplicitSuite):
    name, order = "implicit_euler", 1


class TestImplicitMidpoint(ImplicitSuite):
    name, order = "implicit_midpoint", 2


class TestTrapezoid(ImplicitSuite):
    name, order = "trapezoid", 2


class TestSDIRK2(ImplicitSuite):
    name, order = "sdirk2", 2


class TestTRBDF2(ImplicitSuite):
    name, order = "trbdf2", 2
    overrun = 300.0  # the error of the solution falls like tol^(2/3)


class TestKvaerno3(ImplicitSuite):
    name, order = "kvaerno3", 3


class TestKvaerno5(ImplicitSuite):
    name, order = "kvaerno5", 5
    steps = (0.25, 0.2, 0.125, 0.1)
    beyond = 0.25  # its third node is at 1.23


class TestESDIRK54(ImplicitSuite):
    name, order = "esdirk54", 5
    steps = (0.125, 0.1, 0.0625, 0.05)


class TestRadauIIA3(ImplicitSuite):
    name, order = "radauIIA3", 3


class TestGL4(ImplicitSuite):
    name, order = "gl4", 4


class TestRadauIIA5(ImplicitSuite):
    name, order = "radauIIA5", 5
    steps = (0.25, 0.2, 0.125, 0.1)


class TestGL6(ImplicitSuite):
    name, order = "gl6", 6
    steps = (0.5, 1 / 3, 0.25, 0.2)


class TestTRBDF2Adaptive(AdaptiveImplicitSuite, TestTRBDF2): ...


class TestRadauIIA5Adaptive(AdaptiveImplicitSuite, TestRadauIIA5): ...


@pytest.mark.slow
class TestKvaerno3Adaptive(AdaptiveImplicitSuite, TestKvaerno3): ...


@pytest.mark.slow
class TestKvaerno5Adaptive(AdaptiveImplicitSuite, TestKvaerno5): ...


@pytest.mark.slow
class TestESDIRK54Adaptive(AdaptiveImplicitSuite, TestESDIRK54): ...


def test_every_method_has_its_class() -> None:
    tested = {c.name for c in (*MethodSuite.__subclasses__(), *ImplicitSuite.__subclasses__()) if hasattr(c, "name")}
    assert tested == set(METHODS) - {"explicit_adams", "implicit_adams"}  # a history: test_adams.py
    assert inspect.signature(odenet.solve).parameters["method"].default in METHODS
