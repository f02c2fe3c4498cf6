"""One thread records and lowers at a time; the C++ compiler runs beside it."""

import gc
import threading
from pathlib import Path

import pytest
import torch

import odenet
from odenet.compiled import build, compile_lock

LONG = 60.0  # seconds, of a wait that is to end at once


@pytest.mark.slow
def test_the_lock_is_free_while_the_cpp_compiler_runs(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiling, go_on = threading.Event(), threading.Event()
    compiler = build._compile_cpp

    def waits(*given):
        compiling.set()
        assert go_on.wait(4 * LONG)
        return compiler(*given)

    monkeypatch.setattr(build, "_compile_cpp", waits)
    y0, results = torch.linspace(-1, 1, 6).view(2, 3), []
    f = lambda t, y: torch.sin(y) - 0.25 * y  # noqa: E731
    with torch.no_grad():
        expected = odenet.solve(f, y0, [0.0, 1.0]).y1

    def solve() -> None:
        with torch.no_grad():
            results.append(odenet.solve(f, y0, [0.0, 1.0], compile=True).y1)

    thread = threading.Thread(target=solve, daemon=True)
    thread.start()
    assert compiling.wait(4 * LONG)
    assert compile_lock.LOCK.acquire(timeout=LONG)
    compile_lock.LOCK.release()
    assert gc.isenabled()
    go_on.set()
    thread.join(4 * LONG)
    torch.testing.assert_close(results, [expected])


def test_one_at_a_time() -> None:
    inside: list[str] = []

    def other() -> None:
        with compile_lock.compiling():
            inside.append("other")

    thread = threading.Thread(target=other, daemon=True)
    with compile_lock.compiling():
        thread.start()
        thread.join(0.2)
        assert inside == [] and not gc.isenabled()
    thread.join(LONG)
    assert inside == ["other"] and gc.isenabled() and not compile_lock.LOCK.locked()
