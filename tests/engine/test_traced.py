"""A solve in a graph that the caller records: one graph, and the numbers of the eager solve."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from odenet.api.options import Options
from odenet.nn import MLPField, NeuralODE
from slow_cases import slow_unless
from torch_versions import needs_tracing

D = torch.float64

pytestmark = [
    needs_tracing,
    # dynamo's own doings
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*TF32:UserWarning"),
]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = MLPField(3, (8,))

    def forward(self, t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return self.net(t, y) - k * y


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.field, self.options = nn.Linear(2, 3), Field(), options
        self.double()

    def forward(self, x: Tensor, ts: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Any]:
        sol = odenet.solve(self.field, self.first(x), ts, args=(k,), **self.options)
        return sol.ys, sol.y1, sol.stats


def loss(out: Any) -> Tensor:
    return out[0].square().sum() + out[1].sum()


def same(model: Model, ts: list[float], backend: str, times: bool, tol: float) -> None:
    x, k = torch.randn(4, 2, dtype=D, requires_grad=True), torch.rand(3, dtype=D, requires_grad=True)
    t = torch.tensor(ts, dtype=D, requires_grad=times)
    inputs = (x, k, *model.parameters(), *((t,) if times else ()))
    mine = torch.compile(model, fullgraph=True, backend=backend)(x, t, k)
    eager = model(x, t, k)
    for a, b in zip(mine[:2], eager[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    jumps = getattr(model.options.get("controller"), "jump_ts", None) is not None
    for name in ("accepted", "rejected") if jumps else ("accepted", "rejected", "nfe"):  # nfe leaves restarts out
        assert int(mine[2][name]) == eager[2][name]
    pairs = zip(torch.autograd.grad(loss(mine), inputs), torch.autograd.grad(loss(eager), inputs), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


ONE_GRAPH: dict[str, tuple[dict[str, Any], list[float], bool]] = {
    # options, ts, whether ts asks for a gradient
    "tsit5": ({}, [0.0, 0.3, 0.5, 1.0], False),
    "dopri5": ({"method": "dopri5", "gradient": "backprop"}, [1.0, 0.0], False),
    "rk4": ({"method": "rk4", "step": 0.3}, [0.0, 0.5, 1.0], False),
    "start at a jump": ({"controller": odenet.PID(jump_ts=[0.4])}, [0.4, 1.0], False),
    "jump": ({"controller": odenet.PID(jump_ts=[0.4])}, [0.0, 0.2, 1.0], False),
    "adjoint": ({"gradient": "adjoint"}, [0.0, 0.6, 1.0], True),
    "adjoint-rk4": ({"gradient": "adjoint", "method": "rk4", "step": 0.1}, [0.0, 1.0], False),
}


@pytest.mark.parametrize("name", slow_unless(ONE_GRAPH, "rk4"))
def test_one_graph(name: str) -> None:
    options, ts, times = ONE_GRAPH[name]
    # an eager adjoint with constant rk4 steps integrates the parameters' gradient by rk4's own weights, to their order
    own = options.get("gradient") == "adjoint" and "step" in options
    same(Model(**options), ts, "eager", times, 1e-5 if own else 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["discrete", "adjoint"])
def test_through_aot_autograd(gradient: str) -> None:
    same(Model(gradient=gradient), [0.0, 1.0], "aot_eager", False, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient": "adjoint"}, {"method": "rk4", "step": 0.1}], ids=str)
def test_inductor(options: Any) -> None:
    same(Model(**options), [0.0, 0.5, 1.0], "inductor", options.get("gradient") == "adjoint", 1e-10)


@pytest.mark.slow
def test_without_grad_and_other_values() -> None:
    """The graph serves other states, times and weights; rejected attempts are counted like eager ones."""
    model = Model(controller=odenet.PID(first_step=0.9))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), torch.compiler.set_stance("default"):
        for scale in (1.0, 40.0):
            x, k = scale * torch.randn(4, 2, dtype=D), scale * torch.rand(3, dtype=D)
            mine, eager = compiled(x, torch.tensor([0.0, scale / 40, 1.0], dtype=D), k), None
            eager = model(x, torch.tensor([0.0, scale / 40, 1.0], dtype=D), k)
            torch.testing.assert_close(mine[:2], eager[:2], rtol=1e-8, atol=1e-10)
            assert int(mine[2].rejected) == eager[2].rejected
    assert eager is not None and eager[2].rejected > 0


def test_rejected_attempts_keep_gradients_finite() -> None:
    """An attempt overflows; the gradient comes from the accepted steps alone."""

    def run(y: Tensor, k: Tensor) -> Tensor:
        def f(t: Tensor, y: Tensor) -> Tensor:
            return -k * y * torch.exp(y) / 10

        return odenet.solve(f, y, [0.0, 1.0], controller=odenet.PID(first_step=1.0)).y1.sum()

    y, k = torch.tensor([7.0], dtype=D, requires_grad=True), torch.ones((), dtype=D, requires_grad=True)
    mine = torch.autograd.grad(torch.compile(run, fullgraph=True, backend="eager")(y, k), (y, k))
    for a, b in zip(mine, torch.autograd.grad(run(y, k), (y, k)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", ["Solver", "layer"])
def test_without_fullgraph_a_differentiated_solve_breaks_the_graph(solver: str) -> None:
    """The backward pass of the loop operator reads a number, which only fullgraph=True allows."""
    net = torch.nn.Linear(2, 2)
    f: Any = lambda t, y: torch.tanh(net(y))  # noqa: E731
    held = odenet.Solver(f)
    call: Any = (lambda y: held(y, [0.0, 1.0]).y1) if solver == "Solver" else odenet.nn.NeuralODE(f)
    y = torch.ones(3, 2)
    mine, own = torch.compile(call, backend="aot_eager")(y), call(y)
    torch.testing.assert_close(mine, own, rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(x.sum(), net.weight)[0] for x in (mine, own)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_a_failure_is_nan() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def run(y: Tensor, max_steps: int) -> tuple[Tensor, Tensor, Any]:
        sol = odenet.solve(lambda t, y: y**2, y, [0.0, 0.5, 1.0], max_steps=max_steps)
        return sol.ys, sol.y1, sol.status

    with torch.no_grad():
        ys, y1, status = run(torch.tensor([1.5], dtype=D), 10_000)
        assert torch.isfinite(ys[:2]).all() and torch.isnan(ys[2]).all() and torch.isnan(y1).all()
        assert int(status) == odenet.Status.STEP_UNDERFLOW
        ys, y1, status = run(torch.tensor([0.1], dtype=D), 1)
        assert torch.isnan(y1).all() and int(status) == odenet.Status.MAX_STEPS


@pytest.mark.slow
def test_pytrees_closures_and_half_precision() -> None:
    w = torch.tensor(2.0, dtype=D, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        y0 = {"x": x, "v": torch.zeros_like(x)}
        return odenet.solve(lambda t, s: {"x": s["v"], "v": -w * s["x"]}, y0, [0.0, 1.0]).y1["x"].sum()

    x = torch.ones(3, dtype=D, requires_grad=True)
    mine = torch.autograd.grad(torch.compile(run, fullgraph=True, backend="eager")(x), (x, w))
    for a, b in zip(mine, torch.autograd.grad(run(x), (x, w)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        half = torch.compile(
            lambda y: odenet.solve(lambda t, y: -y, y, [0.0, 1.0], rtol=1e-3).y1, fullgraph=True, backend="eager"
        )(torch.ones(2, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16 and float(half[0]) == pytest.approx(0.3679, rel=0.02)


def test_an_adjoint_that_would_miss_a_gradient_is_refused() -> None:
    w = torch.ones((), requires_grad=True)

    @torch.compile(fullgraph=True, backend="eager")
    def run(y: Tensor) -> Tensor:
        return odenet.solve(lambda t, y: -w * y, y, [0.0, 1.0], gradient="adjoint").y1

    with pytest.raises(Exception, match="closes over tensors"):
        run(torch.ones(2, requires_grad=True))


def test_what_cannot_be_traced_breaks_the_graph() -> None:
    def run(y: Tensor) -> Tensor:
        return 2 * odenet.solve(lambda t, y: -y, y, [0.0, 1.0], per_sample=True).y1

    y = torch.ones(3, 2)
    assert torch.equal(torch.compile(run, backend="eager")(y), run(y))
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"torch.compiler.disable|skip"):
        torch.compile(run, backend="eager", fullgraph=True)(y)


def test_a_gradient_of_times_breaks_the_graph() -> None:
    """Inductor computes it wrongly through the differentiated loop; the adjoint's own loops give it."""

    def run(ts: Tensor) -> Tensor:
        return odenet.solve(lambda t, y: -y * t, torch.ones(2, dtype=D), ts).ys.square().sum()

    ts = torch.tensor([0.0, 0.5, 1.0], dtype=D, requires_grad=True)
    for times in (ts, [*ts.unbind()]):
        with pytest.raises(Exception, match=r"torch.compiler.disable|skip"):
            torch.compile(run, backend="eager", fullgraph=True)(times)
    torch.compiler.reset()
    mine = torch.autograd.grad(torch.compile(run, backend="eager")(ts), ts)
    torch.testing.assert_close(mine, torch.autograd.grad(run(ts), ts))


