"""What is kept for an f goes when f goes, and equal codes are two."""

import gc
import warnings
import weakref

import pytest
import torch

import odenet
from odenet.compiled import autotune, compiled_solve, field_graph
from odenet.compiled.weak_cache import WeakIdCache
from odenet.core.pytrees import flatten


class Thing:
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def test_by_what_it_is_for_as_long_as_it_lives() -> None:
    values: WeakIdCache[str] = WeakIdCache()
    a, b = Thing(), Thing()
    values.set(a, "a")
    assert values.get(a) == "a" and values.get(b) is None
    values.set(b, "b")
    values.set(a, "again")
    assert len(values) == 2 and values.get(a) == "again" and values.get(b) == "b"
    del b
    gc.collect()
    assert len(values) == 1
    del a
    gc.collect()
    assert len(values) == 0


def test_what_has_no_weak_reference_has_no_value() -> None:
    values: WeakIdCache[str] = WeakIdCache()
    values.set((1, 2), "none")
    assert values.get((1, 2)) is None and len(values) == 0


def made_anew() -> object:
    names: dict[str, object] = {}
    exec("def f(t, y): return -y", names)
    return names["f"]


def sizes() -> tuple[int, int, int]:
    gc.collect()
    return len(field_graph._calls), len(autotune._results), len(compiled_solve.PLAN_CACHE.libraries)


def test_a_cell_run_again_and_again_stays_compiled() -> None:
    """TorchDynamo keeps eight graphs of a code: more fields than that, of equal code, and none is held on to."""
    y0, seen, before = torch.ones(2, dtype=torch.float64), [], sizes()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            f = made_anew()
            sol = odenet.solve(f, y0, [0.0, 1.0], method="rk4", step=0.1, compile=True)
            seen.append(weakref.ref(f.__code__))
    torch.testing.assert_close(
        sol.y1, torch.full_like(y0, float(torch.exp(torch.tensor(-1.0, dtype=torch.float64)))), rtol=1e-6, atol=0.0
    )
    del f, sol
    field_graph._last.graph = None
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= 1
    now = sizes()
    assert all(b <= a + 1 for a, b in zip(before, now, strict=True)), (before, now)


def test_a_failure_is_not_another_ones() -> None:
    """Of two modules of one class the second is tried though the first could not be captured."""

    class Field(torch.nn.Module):
        def __init__(self, bad: bool) -> None:
            super().__init__()
            self.bad = bad

        def forward(self, t, y):
            return -y * (float(y.sum()) if self.bad else 1.0)

    t, y = torch.zeros((), dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    spec = flatten(y)[1]
    bad, good = Field(True), Field(False)
    with torch.no_grad():
        with pytest.raises(field_graph.NotCompilableError):
            field_graph.capture(bad, spec, (), t, (y,))
        with pytest.raises(field_graph.NotCompilableError):  # spared: a try takes as long as the first
            field_graph.capture(bad, spec, (), t, (y,))
        graph, _ = field_graph.capture(good, spec, (), t, (y,))
    torch.testing.assert_close(graph(t, (y,), ())[0], -y)
