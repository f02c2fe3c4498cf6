"""Objects of the library through pickle, torch.save, deepcopy, and to another process and back."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import multiprocessing
import pickle
import pkgutil
import weakref
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from gradient_settings import NAMES
from odenet.gradients.gradient import Stats
from odenet.methods import METHODS, DPMSolverPP, Method, UniPC
from odenet.nn import flows
from pool_worker import in_a_worker

D = torch.float64
NN_PACKAGES = ("baselines", "controlled", "flows", "latent", "recurrent")
ONE = torch.ones(1)
State = namedtuple("State", "x v")


def saved(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "save": saved,
    "deepcopy": copy.deepcopy,
}


def crossing(t: Tensor, y: Tensor) -> Tensor:
    return y[..., 0] - 0.5


def lifted(t: Tensor, y: Tensor) -> Tensor:
    return y + 1


def seen(t0: Any, y0: Any, dt: Any) -> None:
    pass


def largest(leaves: Any) -> Tensor:
    return torch.stack([x.abs().max() for x in leaves]).max()


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def loss(sol: odenet.Solution) -> Tensor:
    return sol.y1.sum()


def made(name: str) -> list[Any]:
    """Examples of what a public name stands for."""
    kind = getattr(odenet, name)
    if isinstance(kind, type) and issubclass(kind, odenet.SolveError):
        return [kind("message", t=0.5, dt=-1e-9, sample=3, component="y['x'][1]")]
    times = torch.ones(2, dtype=D, requires_grad=True).cumsum(0)
    examples: dict[str, Callable[[], list[Any]]] = {
        "PID": lambda: [odenet.PID(), odenet.PID(0.4, 0.3, norm=largest, jump_ts=[0.5], step_ts=times)],
        "Predictive": lambda: [odenet.Predictive(), odenet.Predictive(safety=0.8, jump_ts=[0.5], step_ts=times)],
        "Partitioned": lambda: [odenet.Partitioned(decay, decay)],
        "Terms": lambda: [odenet.Terms()],
        "Adjoint": lambda: [odenet.Adjoint(), odenet.Adjoint(rtol=1e-3, method="rk4", controller=odenet.Grid())],
        "Backprop": lambda: [odenet.Backprop()],
        "Callbacks": lambda: [odenet.Callbacks(step=seen, accept=seen)],
        "ConstantStep": lambda: [odenet.ConstantStep(0.1, every_output=False, jump_ts=times)],
        "ConvergenceWarning": lambda: [odenet.ConvergenceWarning("message")],
        "Discrete": lambda: [odenet.Discrete(), odenet.Discrete(checkpoints=4), odenet.Discrete(memory="1MiB")],
        "Event": lambda: [odenet.Event(crossing, reset=lifted, max_hits=3, direction=-1)],
        "Forward": lambda: [odenet.Forward()],
        "GaussAdjoint": lambda: [odenet.GaussAdjoint(interpolate="checkpoints", checkpoints=5)],
        "GradientReport": lambda: [
            odenet.gradient_report(decay, torch.ones(2), [0.0, 1.0], loss, gradients=["discrete"])
        ],
        "GradientRow": lambda: list(made("GradientReport")[0]),
        "Grid": lambda: [odenet.Grid(), odenet.Grid([0.1, 0.2], perturb=True), odenet.Grid(times)],
        "Hit": lambda: [odenet.Hit(1, torch.tensor(0.5), {"x": torch.ones(2)})],
        "Reversible": lambda: [odenet.Reversible(0.9)],
        "Solution": lambda: [odenet.solve(decay, torch.ones(2), [0.0, 1.0], dense=True)],
        "Solver": lambda: [odenet.Solver(decay), odenet.Solver(decay, rtol=1e-3, controller=odenet.PID(max_step=0.1))],
        "Stats": lambda: [odenet.Stats({"nfe": 3, "accepted": torch.tensor([1, 2])})],
        "Status": lambda: list(odenet.Status),
        "Steps": lambda: [odenet.Steps(torch.ones(2), torch.ones(2), {"x": torch.ones(2, 3)}, 2)],
        "StiffnessWarning": lambda: [odenet.StiffnessWarning("message")],
    }
    return examples[name]()


TYPES_ALONE = {"SolveOptions", "UserField"}  # have no objects of their own
CLASSES = [name for name in odenet.__all__ if isinstance(getattr(odenet, name), type) and name not in TYPES_ALONE]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class(name: str, way: str) -> None:
    """Whoever adds one adds an example above: the name is looked up there."""
    for x in made(name):
        other = WAYS[way](x)
        assert type(other) is type(x)
        assert same(other, x), f"{other!r} {x!r}"


def same(a: Any, b: Any) -> bool:
    """Equal by attributes, for what has no equality of its own."""
    if isinstance(b, Tensor):
        return isinstance(a, Tensor) and a.grad_fn is None and torch.equal(a, b.detach())
    if isinstance(b, BaseException):
        return type(a) is type(b) and str(a) == str(b) and a.args == b.args and vars(a) == vars(b)
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in b)
    if hasattr(b, "__dict__") and not callable(b) and not isinstance(b, type):
        return type(a) is type(b) and all(k.startswith("_") or same(getattr(a, k), v) for k, v in vars(b).items())
    return type(a) is type(b) if callable(b) else a == b


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in odenet.nn.__all__ if name not in NN_PACKAGES])
def test_every_layer(name: str, way: str) -> None:
    """After a solve with its gradient, so that it holds counts: other and same give the same."""
    field = odenet.nn.MLPField(3, (8,))
    layers: dict[str, Callable[[], tuple[torch.nn.Module, tuple[Any, ...]]]] = {
        "MLPField": lambda: (field, (torch.tensor(0.1), torch.ones(2, 3))),
        "ConvField": lambda: (odenet.nn.ConvField(4), (torch.tensor(0.1), torch.ones(2, 4, 5, 5))),
        "NeuralODE": lambda: (
            odenet.nn.NeuralODE(
                field, per_sample=True, controller=odenet.PID(max_step=0.2), gradient=odenet.Adjoint(rtol=1e-4),
                event=odenet.Event(crossing, terminal=False),
            ),
            (torch.ones(2, 3),),
        ),
        "Augmented": lambda: (odenet.nn.Augmented(odenet.nn.NeuralODE(field), 1), (torch.ones(2, 2),)),
        "Classifier": lambda: (
            odenet.nn.classifier("odenet", 1, 8, 3, channels=4, rtol=1e-2, atol=1e-2), (torch.ones(2, 1, 8, 8),)
        ),
        "CNF": lambda: (
            odenet.nn.CNF([field, field], regularisers=["taylor"], norm="act"),
            (torch.ones(2, 3),),
        ),
        "ConcatSquashField": lambda: (odenet.nn.ConcatSquashField(3), (torch.tensor(0.1), torch.ones(2, 3))),
        "FlowMatching": lambda: (odenet.nn.FlowMatching(Repeatable(), "vp", flows.OT()), (torch.ones(2, 3),)),
        "adapt": lambda: (odenet.nn.adapt(torch.nn.Linear(4, 3)), (torch.tensor(0.1), torch.ones(2, 3))),
        "classifier": lambda: (odenet.nn.classifier("rknet", 1, 8, 3, channels=4), (torch.ones(2, 1, 8, 8),)),
    }  # fmt: skip
    layer, given = layers[name]() if name in layers else (getattr(odenet.nn, name)(2), (series(),))
    out = layer(*given)
    out.sum().backward()
    other = WAYS[way](layer)
    assert torch.equal(other(*given), layer(*given))


def series() -> odenet.series.Series:
    """For the models of series."""
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return odenet.series.Series(torch.linspace(0.0, 1.0, 4), x)


@pytest.mark.parametrize("way", [*WAYS, "weights"])
def test_series(way: str) -> None:
    """They are saved with the tensors that a program keeps; `torch.load` takes them as they are."""
    mine = odenet.series.from_lists(
        [[0.0, 1.0], [0.5]], [[[1.0, 2.0], [3.0, float("nan")]], [[4.0, 5.0]]], ids=["a", 7]
    )
    if way == "weights":
        file = io.BytesIO()
        torch.save({"series": mine}, file)
        file.seek(0)
        other = torch.load(file)["series"]
    else:
        other = WAYS[way](mine)
    assert other.ids == mine.ids and all(
        torch.equal(getattr(other, field), getattr(mine, field)) for field in ("t", "x", "mask", "length")
    )


class Repeatable(torch.nn.Module):
    """A field that gives the same whatever the noise and the time are, with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        torch.manual_seed(0)  # for the next call
        return self.weight * x


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "part",
    [
        *(flows.CondOT(), flows.VP(0.2, 10.0), flows.Cosine(), flows.LinearVP(), flows.Polynomial(3.0)),
        *(flows.Independent(), flows.OT(context_weight=2.0), flows.Sinkhorn(0.1, max_iterations=50)),
        *(flows.ExactTrace(), flows.Hutchinson(3, "gaussian"), flows.HutchPlusPlus(2)),
        *(flows.Kinetic(0.5), flows.Frobenius(), flows.TaylorDerivative(3)),
    ],
    ids=repr,
)
def test_every_part_of_a_flow(part: Any, way: str) -> None:
    other = WAYS[way](part)
    assert type(other) is type(part) and repr(other) == repr(part) and vars(other) == vars(part)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str, way: str) -> None:
    other = WAYS[way](METHODS[name].with_dense_output("cubic"))
    assert other.name == name and other.interpolation == "cubic"
    step = {"step": 0.1} if other.error_order is None else {}
    mine = odenet.solve(decay, torch.ones(2, dtype=D), [0.0, 1.0], method=METHODS[name], **step)
    assert torch.equal(odenet.solve(decay, torch.ones(2, dtype=D), [0.0, 1.0], method=other, **step).y1, mine.y1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [DPMSolverPP(3, "vp"), UniPC(2, start="short")], ids=lambda m: m.name)
