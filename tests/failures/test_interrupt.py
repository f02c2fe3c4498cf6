"""Ctrl-C in a solve or a backward pass: nothing stays half done, and the next solve is what it would have been."""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import odenet
from failures.cases import D
from gradient_settings import GRADIENTS
from odenet.compiled import build, compile_lock, gc_pause, plan_cache, torch_private


class LoopState(nn.Module):
    """An elementwise field with parameters that raises KeyboardInterrupt at one of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([0.9, 1.3], dtype=D))
        self.calls, self.at = 0, -1

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return -self.rate * y + 0.1 * torch.sin(y)

    def interrupted_at(self, n: int) -> None:
        self.calls, self.at = 0, n


def results(f: LoopState, gradient: Any, **options: Any) -> list[Tensor]:
    """A solve and its gradients, which are not accumulated anywhere."""
    y0 = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.1]], dtype=D, requires_grad=True)
    sol = odenet.solve(f, y0, [0.0, 0.7, 1.5], gradient=gradient, rtol=1e-3, atol=1e-5, **options)
    return [sol.ys.detach(), *torch.autograd.grad(sol.ys.square().sum() + sol.y1.sum(), (y0, f.rate))]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_at_every_call_of_f(gradient: str, per_sample: bool) -> None:
    """Forward and backward; the next solve, and the next backward pass over the same solution, give the same bits."""
    f, how = LoopState(), GRADIENTS[gradient]
    expected = results(f, how, per_sample=per_sample)
    count = f.calls
    assert count >= 20
    for n in range(1, count + 1, 3):
        f.interrupted_at(n)
        with pytest.raises(KeyboardInterrupt):
            results(f, how, per_sample=per_sample)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert f.rate.grad is None
        f.interrupted_at(-1)
    assert equal(results(f, how, per_sample=per_sample), expected)
    y0 = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.1]], dtype=D, requires_grad=True)
    f.interrupted_at(-1)
    sol = odenet.solve(
        f, y0, [0.0, 0.7, 1.5], gradient=how, rtol=1e-3, atol=1e-5, per_sample=per_sample
    )  # fmt: skip
    loss = sol.ys.square().sum() + sol.y1.sum()
    torch.autograd.grad(loss, (y0, f.rate), retain_graph=True)
    f.interrupted_at(-1)
    # `discrete` pulls through graphs of steps that it has kept the first time, and sums in another order then
    again = list(torch.autograd.grad(loss, (y0, f.rate), retain_graph=True))
    for n in range(1, f.calls + 1, 4):
        f.interrupted_at(n)
        with pytest.raises(KeyboardInterrupt):
            torch.autograd.grad(loss, (y0, f.rate), retain_graph=True)
        f.interrupted_at(-1)
        assert equal(list(torch.autograd.grad(loss, (y0, f.rate), retain_graph=True)), again), n


@contextmanager
def after(seconds: float) -> Iterator[None]:
    """KeyboardInterrupt after so much time at work, unless the end comes first."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before, callbacks = signal.signal(signal.SIGPROF, interrupt), gc.callbacks[:]
    gc.callbacks.clear()  # hypothesis times the garbage collector: Python cannot raise what interrupts a callback
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
        gc.callbacks[:] = callbacks


