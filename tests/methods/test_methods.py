"""Every method of the name table inherits the suite."""

import inspect

import odenet
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


def test_every_method_has_its_class() -> None:
    tested = {c.name for c in MethodSuite.__subclasses__()}
    assert tested == set(METHODS)
    assert inspect.signature(odenet.solve).parameters["method"].default in METHODS