def test_every_sampler(method: Method, way: str) -> None:
    other = WAYS[way](method)
    mine = odenet.solve(decay, torch.ones(2, dtype=D), [0.0, 0.9], method=method, step=0.1).y1
    assert repr(other) == repr(method)
    assert torch.equal(odenet.solve(decay, torch.ones(2, dtype=D), [0.0, 0.9], method=other, step=0.1).y1, mine)


def exceptions() -> list[type[BaseException]]:
    """All of the library's own, but for those of the command line's training, which stay in their process."""
    found = set()
    for info in pkgutil.walk_packages(odenet.__path__, "odenet."):
        if info.name.split(".")[1] == "train" or info.name.endswith("__main__"):
            continue
        for x in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(x) and issubclass(x, BaseException) and x.__module__ == info.name:
                found.add(x)
    return sorted(found, key=lambda x: x.__name__)


@pytest.mark.parametrize("way", [*WAYS, "copy"])
@pytest.mark.parametrize("kind", exceptions(), ids=lambda x: x.__name__)
def test_every_error(kind: type[BaseException], way: str) -> None:
    more = {"t": 0.5, "dt": -1e-9, "sample": None, "component": "y"} if issubclass(kind, odenet.SolveError) else {}
    x = kind("message", **more)
    x.add_note("and a note")
    assert same((WAYS | {"copy": copy.copy})[way](x), x)


