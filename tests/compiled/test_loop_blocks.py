"""The driver for a device that works through a queue, run on the CPU: values, looks at values, launches, memory."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import odenet
from compiled.sides import field_of, same, solved
from odenet.compiled import cuda_graphs, loop_blocks, plan_cache
from odenet.compiled.backward_graph import backward_graph
from odenet.compiled.field_graph import capture
from odenet.compiled.forward_graph import forward_graph
from odenet.compiled.plan import Plan, TensorSpec
from odenet.compiled.plan_cache import PlanCache, solver_settings
from odenet.control import PID
from odenet.core.pytrees import flatten
from odenet.engine.problem import Problem

F64 = torch.float64


@pytest.fixture(autouse=True)
def queued(monkeypatch):
    """As on a GPU: no loop is a library of its own, and nothing was compiled or judged yet."""
    monkeypatch.setattr(plan_cache, "has_native_loop", lambda device: False)
    monkeypatch.setattr("odenet.compiled.compiled_solve.PLAN_CACHE", PlanCache())
    monkeypatch.setattr("odenet.compiled.compiled_solve.refuse_if_slower", lambda *_: None)


@pytest.fixture
def replayed(monkeypatch):
    """CUDA graphs with a stand-in that launches again from Python; what it gives counts the launches by graph."""
    launches: list[str] = []

    def captured(work, device):
        work()  # as a capture does before
        launches.append("captured")

        def again():
            launches.append("replayed")
            work()

        return again

    monkeypatch.setattr(cuda_graphs, "capture_cuda_graph", captured)
    monkeypatch.setattr(loop_blocks, "worth_capturing", lambda tensors: True)
    return launches


OUTPUTS = [0.0, 0.3, 0.31, 1.0, 2.5]
CASES = {
    "ends": ([0.0, 2.0], {}),
    "outputs": (OUTPUTS, {}),
    "backwards": (OUTPUTS[::-1], {}),
    "per sample": (OUTPUTS, {"per_sample": True}),
    "fixed": ([0.0, 1.0], {"method": "rk4", "step": 0.05}),
    "dense": (OUTPUTS, {"dense": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_as_eager(name, params, y0):
    ts, options = CASES[name]
    same(field_of(*params) if name != "per sample" else rowwise(*params), y0, ts, params, **options)


def rowwise(w, b):
    return lambda t, y: torch.tanh(y @ w + b) * torch.cos(t)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["outputs", "per sample"])
def test_replayed_as_eager(name, params, y0, replayed):
    """Twice, as the second solve finds the memory of the first in the graphs; the first one's results stay."""
    ts, options = CASES[name]
    f = field_of(*params) if name != "per sample" else rowwise(*params)
    first, _ = solved(f, y0, ts, params, **options)
    kept = first.ys.detach().clone()
    same(f, 2 * y0, ts, params, **options)
    assert torch.equal(first.ys, kept)


@pytest.mark.slow
def test_many_tapes(params, y0, monkeypatch):
    """A solve longer than a tape: the guard of a full tape, and the state handed from tape to tape."""
    monkeypatch.setattr("odenet.compiled.compiled_solve.SAVING_ROWS", 4)
    same(field_of(*params), y0, [0.0, 4.0], params, rtol=1e-9, atol=1e-9)


def narrow(w, b):
    """Weights of few columns, which are held column by column as the state is."""
    return lambda t, y: torch.tanh(torch.tanh(y @ w.T) @ w + b)


def sliced(w, b):
    """What is computed once, before the loop, is a view with gaps."""
    return lambda t, y: torch.tanh(y @ w[:, :3].t()) @ w[:, 2:] + b


@pytest.mark.slow
@pytest.mark.parametrize(("field", "shape"), [(narrow, (20, 3)), (sliced, (20, 5))])
def test_arrays_of_other_strides(field, shape, params):
    """A turn is handed what Inductor has made before the loop as it was compiled for."""
    draw = torch.Generator().manual_seed(2)
    w = torch.randn(*shape, generator=draw, dtype=F64).mul(0.3).requires_grad_()
    y0 = torch.randn(32, 3, generator=draw, dtype=F64)
    same(field(w, params[1]), y0, OUTPUTS, [w, params[1]])


