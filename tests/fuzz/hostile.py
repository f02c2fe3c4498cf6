"""Wrong arguments and wrong fields: what stands for an argument, and what is called with it."""

from __future__ import annotations

import decimal
import fractions
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import odenet
from odenet import nn
from odenet.compat import torchdiffeq
from odenet.core.pytrees import flatten, unflatten

PIDS: dict[str, Callable[[float], Any]] = {  # of the unit of time
    "pi": lambda u: odenet.PID(0.4, 0.3),
    "pid": lambda u: odenet.PID(0.3, 0.4, 0.1, safety=0.8, factor_min=0.3, factor_max=4.0),
    "first": lambda u: odenet.PID(first_step=0.01 * u),
    "largest": lambda u: odenet.PID(max_step=0.2 * u, min_step=1e-8 * u),
    "stops": lambda u: odenet.PID(step_ts=[0.3 * u, -0.2 * u, 1.1 * u], jump_ts=[0.6 * u]),
    "made": lambda u: odenet.PID(step_ts=lambda ts: ts[..., :1] + 0.1 * u),
}
STEPS: dict[str, Callable[[float], Any]] = {
    "constant": lambda u: odenet.ConstantStep(0.125 * u),
    "last": lambda u: odenet.ConstantStep(0.125 * u, every_output=False),
    "perturbed": lambda u: odenet.ConstantStep(0.125 * u, perturb=True, step_ts=torch.tensor([0.33]) * u),
    "unseen": lambda u: odenet.ConstantStep(0.125 * u, finite=False, jump_ts=[0.5 * u]),
    "grid": lambda u: odenet.Grid(
        lambda ts: ts[..., :1] + (ts[..., -1:] - ts[..., :1]) * torch.linspace(0, 1, 17).to(ts)
    ),
}
SETTINGS: dict[str, dict[str, Callable[[], Any]]] = {
    "discrete": {
        "one": lambda: odenet.Discrete(checkpoints=1),
        "three": lambda: odenet.Discrete(checkpoints=3),
        "memory": lambda: odenet.Discrete(memory="1MiB"),
        "bytes": lambda: odenet.Discrete(memory=10_000),
    },
    "backprop": {"instance": odenet.Backprop},
    "adjoint": {
        "tolerances": lambda: odenet.Adjoint(rtol=1e-7, atol=1e-9),
        "method": lambda: odenet.Adjoint(method="dopri5", controller=odenet.PID()),
        "norm": lambda: odenet.Adjoint(norm=lambda leaves: sum(x.abs().square().mean() for x in leaves) ** 0.5),
    },
    "gauss": {"tolerances": lambda: odenet.GaussAdjoint(rtol=1e-7, atol=1e-9)},
    "reversible": {"coupling": lambda: odenet.Reversible(0.999)},
    "forward": {"instance": odenet.Forward},
}


class Anything:
    """An object of no use."""

    def __repr__(self) -> str:
        return "Anything()"