def test_errors_are_many() -> None:
    names = {x.__name__ for x in exceptions()}
    assert {"SolveError", "PileUpError", "CaptureError", "MaxStepsAssertionError", "StiffnessWarning"} <= names


EVENT = odenet.Event(crossing, terminal=False, reset=lifted)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("event", [None, EVENT], ids=["plain", "event"])
@pytest.mark.parametrize("gradient", NAMES)
def test_solutions(gradient: str, event: Any, per_sample: bool, way: str) -> None:
    """Of a lambda with parameters, with dense output: the values, and what sol(t) gives, without a graph."""
    w, y0 = torch.tensor(1.0, dtype=D, requires_grad=True), torch.tensor([[1.0], [0.8]], dtype=D, requires_grad=True)
    options: dict[str, Any] = {"gradient": gradient, "event": event, "per_sample": per_sample}
    sol = odenet.solve(lambda t, y: -w * y, y0, [0.0, 0.4, 2.0], dense=True, **options)
    other = WAYS[way](sol)
    for name in ("ts", "ys", "y1", "t1", "hits", "event", "status"):
        assert same(getattr(other, name), getattr(sol, name)), name
    assert same(dict(other.stats), dict(sol.stats))
    t = torch.tensor([0.0, 0.1, 0.7, 1.3, 2.0], dtype=D)
    assert torch.equal(other(t), sol(t).detach()) and not other(t).requires_grad
    assert str(other) == str(sol)
    again = WAYS[way](other)
    assert torch.equal(again(t), other(t))
    assert torch.autograd.grad(sol.y1.sum(), w, retain_graph=True)[0].isfinite()  # what was copied is as it was
    assert torch.autograd.grad(copy.copy(sol)(t).sum(), y0)[0].isfinite().all()  # a shallow copy shares all