def test_transforms_in_a_compiled_model_break_the_graph() -> None:
    def run(y: Tensor) -> Tensor:
        return torch.func.vmap(lambda x: odenet.solve(lambda t, z: -z * z, x, [0.0, 1.0]).y1)(y)

    y = torch.rand(3, 2)
    torch.testing.assert_close(torch.compile(run, backend="eager")(y), run(y))


def test_zero_length() -> None:
    """PyTorch's loop operator gives a wrong gradient without any iteration."""

    @torch.compile(fullgraph=True, backend="eager")
    def run(y: Tensor) -> Tensor:
        return odenet.solve(lambda t, y: -y * y, y, [1.0, 1.0]).y1

    y = torch.rand(3, requires_grad=True)
    assert torch.equal(run(y), y)
    assert torch.equal(torch.autograd.grad(run(y).sum(), y)[0], torch.ones(3))


def test_same_arguments() -> None:
    """What traced and plain solves read their options from has the arguments of `solve`, with the same defaults."""
    mine = {k: v.default for k, v in inspect.signature(Options.from_keywords).parameters.items()}
    theirs = inspect.signature(odenet.solve).parameters.values()
    assert mine == {p.name: p.default for p in theirs if p.kind is p.KEYWORD_ONLY and p.name != "args"}