@pytest.mark.skipif(sys.gettrace() is not None, reason="an interrupt inside a tracer, as of coverage, leaves it locked")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that meets a finalizer is lost
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_at_any_moment(gradient: str) -> None:
    f, how, interrupted = LoopState(), GRADIENTS[gradient], 0
    expected = results(f, how, per_sample=True)
    for k in range(12):
        start = time.process_time()
        try:
            with after(1e-3 * (1 + 3 * k)):
                while time.process_time() - start < 0.1:
                    results(f, how, per_sample=True)
        except KeyboardInterrupt:
            interrupted += 1
        assert torch.is_grad_enabled() and f.rate.grad is None
    assert interrupted >= 10
    assert equal(results(f, how, per_sample=True), expected)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_at_the_end_of_a_mode(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python may raise KeyboardInterrupt before the first line of `__exit__` of `torch.no_grad` and the like."""
    ends = 0

    def interruptible(mode: type) -> None:
        own = mode.__exit__

        def leave(self: Any, *exc: Any) -> Any:
            nonlocal ends
            ends += 1
            if ends == at:
                raise KeyboardInterrupt
            return own(self, *exc)

        monkeypatch.setattr(mode, "__exit__", leave)

    f, how, at = LoopState(), GRADIENTS[gradient], -1
    expected = results(f, how)
    for mode in (torch.no_grad, torch.enable_grad, TorchFunctionMode):
        interruptible(mode)
    results(LoopState(), how)
    count = ends
    assert count >= 5
    for n in range(1, count + 1):
        ends, at = 0, n
        with pytest.raises(KeyboardInterrupt):
            results(LoopState(), how)
        assert torch.is_grad_enabled() and not torch.overrides._get_current_function_mode_stack()
    at = -1
    assert equal(results(f, how), expected)


def test_gradients_of_a_module_are_there_or_not() -> None:
    """A step of training: those of the field come all at once, at the end of the backward solve."""
    for n in itertools.count(1):
        f, y0 = LoopState(), torch.ones(3, 2, dtype=D)
        sol = odenet.solve(f, y0, [0.0, 1.0], gradient="adjoint", rtol=1e-3)
        f.interrupted_at(n)
        try:
            sol.y1.sum().backward()
        except KeyboardInterrupt:
            assert f.rate.grad is None
            continue
        assert f.rate.grad is not None and bool(f.rate.grad.isfinite().all())
        break
    assert n > 5


def test_ctrl_c_waits_for_an_import(request: pytest.FixtureRequest) -> None:
    """PyTorch's compiler, half imported, would be of no use from then on."""
    done = []
    own = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, own))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), torch_private.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done and signal.getsignal(signal.SIGINT) is before
    with torch_private.uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_progress_bar_is_closed() -> None:
    tqdm = pytest.importorskip("tqdm").tqdm
    f = LoopState()
    f.interrupted_at(10)
    with pytest.raises(KeyboardInterrupt):
        odenet.solve(f, torch.ones(2, dtype=D), [0.0, 5.0], progress=True)
    assert not list(tqdm._instances)


def lines_before_cleanup(code: CodeType) -> set[int]:
    """What comes before the first `finally:` of a function: a cleanup itself cannot be made safe in Python.

    Without `try:`, where Python looks for no signal.
    """
    lines, first = inspect.getsourcelines(code)
    end = next((i for i, line in enumerate(lines) if line.strip() == "finally:"), len(lines))
    return {first + i for i in range(end) if lines[i].strip() != "try:"}


def every_line(code: CodeType, run: Callable[[], Any]) -> Iterator[None]:
    """Runs it again and again, with a KeyboardInterrupt at the first, the second, ... line of `code`.

    Not where a line is come back to: that is the end of a `with`, where Python looks for no signal.
    """
    wanted = lines_before_cleanup(code)
    for n in itertools.count():
        seen: list[int] = []
        before = sys.gettrace()

        def trace(frame: FrameType, event: str, arg: Any, seen: list[int] = seen, n: int = n) -> Any:
            line = frame.f_lineno
            if frame.f_code is code and event == "line" and line in wanted and line not in seen:
                seen.append(line)
                if len(seen) > n:
                    raise KeyboardInterrupt
            return trace

        try:
            sys.settrace(trace)
            run()
        except KeyboardInterrupt:
            sys.settrace(before)
            yield
            continue
        finally:
            sys.settrace(before)
        assert n > 3
        return


def test_garbage_collection_is_on_again() -> None:
    def run() -> None:
        with gc_pause.gc_paused():
            assert not gc.isenabled()

    for _ in every_line(gc_pause.gc_paused.__wrapped__.__code__, run):  # type: ignore[attr-defined]
        assert gc.isenabled() and gc_pause._users == 0 and not gc_pause._lock.locked()
    run()
    assert gc.isenabled()


def test_the_compiler_is_put_back() -> None:
    """What a compilation registers with Inductor, and the lock."""
    from odenet.compiled import loop_invariants

    names = torch_private.inductor()
    names.init_backend_registration()

    def state() -> tuple[Any, ...]:
        kinds: tuple[dict[str, bool], ...] = ({}, {"cpp_wrapper": True}, {"fx_wrapper": True})
        wrappers = [names.get_wrapper_codegen_for_device("cpu", **kind) for kind in kinds]
        return (*wrappers, names.get_scheduling_for_device("cpu"), getattr(loop_invariants._result, "wanted", False))

    before = state()

    def run() -> None:
        with compile_lock.compiling(), loop_invariants.registered():
            assert state() != before and not gc.isenabled()

    for _ in every_line(loop_invariants.registered.__wrapped__.__code__, run):  # type: ignore[attr-defined]
        assert state() == before and not compile_lock.LOCK.locked() and gc.isenabled()
    run()
    assert state() == before


