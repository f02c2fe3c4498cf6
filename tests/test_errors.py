"""Wrong arguments name themselves and the cure; a failing solve says where, which sample and why."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import odenet

ONE = torch.ones(3, dtype=torch.float64)


def decay(t: Tensor, y: Any) -> Any:
    return -y


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"f": 3}, TypeError, "f must be callable"),
    ({"y0": 1.0}, TypeError, "y0 must be a tensor"),
    ({"y0": [1.0]}, TypeError, r"y0\[0\] must be a tensor"),
    ({"y0": {}}, ValueError, "y0 has no tensor"),
    ({"y0": torch.ones(3, dtype=torch.int64)}, TypeError, "y0.*int64"),
    ({"y0": torch.ones(0)}, ValueError, "y0.*no elements"),
    ({"ts": 1.0}, TypeError, "ts"),
    ({"ts": [0.0]}, ValueError, "ts.*at least two"),
    ({"ts": [0.0, 2.0, 1.0]}, ValueError, r"ts must increase or decrease.*2\.0"),
    ({"ts": [0.0, float("nan")]}, ValueError, "ts must be finite"),
    ({"ts": torch.zeros(3, 2)}, ValueError, "ts.*per_sample"),
    ({"ts": torch.zeros(2, 2), "per_sample": True}, ValueError, "ts has 2 rows"),
    ({"ts": ["a", "b"]}, TypeError, "ts must be"),
    ({"args": ONE}, TypeError, "args must be a tuple"),
    ({"method": "dopri"}, ValueError, "Did you mean 'dopri8'"),
    ({"method": "RK45"}, ValueError, "Did you mean 'dopri5'"),
    ({"method": "LSODA"}, ValueError, "Did you mean 'esdirk54'"),
    ({"method": "radauIIA3"}, ValueError, "step is required.*'esdirk54'"),
    ({"method": "esdirk54", "jacobian": 5}, TypeError, "jacobian"),
    ({"jacobian": lambda t, y: torch.eye(2)}, ValueError, "jacobian is for implicit methods.*'tsit5'.*esdirk54"),
    (
        {"method": "esdirk54", "jacobian": lambda t, y: torch.eye(y.numel()) * 1j},
        ValueError,
        "jacobian must return real numbers.*[.]real",
    ),
    (
        {"method": "esdirk54", "jacobian": lambda t, y: torch.ones(2)},
        ValueError,
        "jacobian must return.*shape",
    ),
    ({"method": 5}, TypeError, "method must be"),
    ({"method": "euler"}, ValueError, "step is required"),
    ({"rtol": -1.0}, ValueError, "rtol.*-1.0"),
    ({"atol": torch.ones(2)}, ValueError, "atol.*broadcast"),
    ({"atol": "tiny"}, TypeError, "atol"),
    ({"step": 0.0}, ValueError, "step must be.*0.0"),
    ({"step": "big"}, TypeError, "step must be"),
    ({"step": 0.1, "controller": odenet.PID()}, ValueError, "step and controller"),
    ({"controller": "pid"}, TypeError, "controller must be"),
    ({"gradient": "adjont"}, ValueError, "Did you mean 'adjoint'"),
    ({"gradient": 1}, TypeError, "gradient must be"),
    ({"per_sample": 1}, TypeError, "per_sample must be"),
    ({"y0": torch.tensor(1.0), "per_sample": True}, ValueError, "per_sample=True needs"),
    ({"dense": "yes"}, TypeError, "dense must be"),
    ({"compile": "yes"}, TypeError, "compile must be True or False"),
    ({"event": 3}, TypeError, "event=Event"),
    ({"max_steps": 0}, ValueError, "max_steps.*0"),
    ({"max_steps": 1.5}, TypeError, "max_steps.*1.5"),
    ({"max_steps": 1e4}, TypeError, r"max_steps.*write int\(10000\)"),
    ({"on_failure": "rase"}, ValueError, "Did you mean 'raise'"),
    ({"progress": 3}, TypeError, "progress"),
    ({"f": lambda t, y: y[:2]}, ValueError, r"f's result has shape \(2,\)"),
    ({"f": lambda t, y: y.float()}, TypeError, "f's result has dtype torch.float32"),
    ({"f": lambda t, y: (y, y)}, TypeError, r"the structure \(tensor, tensor\), but y has tensor"),
    (
        {"f": lambda t, y: {"a": (y["a"][0],)}, "y0": {"a": [ONE]}},
        TypeError,
        r"\{'a': \(tensor,\)\}, but y has \{'a': \[tensor\]\}",
    ),
    ({"f": lambda t, y: 1.0}, TypeError, "f's result is a float"),
    ({"y0": None}, TypeError, "y0 must be a tensor; got NoneType"),
    ({"y0": {"a": ONE, "b": 3}}, TypeError, r"y0\['b'\] must be a tensor; got int 3"),
    ({"y0": {"a": ONE, "b": torch.ones(2)}, "per_sample": True}, ValueError, r"y0\['a'\] \(3,\), y0\['b'\] \(2,\)"),
    ({"ts": None}, TypeError, "ts must be.*NoneType"),
    ({"ts": "ab"}, TypeError, "ts must be.*str"),
    ({"ts": torch.zeros(1, 1, 2)}, ValueError, r"ts must hold at least two times.*have shape.*\(1, 1, 2\)"),
    ({"ts": torch.zeros(2, dtype=torch.complex64)}, TypeError, "ts must be real.*complex64"),
    ({"ts": torch.tensor([False, True])}, TypeError, "ts must be real.*bool"),
    ({"ts": torch.arange(30.0).sin()}, ValueError, r"ts must increase.*\(30,\)"),
    ({"args": None}, TypeError, "args must be a tuple.*NoneType"),
    ({"args": {"k": 1.0}}, TypeError, "args must be a tuple.*dict"),
    ({"method": "tsti5"}, ValueError, "method='tsti5' is unknown.*Did you mean 'tsit5'"),
    ({"method": "zzz"}, ValueError, "method='zzz' is unknown. Known: bosh3"),
    ({"gradient": "backdrop"}, ValueError, "gradient='backdrop'.*Did you mean 'backprop'"),
    ({"gradient": odenet.Adjoint}, TypeError, r"gradient must be.*write Adjoint\(\)"),
    ({"gradient": odenet.Adjoint(method="dopri6")}, ValueError, "Did you mean 'dopri"),
    ({"rtol": float("nan")}, ValueError, "rtol.*nan"),
    ({"rtol": True}, TypeError, "rtol.*True"),
    ({"rtol": torch.tensor(1e-3, requires_grad=True)}, ValueError, "rtol must not require a gradient"),
    ({"atol": float("inf")}, ValueError, "atol.*inf"),
    ({"atol": None}, TypeError, "atol must be a number.*None"),
    ({"atol": {"a": 1.0}}, TypeError, r"atol must be.*\{'a': 1\.0\}"),
    ({"step": -0.1}, ValueError, r"step must be.*-0\.1"),
    ({"step": True}, TypeError, "step must be.*True"),
    ({"controller": odenet.PID}, TypeError, "controller must be"),
    ({"max_steps": -1}, ValueError, "max_steps.*-1"),
    ({"max_steps": True}, TypeError, "max_steps.*True"),
    ({"on_failure": None}, TypeError, "on_failure must be a name, one of raise, return"),
    ({"step": torch.ones(2)}, TypeError, "step must be one positive number"),
    ({"step": torch.tensor(0.1 + 0j)}, TypeError, "step must be one positive number"),
    ({"rtol": 0.0, "atol": 0.0}, ValueError, "rtol and atol are both 0"),
    ({"controller": odenet.PID(step_ts=torch.ones(2, 2))}, ValueError, r"step_ts of shape \(2, 2\).*per_sample=False"),
    (
        {"controller": odenet.PID(jump_ts=torch.ones(2, 2)), "per_sample": True},
        ValueError,
        r"jump_ts of shape \(2, 2\).*3 samples",
    ),
    ({"y0": ONE.to_sparse()}, TypeError, "y0 must be a dense tensor.*sparse"),
    ({"y0": ONE.to("meta")}, TypeError, "y0 must be a dense tensor.*meta"),
    ({"controller": "pid"}, TypeError, "controller must be.*'pid'"),
]


@pytest.mark.parametrize(("change", "kind", "match"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_argument(change: dict[str, Any], kind: type[Exception], match: str) -> None:
    arguments = {"f": decay, "y0": ONE, "ts": [0.0, 1.0]} | change
    f, y0, ts = (arguments.pop(k) for k in ("f", "y0", "ts"))
    with pytest.raises(kind, match=match):
        odenet.solve(f, y0, ts, **arguments)


F = torch.float32
NOTES: list[tuple[Any, Any, type[Exception], str]] = [
    (
        torch.nn.Linear(3, 3, dtype=F),
        torch.ones(2, 3, dtype=F),
        TypeError,
        r"y of shape \(2, 3\) and dtype torch.float32.*lambda t, y: f\(y\)",
    ),
    (lambda t, y, rate: rate * y, torch.ones(3, dtype=F), TypeError, r"after t and y are given by solve\(..., args="),
    (
        lambda t, y: y @ torch.ones(2, 2, dtype=F),
        torch.ones(4, 3, dtype=F),
        RuntimeError,
        r"t of shape \(\) .*y of shape \(4, 3\) [^:]*$",
    ),
    (
        lambda t, y: torch.ones(3, 3, dtype=F) @ t.expand(3) * y,
        torch.ones(3, dtype=F),
        RuntimeError,
        r"t of .*dtype torch.float64.*write t.to\(y.dtype\)",
    ),
    (lambda t, y: {"v": y["w"]}, {"v": torch.ones(2, dtype=F)}, KeyError, r"y\['v'\] of shape \(2,\)"),
]


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint"])
@pytest.mark.parametrize(("f", "y0", "kind", "match"), NOTES, ids=["no t", "no args", "size", "dtype", "key"])
def test_errors_of_f_say_what_it_was_given(f: Any, y0: Any, kind: type[Exception], match: str, gradient: str) -> None:
    with pytest.raises(kind) as caught:
        odenet.solve(f, y0, [0.0, 1.0], gradient=gradient)
    assert re.search(match, caught.value.__notes__[0])


def test_pid_settings() -> None:
    for settings in ({"safety": 2.0}, {"factor_min": 2.0}, {"min_step": 1.0, "max_step": 0.5}, {"first_step": -1.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            odenet.PID(**settings)


def test_wrong_use_of_the_solution() -> None:
    sol = odenet.solve(decay, ONE, [0.0, 1.0])
    with pytest.raises(ValueError, match="dense=True"):
        sol(0.5)
    with pytest.raises(AttributeError, match=r"nfe, accepted.*'steps'"):
        _ = sol.stats.steps
    sol = odenet.solve(decay, ONE, [0.0, 1.0], dense=True)
    for t in (-0.1, 1.5, [0.5, 7.0]):
        with pytest.raises(ValueError, match=r"t must lie between ts\[0\]=0\.0 .* 1\.0"):
            sol(t)
    with pytest.raises(ValueError, match=r"t must have at most 1 axes.*\(1, 2\)"):
        sol(torch.zeros(1, 2))
    sol = odenet.solve(decay, torch.ones(3, 1), [0.0, 1.0], dense=True, per_sample=True)
    with pytest.raises(ValueError, match=r"one row a sample, shape \(3, m\); got \(2, 4\)"):
        sol(torch.zeros(2, 4))


def test_progress_is_reported() -> None:
    seen: list[float] = []
    odenet.solve(decay, ONE, [0.0, 1.0], progress=lambda fraction, stats: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == 1.0


@pytest.mark.parametrize("control", [odenet.PID, lambda **options: odenet.ConstantStep(0.1, **options)])
@pytest.mark.parametrize("name", ["step_ts", "jump_ts"])
def test_wrong_times_to_hit(control: Any, name: str) -> None:
    for given, kind in (("abc", TypeError), ([0.1, None], TypeError), (0.5, ValueError), ([float("nan")], ValueError)):
        with pytest.raises(kind, match=f"{name} must be"):
            control(**{name: given})


def test_numbers_of_numpy_are_numbers() -> None:
    sol = odenet.solve(decay, ONE, [0.0, 1.0], rtol=np.float32(1e-3), atol=np.float64(1e-6), max_steps=np.int64(50))
    assert sol.status == odenet.Status.SUCCESS


def test_a_continuous_adjoint_refuses_stops_that_ask_for_a_gradient() -> None:
    control = odenet.PID(jump_ts=torch.tensor([0.5], requires_grad=True))
    for gradient in ("adjoint", "gauss"):
        with pytest.raises(ValueError, match=r"no gradient to jump_ts.*discrete.*detach"):
            odenet.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], controller=control, gradient=gradient)


def test_small_things_that_are_shown() -> None:
    sol = odenet.solve(decay, ONE, [0.0, 1.0], dense=True)
    assert f"{sol.status}" == "Status.SUCCESS" and sol.status == 0
    with pytest.raises(ValueError, match="t must lie between"):
        sol(float("nan"))


def test_the_help_names_every_method_and_option() -> None:
    text = odenet.solve.__doc__ or ""
    assert [name for name in odenet.methods.METHODS if f'"{name}"' not in text] == []
    options = [p.name for p in inspect.signature(odenet.solve).parameters.values() if p.name != "f"]
    assert [name for name in options if not re.search(rf"^ +([\w, ]+, )?{name}(, \w+)*: ", text, re.MULTILINE)] == []