class Unsized:
    """Says that it has a length, and does not."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        raise IndexError(i)


JUNK: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "zero": lambda: 0,
    "one": lambda: 1,
    "minus": lambda: -1,
    "big": lambda: 10**400,
    "half": lambda: 0.5,
    "negative": lambda: -0.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "tiny": lambda: 5e-324,
    "huge": lambda: 1.7e308,
    "complex": lambda: 1j,
    "decimal": lambda: decimal.Decimal("0.5"),
    "fraction": lambda: fractions.Fraction(1, 2),
    "numpy float": lambda: np.float32(0.5),
    "numpy int": lambda: np.int64(2),
    "numpy bool": lambda: np.bool_(True),
    "text": lambda: "x",
    "number as text": lambda: "0.5",
    "empty text": lambda: "",
    "bytes": lambda: b"x",
    "list": lambda: [],
    "dict": lambda: {},
    "tuple": lambda: (),
    "set": lambda: {0.0, 1.0},
    "names": lambda: ["a", "b"],
    "nones": lambda: [None, None],
    "ragged": lambda: [[0.0, 1.0], [2.0]],
    "times": lambda: [0.0, 0.5, 1.0],
    "turning": lambda: [0.0, 1.0, 0.5],
    "with nan": lambda: [0.0, float("nan"), 1.0],
    "one time": lambda: [0.0],
    "range": lambda: range(3),
    "generator": lambda: (x for x in (0.0, 1.0)),
    "mixed": lambda: [0.0, torch.ones(2)],
    "pair of tensors": lambda: (torch.ones(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)),
    "unsized": lambda: Unsized(),
    "object": lambda: Anything(),
    "class": lambda: Anything,
    "exception": lambda: ValueError("x"),
    "function": lambda: lambda *a, **k: None,
    "identity": lambda: lambda x, *a: x,
    "0-d": lambda: torch.tensor(0.5, dtype=torch.float64),
    "0-d nan": lambda: torch.tensor(float("nan")),
    "0-d negative": lambda: torch.tensor(-1.0),
    "0-d whole": lambda: torch.tensor(2),
    "0-d wants a gradient": lambda: torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
    "vector": lambda: torch.tensor([0.0, 1.0], dtype=torch.float64),
    "long": lambda: torch.arange(7.0),
    "matrix": lambda: torch.zeros(3, 2, dtype=torch.float64) + torch.tensor([0.0, 1.0]),
    "cube": lambda: torch.zeros(2, 3, 4, dtype=torch.float64),
    "whole": lambda: torch.arange(3),
    "bool": lambda: torch.tensor([False, True]),
    "complex tensor": lambda: torch.ones(3, dtype=torch.complex64),
    "half tensor": lambda: torch.tensor([0.0, 1.0], dtype=torch.float16),
    "nan tensor": lambda: torch.full((3, 2), float("nan"), dtype=torch.float64),
    "inf tensor": lambda: torch.full((3, 2), float("inf"), dtype=torch.float64),
    "empty tensor": lambda: torch.ones(0, 2),
    "no rows": lambda: torch.ones(3, 0),
    "sparse": lambda: torch.eye(3, dtype=torch.float64).to_sparse(),
    "csr": lambda: torch.eye(2, dtype=torch.float64).to_sparse_coo().coalesce(),
    "meta": lambda: torch.ones(3, 2, device="meta"),
    "quantised": lambda: torch.ones(3, 2, dtype=torch.float8_e4m3fn),
    "unsigned": lambda: torch.ones(3, dtype=torch.uint8),
    "array": lambda: np.array([0.0, 1.0]),
    "matrix array": lambda: np.ones((3, 2)),
    "array of objects": lambda: np.array([None, "x"], dtype=object),
    "array of text": lambda: np.array(["a", "b"]),
    "complex array": lambda: np.array([0.0, 1.0j]),
    "method": lambda: "rk4",
    "gradient": lambda: "adjoint",
    "controller": lambda: odenet.PID(),
    "constant": lambda: odenet.ConstantStep(0.1),
    "grid": lambda: odenet.Grid([0.5]),
    "event": lambda: odenet.Event(lambda t, y, *args: t - 5.0),
    "adjoint": lambda: odenet.Adjoint(method="rk4"),
    "module": lambda: torch.nn.Linear(2, 2),
    "mapping": lambda: {"a": torch.ones(3, 2, dtype=torch.float64), 3: None},
    "deep": lambda: functools.reduce(lambda x, _: [x], range(60), 0.5),
}


def decay(t: Tensor, y: Any, *args: Any) -> Any:
    leaves, spec = flatten(y)
    return unflatten([-x for x in leaves], spec)


class Entry(NamedTuple):
    """What is called, with which arguments that a call may replace. called by other names in messages: `names`."""

    call: Callable[..., Any]
    arguments: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({})


Y0 = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]], dtype=torch.float64)


def _solve(**changes: Any) -> Any:
    given = {"f": decay, "y0": Y0, "ts": [0.0, 0.5, 1.0], "max_steps": 300} | changes
    f, y0, ts = (given.pop(k) for k in ("f", "y0", "ts"))
    return odenet.solve(f, y0, ts, **given)


def _with(make: Callable[..., Any], argument: str, base: dict[str, Any], **rest: Any) -> Callable[..., Any]:
    """A solve with what `make` makes: a setting may be refused when it is made, or when it is used."""

    def call(**changes: Any) -> Any:
        y0 = Y0.clone().requires_grad_()
        sol = _solve(y0=y0, **{argument: make(**base | changes)}, **rest)
        torch.autograd.grad(sol.ys.sum(), y0)
        return sol

    return call


def _dense(**changes: Any) -> Any:
    sol = _solve(dense=True)
    sol(**changes)
    return sol


def _dense_rows(**changes: Any) -> Any:
    sol = _solve(dense=True, per_sample=True)
    sol(**changes)
    return sol


def _odeint(which: str) -> Callable[..., Any]:
    def call(**changes: Any) -> Any:
        given: dict[str, Any] = {"func": decay, "y0": Y0, "t": torch.tensor([0.0, 1.0], dtype=torch.float64)} | changes
        if which == "odeint_event":
            given = {"func": decay, "y0": Y0, "t0": torch.tensor(0.0, dtype=torch.float64)}
            given |= {"event_fn": lambda t, y: t - 0.5} | changes
        elif which == "odeint_dense":
            given = {"func": decay, "y0": Y0, "t0": 0.0, "t1": 1.0} | changes
        if which == "odeint_adjoint":
            given = {"adjoint_params": ()} | given
        positional = [given.pop(k) for k in ("func", "y0", "t", "t0", "t1") if k in given]
        return getattr(torchdiffeq, which)(*positional, **given)

    return call


def _layer(**changes: Any) -> Any:
    given = {"y0": Y0, "ts": None, "args": ()} | {k: v for k, v in changes.items() if k in ("y0", "ts", "args")}
    rest = {k: v for k, v in changes.items() if k not in given}
    layer = nn.NeuralODE(rest.pop("field", decay), rest.pop("own_ts", (0.0, 1.0)), max_steps=300, **rest)
    layer(given["y0"], given["ts"], given["args"])


def _module(make: Callable[..., Any], base: dict[str, Any], y: Callable[[], Tensor]) -> Callable[..., Any]:
    def call(**changes: Any) -> Any:
        module = make(**base | changes)
        module(torch.tensor(0.5), y())

    return call


def _classifier(**changes: Any) -> Any:
    given = {"kind": "odenet", "image_size": 8, "channels": 4, "classes": 3, "tol": 1e-1} | changes
    tol = given.pop("tol")
    odenet.nn.classifier(rtol=tol, atol=tol, max_steps=300, **given)(torch.zeros(2, 1, 8, 8))


def _report(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "f": decay,
        "y0": Y0,
        "ts": [0.0, 1.0],
        "loss": lambda sol: sum(x.abs().sum() for x in flatten(sol.y1)[0]),
    }
    given |= {"gradients": ["discrete"], "repeats": 1} | changes
    positional = [given.pop(k) for k in ("f", "y0", "ts", "loss")]
    odenet.gradient_report(*positional, **given)


ENTRIES: dict[str, Entry] = {
    "solve": Entry(
        _solve,
        (
            *("f", "y0", "ts", "args", "method", "rtol", "atol", "step", "controller", "gradient", "per_sample"),
            *("event", "dense", "max_steps", "on_failure", "progress", "callbacks"),
        ),
        # a y0 or a ts of another shape may first show in what must fit it, and the other way round
        {"per_sample": ("per_sample",), "step": ("step", "controller"), "controller": ("controller", "step")},
    ),
    "PID": Entry(
        _with(odenet.PID, "controller", {}),
        (
            *("pcoeff", "icoeff", "dcoeff", "safety", "factor_min", "factor_max", "min_step", "max_step"),
            *("first_step", "step_ts", "jump_ts", "norm"),
        ),
    ),
    "ConstantStep": Entry(
        _with(odenet.ConstantStep, "controller", {"step": 0.1}),
        ("step", "every_output", "step_ts", "jump_ts", "perturb", "finite"),
    ),
    "Grid": Entry(_with(odenet.Grid, "controller", {"times": [0.25, 0.5, 0.75]}, method="rk4"),
                  ("times", "perturb", "finite"), {"times": ("times", "step_ts")}),
    "Discrete": Entry(_with(odenet.Discrete, "gradient", {}), ("checkpoints", "memory")),
    "Adjoint": Entry(
        _with(odenet.Adjoint, "gradient", {}),
        ("rtol", "atol", "method", "norm", "controller", "max_steps", "callbacks"),
    ),
    "GaussAdjoint": Entry(
        _with(odenet.GaussAdjoint, "gradient", {}),
        ("rtol", "atol", "method", "norm", "controller", "max_steps", "callbacks"),
    ),
    "Reversible": Entry(_with(odenet.Reversible, "gradient", {}), ("coupling",)),
    "Callbacks": Entry(_with(odenet.Callbacks, "callbacks", {}), ("step", "accept", "reject")),
    "Solution": Entry(_dense, ("t",)),
    "Solution per sample": Entry(_dense_rows, ("t",)),
    "odeint": Entry(_odeint("odeint"), ("func", "y0", "t", "rtol", "atol", "method", "options"),
                    {"func": ("func", "f")}),
    "odeint_adjoint": Entry(
        _odeint("odeint_adjoint"),
        (
            *("func", "y0", "t", "rtol", "atol", "method", "options", "adjoint_rtol", "adjoint_atol"),
            *("adjoint_method", "adjoint_options", "adjoint_params"),
        ),
        {"func": ("func", "f")},
    ),
    "odeint_event": Entry(_odeint("odeint_event"), ("func", "y0", "t0", "event_fn", "odeint_interface", "reverse_time"),
                          {"t0": ("t0", "t"), "func": ("func", "f"), "event_fn": ("event_fn", "event function")}),
    "odeint_dense": Entry(_odeint("odeint_dense"), ("func", "y0", "t0", "t1", "rtol", "atol", "method", "options"),
                          {"t0": ("t0", "t"), "t1": ("t1", "t"), "func": ("func", "f")}),
    "NeuralODE": Entry(_layer, ("field", "own_ts", "y0", "ts", "args", "rtol", "gradient", "method"),
                       {"field": ("field", "f"), "own_ts": ("ts",)}),
    "MLPField": Entry(_module(nn.MLPField, {"dim": 2}, lambda: torch.ones(3, 2)),
                      ("dim", "hidden", "activation", "time")),
    "ConvField": Entry(_module(nn.ConvField, {"channels": 4}, lambda: torch.ones(2, 4, 3, 3)),
                       ("channels", "hidden", "groups", "activation", "time")),
    "Augmented": Entry(
        lambda **changes: nn.Augmented(**{"layer": nn.NeuralODE(decay), "extra": 1, "dim": 1} | changes)(Y0),
        ("layer", "extra", "dim"),
    ),
    "classifier": Entry(_classifier, ("kind", "in_channels", "image_size", "classes", "channels", "depth")),
    "gradient_report": Entry(_report, ("f", "y0", "ts", "loss", "gradients", "repeats", "args")),
}  # fmt: skip