def layer(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), NeuralODE(MLPField(3, (8,)), **options), nn.Linear(3, 1)).eval()


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, (torch.randn(4, 2),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rk4", "step": 0.3},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"gradient": "adjoint"}, marks=pytest.mark.slow),
        pytest.param({"method": "rk4", "step": 0.003}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_export(options: Any, tmp_path: Path) -> None:
    """Exported, saved, loaded, run on another batch. Few constant steps need no loop."""
    model = layer(**options)
    program = exported(model)
    assert ("while_loop" in str(program.graph)) == (options.get("step") != 0.3)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    x = 3 * torch.randn(7, 2)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-5)
    assert model[1].stats is not None  # of the eager solve: an export keeps none


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"method": "rk4", "step": 0.3}, {}], ids=["fixed", "adaptive"])
def test_onnx(options: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = layer(**options)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            model, (torch.randn(4, 2),), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch", min=2)},),
            verbose=False,
        )  # fmt: skip
        assert program is not None
        program.save(str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    x = torch.randn(7, 2)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"method": "rk4", "step": 0.3}], ids=["adaptive", "fixed"])
def test_aot_inductor(options: Any, tmp_path: Path) -> None:
    model = layer(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = torch._inductor.aoti_compile_and_package(  # type: ignore[attr-defined]
            exported(model), package_path=str(tmp_path / "model.pt2")
        )
        run = torch._inductor.aoti_load_package(package)  # type: ignore[attr-defined]
    x = torch.randn(7, 2)
    with torch.no_grad():
        torch.testing.assert_close(run(x), model(x), rtol=1e-5, atol=1e-5)