def test_no_library_is_left_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the library nor what is known of it: whatever lies there is taken for whole."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    target = build.folder() / "made.so"

    class Compiler:
        def __init__(self, output_dir: str, **_: Any) -> None:
            self.made = Path(output_dir) / "loop.so"

        def build(self) -> None:
            self.made.write_bytes(b"half")
            if interrupt:
                raise KeyboardInterrupt
            self.made.write_bytes(b"whole")

        def get_target_file_path(self) -> str:
            return str(self.made)

    monkeypatch.setattr(build, "inductor", lambda: SimpleNamespace(CppBuilder=Compiler))
    interrupt = True
    with pytest.raises(KeyboardInterrupt):
        build._compile_cpp("", None, target)
    assert list(build.folder().iterdir()) == []
    interrupt = False
    assert build._compile_cpp("", None, target) == target
    assert [p.name for p in build.folder().iterdir()] == ["made.so"] and target.read_bytes() == b"whole"

    recorded: Any = SimpleNamespace(evaluations=(1, 6), saved_rows=())
    with monkeypatch.context() as patch:
        patch.setattr(build.json, "dumps", interrupts)
        with pytest.raises(KeyboardInterrupt):
            build._store("key", target, recorded)
    assert build.find("key") is None
    assert [p.name for p in build.folder().iterdir()] == ["made.so"]
    build._store("key", target, recorded)
    facts = json.loads((build.folder() / "key.json").read_text())
    assert facts == {"library": "made.so", "evaluations": [1, 6], "saved_rows": []}


def interrupts(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_a_library_that_is_made_meanwhile_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the forward library is built does not wait for the other one; the next solve takes it."""
    made: list[str] = []

    class Other:
        def __init__(self, *_: Any) -> None:
            made.append("backward")
            self.alive = True

        def wait(self) -> str:
            self.alive = False
            return "its library"

        def working(self) -> bool:
            return self.alive

    own, graph = plan_cache.PlanCache(), nn.Linear(1, 1)
    plan: Any = SimpleNamespace(device=torch.device("cpu"), batched=False)
    plan_key: Any = type("Key", (), {"device": plan.device, "batched": False})()
    monkeypatch.setattr(plan_cache, "BackgroundBuild", Other)
    monkeypatch.setattr(plan_cache, "_digest", lambda *_: None)
    monkeypatch.setattr(plan_cache, "_used_threads", lambda *_: 1)
    monkeypatch.setattr(own, "_compile", interrupts)
    with pytest.raises(KeyboardInterrupt):
        own.forward(plan_key, graph, True)  # type: ignore[arg-type]
    monkeypatch.setattr(own, "_compile", lambda *_: "forward library")
    assert own.forward(plan_key, graph, True) == "forward library"  # type: ignore[arg-type]
    assert own.backward(plan_key, graph) == "its library"  # type: ignore[arg-type]
    assert made == ["backward"]


SCRIPT = """
import gc, hashlib, signal, warnings
import torch, odenet
from odenet.compiled import autotune, compile_lock
warnings.simplefilter("error")
autotune.CLEAR_SPEEDUP = 0.0  # which code is faster is another question, and no fair one on a busy machine
torch.set_num_threads(1)
w = torch.eye(3, dtype=torch.float64).requires_grad_()
def f(t, y): return torch.tanh(y @ w) - y
def solve():
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    sol = odenet.solve(f, y0, [0.0, 0.5, 1.0], compile=True)
    grads = torch.autograd.grad(sol.ys.square().sum(), (y0, w))
    data = b"".join(x.detach().numpy().tobytes() for x in (sol.ys, *grads))
    return hashlib.sha256(data).hexdigest()
print("begin", flush=True)
try:
    solve()
    state = "whole"
except KeyboardInterrupt:
    state = "interrupted"
signal.signal(signal.SIGINT, signal.SIG_IGN)  # it may come too late
assert torch.is_grad_enabled()
print(state, solve(), flush=True)
assert not compile_lock.LOCK.locked() and gc.isenabled()
assert w.grad is None
"""


def compiling(cache: Path, delay: float | None) -> tuple[str, str]:
    """Solves by compiled code in a process of its own, which gets SIGINT after a while, as its compiler does."""
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    if delay is not None:
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors[-2000:]
    first, second = out.split()
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 1.5, 3.0, 5.0, 7.0, 9.0])
def test_while_a_library_is_built(delay: float, tmp_path: Path) -> None:
    """The same process goes on, and so does the next one that finds its files."""
    _, expected = compiling(tmp_path / "undisturbed", None)
    state, after = compiling(tmp_path / "cache", delay)
    assert after == expected, state
    assert compiling(tmp_path / "cache", None) == ("whole", expected)
