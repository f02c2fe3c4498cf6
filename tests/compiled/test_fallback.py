"""What cannot be compiled is solved eagerly, right, with one warning that says why."""

import math
import time
import warnings
from weakref import WeakKeyDictionary

import pytest
import torch

import odenet
from compiled.sides import field_of, solved
from odenet.compiled import autotune, compiled_solve

ENDS = [0.0, 1.0]


def falls_back(f, y0, params=(), *, reason, compare=True, solves=3, **options):
    """Several solves: eager results, and one warning among them."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(solves):
            a, ga = solved(f, y0, ENDS, params, **options)
    told = [str(w.message) for w in seen]
    assert len(told) == 1, told
    assert told[0].startswith("compile=True: solving without compiled code, as ")
    assert reason in told[0]
    if compare:
        b, gb = solved(f, y0, ENDS, params, compile=False, **options)
        torch.testing.assert_close(a.ys, b.ys, rtol=0, atol=0, equal_nan=True)
        assert all(torch.equal(x, y) for x, y in zip(ga, gb, strict=True))


def branching(w, b):
    return lambda t, y: y @ w - b if float(y.detach().sum()) > 0 else y @ w + b


def if_positive(w, b):
    return lambda t, y: y @ w - b if y.sum() > 0 else y @ w + b


def printing(w, b):
    def f(t, y):
        print(end="")
        return y @ w + b

    return f


@pytest.mark.parametrize("make", [branching, if_positive, printing])
def test_what_does_not_trace(make, params, y0):
    falls_back(make(*params), y0, params, reason="")


def test_what_does_not_trace_is_not_tried_at_every_solve(params, y0, monkeypatch):
    falls_back(if_positive(*params), y0, params, reason="")
    tried = []
    monkeypatch.setattr("odenet.compiled.field_graph._guarded", lambda f, kind: tried.append(f) or 1 / 0)
    monkeypatch.setattr("odenet.compiled._warned", {"all"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(100):
            odenet.solve(if_positive(*params), y0, ENDS, compile=True)
    assert len(tried) <= 6


def test_what_fails_to_compile_is_not_tried_again(params, y0, monkeypatch):
    tried = []

    def refuse(*_):
        tried.append(1)
        raise OSError("no space left")

    monkeypatch.setattr("odenet.compiled.build.compile_loop", refuse)
    falls_back(lambda t, y: torch.sin(y @ params[0]) - params[1], y0, params, reason="OSError: no space left", solves=4)
    assert len(tried) == 2  # forward and backward


def test_a_backward_pass_that_fails_to_compile_alone(params, y0, monkeypatch):
    def refuse(*_):
        raise OSError("no backward")

    monkeypatch.setattr("odenet.compiled.plan_cache.backward_graph", refuse)
    f = lambda t, y: torch.sin(y * params[1])  # noqa: E731
    monkeypatch.setattr("odenet.compiled.build.compile_loop", lambda *_: odenet.compiled.build.Path("none"))
    monkeypatch.setattr("odenet.compiled.build.load", lambda path: None)
    monkeypatch.setattr("odenet.compiled.build._store", lambda *_: None)
    falls_back(f, y0, params[1:], reason="OSError: no backward")


def test_a_number_read_from_a_tensor(params, y0):
    f = lambda t, y: torch.tanh(y @ params[0] + params[1]) * y.detach().square().mean().item()  # noqa: E731
    falls_back(f, y0, params, reason="f reads a number from a tensor")


BY_NUMBER = {
    "item": lambda t, y, w: -y * w if t.item() < 0.5 else y * w,
    "float": lambda t, y, w: -y * w if 0.2 <= float(t) <= 0.4 else y * w,
    "int": lambda t, y, w: y * w * (1.0 if int(2 * t) else -1.0),
    "truth": lambda t, y, w: y * w if int(t) else -y * w,
    "condition": lambda t, y, w: -y * w if t < 0.5 else y * w,
    "remainder": lambda t, y, w: -y * w if t.item() % 1.0 < 0.5 else y * w,
    "state": lambda t, y, w: -y * w if y.sum().item() > 1.7 else y * w,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", BY_NUMBER)
@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_a_branch_on_a_number_of_t_or_y(kind, shape, dtype, monkeypatch):
    """TorchDynamo guards a number of a 0-d input: the branch taken at ts[0] would hold for the whole solve."""
    monkeypatch.setattr("odenet.compiled._warned", set())
    w = torch.tensor(0.7, dtype=dtype, requires_grad=True)
    options = {"reason": "", "solves": 1, "controller": odenet.PID(max_step=0.05)}
    falls_back(lambda t, y: BY_NUMBER[kind](t, y, w), torch.ones(shape, dtype=dtype), (w,), **options)


@pytest.mark.slow
def test_a_branch_on_a_number_of_args(monkeypatch):
    """It is the same for the whole solve, and another number is compiled for itself."""
    monkeypatch.setattr("odenet.compiled._warned", set())
    y0 = torch.ones(2, dtype=torch.float64)
    f = lambda t, y, k: -y * k if k.item() > 0.5 else y * k  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in (0.7, 0.3):
            sol = odenet.solve(f, y0, ENDS, args=(torch.tensor(k, dtype=torch.float64),), method="bosh3", compile=True)
            torch.testing.assert_close(sol.y1, y0 * math.exp(-k if k > 0.5 else k), rtol=1e-3, atol=0)


def test_random_numbers(params, y0):
    options = {"reason": "random numbers", "compare": False, "method": "rk4", "step": 0.25}
    falls_back(lambda t, y: y @ params[0] * torch.rand_like(y), y0, params[:1], **options)


def test_dropout(params, y0):
    drop, options = torch.nn.Dropout(0.5), {"compare": False, "method": "rk4", "step": 0.25}
    falls_back(lambda t, y: drop(y @ params[0]), y0, params[:1], reason="random numbers", **options)


def test_a_branch_by_torch_cond(params, y0):
    """Inside of a loop Inductor gave other values."""
    w = params[0].detach()
    f = lambda t, y: torch.cond(t < 0.5, lambda y: torch.sin(y) @ w, lambda y: torch.cos(y) @ w - y, (y,))  # noqa: E731
    options = {"method": "dopri5", "step": 0.25}
    with torch.no_grad():
        expected = odenet.solve(f, y0, ENDS, **options).y1
        with pytest.warns(UserWarning, match=r"f uses torch\.ops\.higher_order\.cond"):
            assert torch.equal(odenet.solve(f, y0, ENDS, compile=True, **options).y1, expected)


def test_a_buffer_changed_in_place(y0):
    norm = torch.nn.BatchNorm1d(3).double()
    falls_back(lambda t, y: norm(y), y0, list(norm.parameters()), reason="in place")
    assert norm.num_batches_tracked > 10  # by eager solves alone


def test_a_buffer_changed_by_its_function(y0):
    mean, variance = torch.zeros(3).double(), torch.ones(3).double()
    f = lambda t, y: torch.nn.functional.batch_norm(y, mean, variance, training=True)  # noqa: E731
    falls_back(f, y0, reason="in place")
    assert mean.abs().max() > 0


class Counting:
    def __init__(self):
        self.calls, self.seen = 0, []

    def __call__(self, t, y):
        self.calls += 1
        return -y


class Noting(Counting):
    def __call__(self, t, y):
        self.seen.append(t)
        return -y


@pytest.mark.parametrize("kind", [Counting, Noting])
def test_what_f_changes_outside_of_it(kind, y0):
    f = kind()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        sol = odenet.solve(f, y0, ENDS, compile=True)
    assert "f changes something outside of it" in str(seen[0].message) and len(seen) == 1
    assert f.calls + len(f.seen) == sol.stats.nfe


def test_a_nonlocal_variable(y0):
    calls = 0

    def f(t, y):
        nonlocal calls
        calls += 1
        return -y

    falls_back(f, y0, reason="f changes something outside of it")
    assert calls > 30


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("gradient='adjoint' is not 'discrete'", {"gradient": "adjoint"}),
        ("progress and callbacks", {"callbacks": odenet.Callbacks()}),
        ("f is taken to jump", {"method": "rk4", "controller": odenet.ConstantStep(0.1, perturb=True)}),
        ("is not an explicit one", {"method": "implicit_midpoint", "step": 0.1}),
        ("number of checkpoints is bounded", {"gradient": odenet.Discrete(checkpoints=3)}),
    ],
)
def test_options_that_are_not_compiled(reason, options, params, y0):
    falls_back(field_of(*params), y0, params, reason=reason, **options)


def test_an_event(params, y0):
    event = odenet.Event(lambda t, y: t - 0.5)
    falls_back(field_of(*params), y0, params, reason="an event", event=event, loss=lambda sol: sol.y1.sum())


def test_times_that_ask_for_a_gradient(y0):
    ts = torch.tensor(ENDS, dtype=torch.float64, requires_grad=True)
    with pytest.warns(UserWarning, match="ts asks for a gradient"):
        sol = odenet.solve(lambda t, y: -y, y0, ts, compile=True)
    (grad,) = torch.autograd.grad(sol.ys[-1].sum(), ts)
    torch.testing.assert_close(grad[1], -sol.y1.sum())


def test_a_complex_state(y0):
    with pytest.warns(UserWarning, match="the state is complex"):
        sol = odenet.solve(lambda t, y: 1j * y, y0 + 0j, ENDS, compile=True)
    torch.testing.assert_close(sol.y1, y0 * torch.exp(torch.tensor(1j)), rtol=1e-3, atol=1e-3)


def test_autocast(params, y0):
    with torch.autocast("cpu"), pytest.warns(UserWarning, match="autocast"):
        odenet.solve(field_of(*params), y0, ENDS, compile=True)


class Annealed:
    def __init__(self):
        self.factor = 1.0

    def __call__(self, t, y):
        return -self.factor * y


@pytest.mark.slow
def test_an_attribute_that_changes_all_the_time(y0, request):
    """TorchDynamo gives up after a few values."""
    import torch._dynamo

    limits = torch._dynamo.config.patch(recompile_limit=2)  # monkeypatch would leave the setting deleted
    limits.__enter__()
    request.addfinalizer(lambda: limits.__exit__(None, None, None))
    f, found = Annealed(), []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for i in range(5):
            f.factor = 0.5 + 0.1 * i
            found.append(solved(f, y0, ENDS, compile=True)[1][0])
    told = [str(w.message) for w in seen if str(w.message).startswith("compile=True")]
    assert len(told) == 1 and "has had many values, each of which is compiled for: hold it in a tensor" in told[0], told
    for i in range(5):
        f.factor = 0.5 + 0.1 * i
        torch.testing.assert_close(found[i], solved(f, y0, ENDS, compile=False)[1][0], rtol=1e-10, atol=1e-10)


def test_more_kinds_of_states_than_torch_dynamo_keeps_graphs_of_a_code(monkeypatch):
    """Batches of many sizes: each is captured, up to a number; one that cannot be leaves the others compiled."""
    from odenet.compiled import field_graph
    from odenet.core.pytrees import flatten

    def f(t, y):
        return -y * (float(y.sum()) if len(y) == 3 else 1.0)

    monkeypatch.setattr(field_graph, "MAX_KINDS", 13)
    t = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for n in [*range(1, 14), 3, *range(1, 14)]:
            y = torch.ones(n, dtype=torch.float64)
            if n == 3:
                with pytest.raises(field_graph.NotCompilableError):
                    field_graph.capture(f, flatten(y)[1], (), t, (y,))
                continue
            graph, _ = field_graph.capture(f, flatten(y)[1], (), t, (y,))
            assert torch.equal(graph(t, (y,), ())[0], -y)
        with pytest.raises(field_graph.NotCompilableError, match="compiled for 13 shapes"):
            y = torch.ones(14, dtype=torch.float64)
            field_graph.capture(f, flatten(y)[1], (), t, (y,))


@pytest.mark.slow
def test_states_and_parameters_that_lie_within_larger_tensors():
    """TorchDynamo's stand-ins for them have been changed in place, which f has not done."""
    whole = torch.linspace(0.1, 1.2, 12, dtype=torch.float64)
    y0, w, b = (whole[i : i + 3].detach() for i in (3, 6, 9))
    y0.requires_grad_(), w.requires_grad_()
    found = []
    for compile in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sol = odenet.solve(lambda t, y: -w * y + b, y0, ENDS, compile=compile)
        found.append((sol.y1, *torch.autograd.grad(sol.y1.sum(), (y0, w))))
    for a, c in zip(*found, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)


def test_an_f_that_changes_a_tensor_within_a_larger_one(y0):
    calls = torch.zeros(4, dtype=torch.float64)[2:].detach()

    def counting(t, y):
        calls.add_(1.0)
        return -y

    falls_back(counting, y0, reason="in place")


@pytest.mark.slow
def test_slower_code_is_not_taken(monkeypatch, params, y0):
    """Code that takes longer than eager code is left, with a warning that says so."""
    taken = compiled_solve._solve

    def slowly(*args):
        time.sleep(0.5)
        return taken(*args)

    monkeypatch.setattr(autotune, "CLEAR_SPEEDUP", 1.5)
    monkeypatch.setattr(autotune, "_results", WeakKeyDictionary())  # other tests have had the same field
    monkeypatch.setattr(compiled_solve, "_solve", slowly)
    falls_back(field_of(*params), y0, params, reason="eager code is faster for this f here")
