"""Compiled solves give what eager ones give, and compile no more than once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import odenet
from compiled.sides import field_of, same, solved
from odenet.compiled import build
from slow_cases import slow_unless

SOURCE = Path(__file__).parents[2] / "src"
ENDS, MORE = [0.0, 2.0], [0.0, 0.0, 0.5, 1.1, 1.1, 2.0]


@pytest.mark.parametrize(
    "ts",
    [ENDS, MORE, ENDS[::-1], pytest.param(MORE[::-1], marks=pytest.mark.slow)],
    ids=["two", "more", "two back", "more back"],
)
def test_as_eager(ts, params, y0):
    same(field_of(*params), y0, ts, params)


@pytest.mark.parametrize("length", slow_unless([2, 6], 6))
def test_a_solve_of_no_length(length, params, y0):
    sol, (grad,) = solved(field_of(*params), y0, [1.0] * length, method="bosh3")
    assert torch.equal(sol.ys, y0.expand(length, 4, 3))
    torch.testing.assert_close(grad, 2 * length * y0)


def test_without_gradients(params, y0):
    f = field_of(*params)
    with torch.no_grad():
        a, b = (odenet.solve(f, y0, MORE, compile=way) for way in (False, True))
    torch.testing.assert_close(b.ys, a.ys, rtol=1e-10, atol=1e-10)
    assert not b.ys.requires_grad


@pytest.mark.parametrize(("grad", "dense"), slow_unless([(False, False), (True, True)], (False, False)))
def test_the_measurement_at_first_use_needs_no_library_of_its_own(grad, dense, y0, monkeypatch):
    """In grad mode, where nothing asks for a gradient, one library; with a gradient and dense output, two."""
    made, compile_loop = [], build.compile_loop
    monkeypatch.setattr(build, "compile_loop", lambda *args: made.append(args) or compile_loop(*args))
    rate = torch.tensor(0.123, dtype=torch.float64, requires_grad=grad)
    sol = odenet.solve(lambda t, y: -rate * y, y0, ENDS, method="bosh3", dense=dense, compile=True)
    assert sol.y1.requires_grad == grad and len(made) == 1 + grad
    if grad:
        loss = sol.y1.square().sum()
        torch.testing.assert_close(torch.autograd.grad(loss, rate)[0], -4 * loss, rtol=1e-3, atol=0.0)
        assert len(made) == 2


def test_a_second_solve_compiles_nothing(params, y0, compiles_nothing):
    same(field_of(*params), y0, MORE, params)
    compiles_nothing()
    other = [(p.detach() * 0.5).requires_grad_() for p in params]
    same(field_of(*other), y0 * 1.5, [0.1, 0.2, 0.7, 0.8, 1.0, 3.0], other, rtol=1e-3, atol=1e-4)
    same(field_of(*params), y0, [0.1, 0.7, 0.8, 1.0, 3.0], params, max_steps=500)


@pytest.mark.slow
def test_max_steps(params, y0):
    f = field_of(*params)
    same(f, y0, MORE, params)
    for way in (False, True):
        with pytest.raises(odenet.MaxStepsError):
            odenet.solve(f, y0.requires_grad_(), MORE, compile=way, max_steps=3)
    partial = {
        "max_steps": 3,
        "on_failure": "return",
        "loss": lambda sol: (sol.y1**2).sum() + (torch.nan_to_num(sol.ys) ** 2).sum(),
    }
    sol = same(f, y0.detach(), MORE, params, **partial)
    assert sol.status == odenet.Status.MAX_STEPS
    assert sol.ys[-1].isnan().all() and not sol.ys[1].isnan().any()


def test_a_field_of_nan_fails_as_eagerly(params, y0):
    f = field_of((params[0] * torch.nan).detach().requires_grad_(), params[1])
    messages = []
    for way in (False, True):
        with pytest.raises(odenet.NonFiniteError) as error:
            odenet.solve(f, y0, MORE, compile=way)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_backward_twice(params, y0):
    start = y0.clone().requires_grad_()
    sol = odenet.solve(field_of(*params), start, MORE, compile=True)
    loss = (sol.ys**2).sum()
    first = torch.autograd.grad(loss, [start, *params], retain_graph=True)
    second = torch.autograd.grad(loss, [start, *params])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_double_backward(params, y0):
    found = []
    for way in (False, True):
        start = y0.clone().requires_grad_()
        loss = (odenet.solve(field_of(*params), start, MORE, compile=way).ys ** 2).sum()
        grads = torch.autograd.grad(loss, [start, *params], create_graph=True)
        found.append(torch.autograd.grad(sum((g**2).sum() for g in grads), [start, *params]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


class Scaled(torch.nn.Module):
    def __init__(self, params):
        super().__init__()
        self.w, self.b = (torch.nn.Parameter(p.detach().clone()) for p in params)

    def forward(self, t, y):
        return torch.tanh(y @ self.w + self.b) * torch.cos(t)


def test_training_a_layer(params, y0):
    trained = []
    for way in (False, True):
        layer = odenet.nn.NeuralODE(Scaled(params), (0.0, 2.0), compile=way)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            ((layer(y0) - 1) ** 2).mean().backward()
            optimizer.step()
        trained.append([p.detach().clone() for p in layer.parameters()])
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-10, atol=1e-10)


PROGRAM = """
import sys, torch, odenet
torch.set_num_threads(%d), torch.set_default_dtype(%s)
w, b, y0 = torch.load(sys.argv[1])
y0.requires_grad_(), w.requires_grad_(), b.requires_grad_()
sol = odenet.solve(lambda time, state: torch.tanh(state @ w + b) * torch.cos(time), y0, %s, compile=True)
grads = torch.autograd.grad((sol.ys**2).sum(), [y0, w, b])
assert "torch._inductor.compile_fx" not in sys.modules, "the compiler was loaded"
torch.save([sol.ys.detach(), *grads], sys.argv[2])
"""


def test_another_process_finds_the_libraries(params, y0, tmp_path):
    sol, grads = solved(field_of(*params), y0, MORE, params)
    torch.save([*(p.detach() for p in params), y0], tmp_path / "given")
    program = PROGRAM % (torch.get_num_threads(), torch.get_default_dtype(), MORE)
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [*command, tmp_path / "given", tmp_path / "found"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for x, y in zip(torch.load(tmp_path / "found"), [sol.ys.detach(), *grads], strict=True):
        assert torch.equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"method": "rk4", "step": 0.3},
        {"method": "dopri8", "rtol": 1e-8},
        {"method": "heun", "rtol": 1e-3, "atol": 1e-3},
        {"controller": odenet.PID(max_step=0.2)},
        {"rtol": torch.tensor([1e-3, 1e-5, 1e-4]), "atol": torch.tensor(1e-6, dtype=torch.float64)},
        {"dense": True, "loss": lambda sol: (sol(torch.tensor([0.3, 1.7, 2.0])) ** 2).sum() + (sol.y1**2).sum()},
    ],
    ids=["rk4", "dopri8", "heun", "pid", "tolerances", "dense"],
)
def test_options(options, params, y0):
    # compiled code evaluates f for the polynomial of every step, eager code for those with an output inside
    same(field_of(*params), y0, MORE, params, counted=options.get("method") not in ("dopri8", "heun"), **options)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["shared times", "own times"])
@pytest.mark.parametrize("count", [2, 5])
def test_per_sample(own, count, params, y0):
    f = lambda t, y: torch.tanh(y @ params[0] + params[1]) * torch.cos(t)[:, None]  # noqa: E731
    ts = torch.linspace(0, 2, count, dtype=torch.float64)
    if own:
        ts = ts * torch.tensor([1.0, 0.5, -1.0, 0.0], dtype=torch.float64)[:, None]
    same(f, y0, ts, params, per_sample=True)


@pytest.mark.slow
def test_args(y0):
    rate = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    more = {"shift": torch.rand(3, dtype=torch.float64, requires_grad=True)}
    f = lambda t, y, a, m: -y * a + m["shift"]  # noqa: E731
    same(f, y0, ENDS, [rate, more["shift"]], args=(rate, more))


@pytest.mark.slow
def test_a_dict_as_state(y0):
    f = lambda t, y: {"x": y["v"], "v": -torch.sin(y["x"]) * y["v"].sum()}  # noqa: E731
    same(f, {"x": y0, "v": y0 * 0.5}, MORE)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_dtypes(dtype, tolerance, params, y0):
    params = [p.detach().to(dtype).requires_grad_() for p in params]
    f = lambda t, y: torch.tanh(y @ params[0] + params[1]) * torch.cos(t).to(y.dtype)  # noqa: E731
    (a, ga), (b, gb) = (
        solved(f, y0.to(dtype), MORE, params, compile=way, rtol=1e-3, atol=1e-3) for way in (False, True)
    )
    assert b.ys.dtype == dtype
    for x, y in zip([a.ys, *ga], [b.ys, *gb], strict=True):
        torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance * float(x.detach().abs().max()))


@pytest.mark.slow
def test_gradients_that_f_turns_off(params, y0):
    def f(t, y):
        with torch.no_grad():
            still = torch.tanh(y).mean(0)
        return torch.sin(y) * still + 0.1 * y.detach() - y @ params[0]

    same(f, y0, ENDS, params[:1])


class Switch:
    def __init__(self, factor):
        self.factor, self.sine = factor, False

    def __call__(self, t, y):
        return torch.sin(y) if self.sine else self.factor * y


@pytest.mark.slow
def test_attributes_that_change(y0, compiles_nothing):
    f = Switch(-1.0)
    same(f, y0, ENDS)
    f.sine = True
    same(f, y0, ENDS)
    f.sine, f.factor = False, -0.5
    same(f, y0, ENDS)
    compiles_nothing()
    f.factor = -1.0
    same(f, y0, ENDS)
    f.sine = True
    same(f, y0, ENDS)


@pytest.mark.slow
def test_longer_than_a_tape(params, y0, monkeypatch):
    """A joint solve goes on where its tape is full."""
    monkeypatch.setattr("odenet.compiled.plan_cache.TAPE_BYTES", 1)  # eight rows
    with torch.no_grad():
        plain, mine = (
            odenet.solve(field_of(*params), y0, MORE, compile=c, rtol=1e-9, atol=1e-9) for c in (False, True)
        )
    torch.testing.assert_close(mine.ys, plain.ys, rtol=1e-10, atol=1e-10)
    assert mine.stats.accepted == plain.stats.accepted > 8


def _wide(dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    params = [torch.randn(*s, generator=draw, dtype=dtype) / 8 for s in ((48, 64), (64,), (64, 48))]
    return [p.requires_grad_() for p in params], torch.randn(16, 48, generator=draw, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("ts", [ENDS, MORE], ids=["two", "more"])
def test_many_tapes(per_sample, ts, monkeypatch):
    """Large products are kept until their memory is spent; the steps after that go without."""
    (w, b, v), y0 = _wide()
    f = lambda t, y: torch.tanh(y @ w + b) @ v * 3  # noqa: E731
    monkeypatch.setattr("odenet.compiled.compiled_solve.SAVING_ROWS", 8)
    row = 6 * 16 * (64 + 48) * 8  # the products of six stages
    monkeypatch.setattr("odenet.compiled.compiled_solve.SAVED_BYTES", 12 * row)
    monkeypatch.setattr("odenet.compiled.plan_cache.TAPE_BYTES", 1)
    chunks = []
    monkeypatch.setattr("odenet.compiled.compiled_solve.Chunk", _noted(chunks))
    sol = same(f, y0, ts, [w, b, v], per_sample=per_sample, rtol=1e-8, atol=1e-8)
    assert len(chunks) > 3
    assert chunks[0].plan.saves_matmuls and chunks[0].saved.tensors and not chunks[-1].plan.saves_matmuls
    assert sum(c.rows for c in chunks) >= int(torch.as_tensor(sol.stats.accepted).max())


def _noted(chunks):
    from odenet.compiled.compiled_solve import Chunk

    def make(*args):
        chunks.append(Chunk(*args))
        return chunks[-1]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("faster", [True, False])
def test_products_by_onednn(faster, monkeypatch, tmp_path):
    (w, b, v), y0 = _wide(torch.float32)
    f = lambda t, y: torch.tanh(y @ w + b) @ v  # noqa: E731
    asked = []
    monkeypatch.setattr("odenet.compiled.passes.onednn.is_faster", lambda *look: asked.append(look) or faster)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("odenet.compiled.compiled_solve.PLAN_CACHE", odenet.compiled.plan_cache.PlanCache())
    (a, ga), (c, gc) = (solved(f, y0, ENDS, [w, b, v], compile=way) for way in (False, True))
    assert asked
    torch.testing.assert_close([c.ys, *gc], [a.ys, *ga], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_convolutions():
    draw = torch.Generator().manual_seed(2)
    w, v = (torch.randn(*s, 3, 3, generator=draw, dtype=torch.float64) / 3 for s in ((2, 1), (1, 2)))
    params = [w.requires_grad_(), v.requires_grad_()]
    f = lambda t, y: torch.conv2d(torch.tanh(torch.conv2d(y, w, padding=1)), v, padding=1)  # noqa: E731
    same(f, torch.randn(2, 1, 5, 5, generator=draw, dtype=torch.float64), ENDS, params)


@pytest.mark.slow
def test_a_captured_tensor_that_was_computed(params, y0):
    """It has other strides than its own memory would give it, and its gradient flows on."""
    rate = (params[1] * 2).expand(4, 3)
    grads = []
    for way in (False, True):
        sol = odenet.solve(lambda t, y: -y * rate, y0, ENDS, compile=way)
        grads += torch.autograd.grad((sol.ys**2).sum(), params[1], retain_graph=True)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_the_default_dtype_is_part_of_what_is_compiled(y0):
    """A new library, also on disk: f's own tensors have another dtype."""
    f = lambda t, y: torch.sin(y * torch.linspace(0.1, 1, 3))  # noqa: E731
    before = torch.get_default_dtype()
    try:
        for dtype, tolerance in ((torch.float32, 1e-7), (torch.float64, 1e-12)):
            torch.set_default_dtype(dtype)
            same(f, y0, ENDS, tolerance=tolerance)
    finally:
        torch.set_default_dtype(before)
