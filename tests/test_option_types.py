"""The types of the options name what the tables hold, and an option of another library gets a hint."""

import functools
import importlib
import inspect
import logging
import typing

import pytest
import torch

import odenet
from odenet.api import option_types
from odenet.gradients import GRADIENTS
from odenet.methods import METHODS
from odenet.nn import fields

classifiers = importlib.import_module("odenet.nn.classifier")  # the function of that name hides the module

NAMES = {
    "method": (odenet.MethodName, METHODS),
    "gradient": (odenet.GradientName, GRADIENTS),
    "on_failure": (option_types.OnFailure, option_types.ON_FAILURE),
    "activation": (fields.ActivationName, fields.ACTIVATIONS),
    "kind": (classifiers.ClassifierKind, classifiers.KINDS),
}


def decay(t, y):
    return -y


@pytest.mark.parametrize("choice", NAMES)
def test_a_literal_type_names_its_table(choice):
    names, table = NAMES[choice]
    assert set(typing.get_args(names)) == set(table)


def test_the_options_have_the_types_of_solve():
    parameters = inspect.signature(odenet.solve).parameters
    keywords = {k: p.annotation for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY and k != "args"}
    assert keywords == {k: v.__forward_arg__ for k, v in odenet.SolveOptions.__annotations__.items()}


@pytest.mark.parametrize("module", ["odenet.api.option_types", "odenet.nn.layer", "odenet.core.field_protocols"])
def test_annotations_can_be_read(module):
    """Tools that show signatures evaluate them."""
    for _, value in inspect.getmembers(__import__(module, fromlist=["x"]), inspect.isclass):
        if value.__module__ == module:
            typing.get_type_hints(value)


@pytest.mark.parametrize(
    ("keyword", "name"),
    [
        *(("t_eval", "ts"), ("saveat", "ts"), ("dt", "step"), ("dt0", "step"), ("step_size", "step")),
        *(("options", "controller"), ("solver", "method"), ("sensitivity", "gradient"), ("adjoint", "gradient")),
        *(("throw", "on_failure"), ("dense_output", "dense"), ("events", "event"), ("gradent", "gradient")),
    ],
)
def test_a_keyword_of_another_library_gets_a_hint(keyword, name):
    for call in (
        functools.partial(odenet.solve, decay, torch.ones(2), [0.0, 1.0]),
        functools.partial(odenet.Solver, decay),
    ):
        with pytest.raises(TypeError, match=f"'{keyword}' is unknown. Did you mean '{name}'"):
            call(**{keyword: 1})


@pytest.mark.parametrize(("name", "meant"), [("autograd", "backprop"), ("backsolve", "adjoint")])
def test_a_gradient_of_another_library_gets_a_hint(name, meant):
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        odenet.solve(decay, torch.ones(2), [0.0, 1.0], gradient=name)


def test_swapped_arguments_and_numbers_are_named():
    with pytest.raises(TypeError, match=r"write y0=torch.tensor\(\[0.0, 1.0\].*swap them if these are times"):
        odenet.solve(decay, (0, 1), torch.ones(3))
    with pytest.raises(TypeError, match=r"write y0=torch.tensor\(\[1.0, 2.0, 3.0\], dtype=torch.float64\)\.$"):
        odenet.solve(decay, [1.0, 2.0, 3.0], [0.0, 1.0])
    with pytest.raises(TypeError, match=r"write torch.tensor\(1.5"):
        odenet.solve(decay, 1.5, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"the arguments is solve\(f, y0, ts\)|order of the arguments"):
        odenet.solve(decay, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0, 2.0]))


def test_reprs_are_one_short_line():
    event = odenet.Event(lambda t, y: y[0], terminal=False)
    solver = odenet.Solver(decay, event=event, gradient=odenet.Adjoint(rtol=1e-3), controller=odenet.PID(max_step=0.1))
    shown = [event, solver, odenet.Partitioned(decay, decay), solver(torch.ones(2), [0.0, 1.0])]
    for x in shown:
        assert "object at" not in repr(x) and "\n" not in repr(x) and len(repr(x)) < 200, repr(x)
    assert repr(odenet.Partitioned(decay, decay)) == "Partitioned(decay, decay)"
    assert "time=False" in repr(odenet.nn.MLPField(2, time=False))
    assert "extra=1, dim=1" in repr(odenet.nn.Augmented(odenet.nn.NeuralODE(odenet.nn.MLPField(3)), 1))


def test_a_note_about_a_fall_back_is_logged(caplog):
    rate = torch.rand(4, 1)
    y0 = torch.ones(4, 1)
    with caplog.at_level(logging.INFO, "odenet"):
        odenet.solve(lambda t, y: -y * rate, y0, [0.0, 1.0], per_sample=True, rtol=1e-9)
    assert any("subset of the samples" in r.message for r in caplog.records)


def test_types_that_a_user_meets_are_exported():
    from odenet.events import Event, Hit

    assert Event is odenet.Event and Hit is odenet.Hit
    sol = odenet.solve(decay, torch.ones(2), [0.0, 1.0], save_steps=True)
    assert isinstance(sol.stats, odenet.Stats) and isinstance(sol.steps, odenet.Steps)