def looks(work):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    return sum(e.count for e in seen.key_averages() if e.key == "aten::_local_scalar_dense")


@pytest.mark.slow
def test_one_look_a_block(params, y0):
    """Forward; backward the number of steps is known. Both solves fit on one tape."""
    f = field_of(*params)

    def counted(tolerance):
        found = []

        def forward():
            start = y0.clone().requires_grad_()
            found.append(odenet.solve(f, start, [0.0, 3.0], rtol=tolerance, atol=tolerance, compile=True))

        forward()
        there = looks(forward)
        back = looks(lambda: torch.autograd.grad(found[-1].y1.sum(), params))
        stats = found[-1].stats
        return stats.accepted + stats.rejected, there, back

    (few, first, back), (many, second, also_back) = counted(1e-4), counted(1e-9)
    assert many > few + 3 * loop_blocks.ITERATIONS

    def whole(n):
        return -(-n // loop_blocks.ITERATIONS)

    assert second - first == whole(many) - whole(few)
    assert back == also_back == 0


@pytest.mark.slow
def test_one_launch_a_block(params, y0, replayed):
    f = field_of(*params)
    options = {"method": "bosh3", "rtol": 1e-5, "atol": 1e-5}
    solved(f, y0, [0.0, 3.0], params, **options)  # captures
    replayed.clear()
    sol, _ = solved(f, y0, [0.0, 3.0], params, **options)
    steps = sol.stats.accepted
    there = -(-(steps + sol.stats.rejected) // loop_blocks.ITERATIONS)
    back = steps // loop_blocks.ITERATIONS + steps % loop_blocks.ITERATIONS
    assert steps < 64  # one tape
    assert replayed == ["replayed"] * (there + back)


@pytest.mark.parametrize("batched", [False, True])
def test_nothing_on_the_host(batched, params):
    """Recorded for another device than the CPU, with meta for it: every operation is there, and none looks."""
    w, b = (p.detach().to("meta").requires_grad_() for p in params)
    y0 = torch.empty(4, 3, dtype=F64, device="meta")
    lane = (4,) if batched else ()
    t = torch.empty(lane, dtype=F64, device="meta")
    f = rowwise(w, b) if batched else field_of(w, b)
    graph, others = capture(f, flatten(y0)[1], (), t, (y0,))
    method, controller = odenet.methods.METHODS["dopri5"], PID()
    p = Problem(
        None, (y0,), t, None, t, method, controller, [1e-6], [1e-6], batched, 100  # pyright: ignore
    )  # fmt: skip
    number = TensorSpec((), (), F64, y0.device)
    plan = Plan(
        method, controller, solver_settings(p), batched, (F64,), F64, y=(TensorSpec.of(y0),),
        captures=tuple(TensorSpec.of(x, True) for x in others), rtol=(number,), atol=(number,), stop_count=1,
        jumps=False, rows=8, saves_matmuls=True, step_starts=True, dense=True, column_major=False,
    )  # fmt: skip
    for made in (forward_graph(plan, graph), backward_graph(plan, graph)):
        body = made.body if made.counted else loop_blocks.guard_body(made.body, made.mode)
        for part in (made.begin, body, *([] if made.end is None else [made.end])):
            nodes = [n for n in part.graph.nodes if n.op not in ("output", "get_attr")]
            assert {x.device.type for n in nodes for x in torch.utils._pytree.tree_leaves(n.meta["val"])} == {"meta"}
            assert not any("local_scalar" in str(n.target) for n in nodes)


@pytest.mark.slow
def test_large_products_that_are_kept() -> None:
    """They are inputs of the part after the loop as well, as all parts are given the same."""
    generator = torch.Generator().manual_seed(1)
    w, v = ((torch.randn(*shape, generator=generator) / 8).requires_grad_() for shape in ((48, 64), (64, 48)))
    y0 = torch.randn(16, 48, generator=generator).requires_grad_()

    def gradients(compile: bool) -> tuple[torch.Tensor, ...]:
        sol = odenet.solve(lambda t, y: torch.tanh(y @ w) @ v, y0, [0.0, 1.0], compile=compile)
        return torch.autograd.grad(sol.y1.square().sum(), (y0, w, v))

    for mine, own in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4)