@pytest.mark.parametrize("way", WAYS)
def test_structures(way: str) -> None:
    y0 = {"a": State(torch.ones(2), torch.zeros(1, dtype=torch.complex64)), "b": [torch.ones((), dtype=torch.float16)]}
    sol = odenet.solve(lambda t, y: y, y0, [0.0, 1.0], dense=True)
    got = WAYS[way](sol)(0.5)
    assert isinstance(got["a"], State) and got["b"][0].dtype == torch.float16
    assert torch.equal(got["a"].x, sol(0.5)["a"].x)


@pytest.mark.parametrize("way", WAYS)
def test_a_solution_of_which_samples_failed(way: str) -> None:
    y0 = torch.tensor([[0.1], [1.0]], dtype=D, requires_grad=True)
    for gradient in ("discrete", "backprop", "adjoint"):
        sol = odenet.solve(
            lambda t, y: y * y, y0, [0.0, 2.0], per_sample=True, on_failure="return", dense=True, gradient=gradient
        )
        other = WAYS[way](sol)
        assert torch.equal(other(0.9), sol(0.9).detach()) and torch.equal(other.y1, sol.y1.detach())


def test_a_pickle_has_the_size_of_what_it_holds() -> None:
    """Also of a part of a larger tensor: not the whole of it."""
    big = torch.ones(1000, 1000)
    sol = odenet.solve(decay, big[:2, :2], big[0, 0] * torch.tensor([0.0, 1.0]))
    hit = odenet.events.event.Hit(big.long()[0, 0], big[0, 0], big[0, :3])
    assert len(pickle.dumps(sol)) < 10_000 and len(pickle.dumps(hit)) < 10_000


def test_hits_and_counts() -> None:
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    sol = odenet.solve(decay, y0, [0.0, 1.0], event=EVENT, gradient="adjoint")
    for x in (sol.event, sol.hits):
        for way in WAYS.values():
            assert same(way(x), x) and not way(x).t.requires_grad
        assert copy.copy(x).t is x.t
    counts = pickle.loads(pickle.dumps(sol.stats))
    assert isinstance(counts, Stats) and counts.nfe == sol.stats.nfe
    sol.y1.sum().backward()
    assert sol.stats.backward_nfe > 0 and counts.backward_nfe == 0


def test_a_shallow_copy_of_a_controller_shares_its_times() -> None:
    times = torch.ones(2, dtype=D, requires_grad=True).cumsum(0)
    grid = odenet.Grid(times)
    assert copy.copy(grid).step_ts is times and copy.deepcopy(grid).step_ts.grad_fn is None


class Field:
    def __init__(self) -> None:
        self.w = torch.ones(2)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.w * y


@pytest.mark.parametrize("gradient", NAMES)
@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"event": EVENT}], ids=["joint", "samples", "event"])
def test_a_solution_does_not_keep_f(gradient: str, options: dict[str, Any]) -> None:
    """Where nothing asks for a gradient; with dense output too."""
    f = Field()
    gone = weakref.ref(f)
    sol = odenet.solve(f, torch.ones(3, 2), [0.0, 1.0], dense=True, gradient=gradient, **options)
    del f
    assert gone() is None
    assert sol(0.5).shape == (3, 2)


def test_a_pool_of_processes() -> None:
    """A failure comes back as the error that it is, and a solution with what can be asked of it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = {task: pool.submit(in_a_worker, task) for task in ("fails", "drop-in", "joint", "samples")}
        with pytest.raises(odenet.BlowUpError, match="blows up") as caught:
            tasks["fails"].result(timeout=120)
        assert caught.value.t == pytest.approx(1.0, abs=1e-3)
        with pytest.raises(AssertionError, match="blows up"):
            tasks["drop-in"].result(timeout=120)
        for task in ("joint", "samples"):
            sol = tasks[task].result(timeout=120)
            torch.testing.assert_close(sol(0.5), torch.full((2, 1), 0.6065307), rtol=1e-4, atol=0.0)
            assert float(torch.as_tensor(sol.t1).max()) == 1.0
