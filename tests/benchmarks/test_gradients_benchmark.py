"""The benchmark `gradients`: its parts on known values, its page, and a smoke run."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gradients import cost, exactness, gradients_report, memory, recomputation
from benchmarks.gradients.cost import Cost
from benchmarks.gradients.exactness import Exactness
from benchmarks.gradients.gradient_options import BASE, GradientOption, cost_options, memory_options, named
from benchmarks.gradients.memory import Memory
from benchmarks.gradients.recomputation import Recomputation
from benchmarks.shared import peak_memory
from benchmarks.shared.errors import NotApplicableError, value_or_error
from benchmarks.shared.tables import MIB, Settings
from benchmarks.shared.timing import interleave

ROOT = Path(__file__).parents[2]
TINY = cost.Size("tiny", 3, 2, 4, 6)


def test_growth_is_what_was_allocated() -> None:
    """In a child of a parent that has more than the child ever takes."""
    code = (
        "from benchmarks.shared.peak_memory import memory_growth\n"
        "def work(): bytearray(b'x') * (30 << 20); return bytearray(b'x') * (50 << 20)\n"
        "print(memory_growth(work))"
    )
    ballast = bytearray(b"x") * (500 * MIB)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert len(ballast) == 500 * MIB
    assert int(done.stdout) / MIB == pytest.approx(50, abs=3)


def test_memory_is_measured_in_a_child_process() -> None:
    found = memory.measure_option(named("backprop"), steps=3, rows=memory.SIDE, device="cpu", tight=False)
    assert found.note == "" and found.growth is not None and 10 * MIB < found.growth < 200 * MIB


def test_a_child_that_fails_is_a_note() -> None:
    option = GradientOption("none such", lambda: "none")
    found = memory.measure_option(option, steps=3, rows=8, device="cpu", tight=False)
    assert found.growth is None and "none such" in found.note


def test_too_much_memory_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1048576 bytes.")

    monkeypatch.setattr(memory, "forward_and_backward", full)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(peak_memory.resource, "setrlimit", lambda *_: None)
    assert value_or_error(lambda: memory.growth_here("backprop", 3, 8, "cpu"))[1].startswith("needs more than ")


def test_contenders_take_turns() -> None:
    order: list[str] = []
    calls = {label: lambda label=label: order.append(label) for label in "abc"}
    seconds = interleave(calls, 3, shortest=0.0, pause=0.0)
    assert {label: len(s) for label, s in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(order) == "aabbcc" + "abc" * 3  # the warm-up, then the turns


def test_turns_that_would_take_long_are_fewer() -> None:
    assert len(interleave({"a": lambda: None}, 9, shortest=0.0, pause=0.01, longest=0.0)["a"]) == 3
    assert len(interleave({"a": lambda: None}, 2, shortest=0.0, pause=0.01, longest=0.0)["a"]) == 2


def test_quick_calls_are_repeated_and_times_are_of_one_call() -> None:
    calls = 0

    def nap() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.01)

    seconds = interleave({"nap": nap}, 2, shortest=0.05, pause=0.0)["nap"]
    assert calls >= 2 + 2 * 2
    assert all(0.009 < s < 0.1 for s in seconds)


def test_differences_are_of_order_four() -> None:
    given = exactness.inputs(0)

    def value(x: exactness.Inputs) -> torch.Tensor:
        return x.y0.sin().sum() * x.weight.exp().sum() + x.rate[1] ** 3 + x.ts[2] ** 2

    attached = exactness.Inputs(*(x.clone().requires_grad_() for x in given))
    exact = exactness.Inputs(*torch.autograd.grad(value(attached), attached))
    fine, coarse = (exactness.errors(exactness.differences(value, given, w), exact)[0] for w in (0.05, 0.1))
    assert 14 < coarse / fine < 18
    assert max(exactness.errors(exactness.differences(value, given), exact)) < 1e-10


@pytest.mark.parametrize("case", exactness.FIXED)
def test_discrete_is_exact(case: str) -> None:
    row = exactness.exact_row(named("discrete", 1e-7), case, exactness.inputs(3))
    assert row.errors is not None and max(row.errors) < 1e-8


@pytest.mark.slow
def test_both_libraries_give_the_same_gradient() -> None:
    pytest.importorskip("diffrax")
    rows = cost.measure_size(TINY, [named(BASE), named("none")], 0, "cpu", 1)
    found = {r.label: r for r in rows}
    assert found[BASE].ratio == 1.0 and found[BASE].nfe == 6 * 6 + 1
    assert found["none"].seconds is None and "unknown" in found["none"].note
    others = [r for r in rows if r.label.startswith("diffrax")]
    assert len(others) == 3
    for row in others:
        assert row.note == "" and row.difference is not None and row.difference < 1e-5


def test_without_diffrax_its_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffrax", None)
    monkeypatch.delitem(sys.modules, "benchmarks.libraries.diffrax_solver", raising=False)
    rows = cost.measure_size(TINY, [named(BASE)], 0, "cpu", 1)
    assert [r.note for r in rows if r.label.startswith("diffrax")] == ["not installed: diffrax"] * 3
    assert rows[0].seconds is not None


def test_the_units_of_time_are_measured() -> None:
    assert {BASE, cost.AGAIN} <= {o.label for o in cost_options(100)}
    assert len({o.label for o in memory_options()}) == len(memory_options())


def test_recomputation_is_counted_in_steps() -> None:
    assert recomputation.recomputed(20, 20) == 0
    assert recomputation.recomputed(20, 1) == 20 * 19 / 2 == recomputation.optimum(20, 1)


def test_an_error_is_one_line() -> None:
    def refuse() -> None:
        raise NotApplicableError("no gradient")

    assert value_or_error(lambda: 3) == (3, "")
    assert value_or_error(lambda: [][1])[1].startswith("IndexError: ")
    assert value_or_error(refuse) == (None, "no gradient")


RESULTS = gradients_report.Results(
    memory=[
        Memory("adjoint", 50, False, 40 * MIB, 60),
        Memory("adjoint", 1000, False, 75 * MIB, 60),
        Memory("adjoint", 1000, True, 30 * MIB, 60),
        Memory("reversible", 50, False, 20 * MIB, 60),
        Memory("reversible", 1000, False, 55 * MIB, 60),
        Memory("reversible", 1000, True, 21 * MIB, 60),
        Memory("backprop", 50, False, 700 * MIB, None),
        Memory("backprop", 1000, False, None, None, "needs more than 8.0 GiB"),
        Memory("backprop", 1000, True, None, None, "needs more than 8.0 GiB"),
    ],
    exactness=[Exactness("adjoint", "tsit5, tolerance 1e-04", (1e-5, 2e-5, 2e-2), 1e-3)],
    cost=[
        Cost("small", BASE, 0.010, 0.009, 0.012, 1.0, 0.8, None, 37, 1, None, None),
        Cost("small", "reversible", 0.021, 0.020, 0.030, 2.1, 1.7, 2.2, 40, 40, None, 1e-7),
        Cost("small", "diffrax backsolve", note="not installed: a|b"),
    ],
    recomputation=[Recomputation(50, 5, 78.0, 75), Recomputation(50, 50, 0.0, 0)],
)


def lines_of(text: str, start: str) -> list[list[str]]:
    """Cells of the table lines whose first cell is `start`."""
    rows = [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] == start]


def test_page_says_what_was_met_and_what_not() -> None:
    text = gradients_report.page(RESULTS, Settings("python -m benchmarks gradients"))
    assert "python -m benchmarks gradients\n" in text and f"torch: {torch.__version__}," in text and "![" in text
    assert "smoke" not in text
    assert lines_of(text, "adjoint")[0][:7] == ["adjoint", "40.0", "75.0", "35.0", "30.0", "60", "no"]
    assert lines_of(text, "reversible")[0][1:7] == ["20.0", "55.0", "35.0", "21.0", "60", "no"]  # by the difference
    assert lines_of(text, "backprop")[0][1:5] == ["700.0", "-", "-", "-"]
    assert "1000 steps: needs more than 8.0 GiB" in text
    assert lines_of(text, "tsit5, tolerance 1e-04")[0][2:7] == ["1.0e-05", "2.0e-05", "2.0e-02", "1e-03", "no"]
    assert lines_of(text, "reversible")[1][1:7] == ["21.0", "20.0 to 30.0", "2.10", "2.2", "yes", "1.70"]
    assert "not installed: a\\|b" in text
    assert lines_of(text, "50")[0] == ["50", "5", "78", "75", "1.04", ""]


def test_numbers_are_one_a_line() -> None:
    rows = list(csv.DictReader(io.StringIO(gradients_report.numbers(RESULTS))))
    assert tuple(rows[0]) == gradients_report.CSV_COLUMNS
    found = {(r["part"], r["case"], r["gradient"], r["quantity"]): r["value"] for r in rows}
    assert len(found) == len(rows)
    assert found["memory", "1000 steps, tight", "adjoint", "growth"] == str(30 * MIB)
    assert found["memory", "1000 steps", "backprop", "growth"] == ""
    assert found["exactness", "tsit5, tolerance 1e-04", "adjoint", "error to ts"] == "0.02"
    assert found["cost", "small", "reversible", "ratio"] == "2.1"


def test_figure_is_drawn_with_numbers_missing() -> None:
    assert gradients_report.draw(RESULTS.memory, RESULTS.cost).startswith(b"\x89PNG")


@pytest.mark.slow
def test_quick_run_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradients", "--quick", "--seed", "5", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("settings.json", "gradients.md", "gradients.csv", "gradients.png"):
        assert (tmp_path / name).stat().st_size > 0 and name in printed
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["seed"] == 5 and settings["quick"] and settings["machine"]["torch"] == torch.__version__
    page = (tmp_path / "gradients.md").read_text()
    assert "smoke run" in page and all(f"## {part}" in page for part in ("Memory", "Exactness", "Cost"))
    assert f"python -m benchmarks gradients --quick --seed 5 --out {tmp_path}" in page
