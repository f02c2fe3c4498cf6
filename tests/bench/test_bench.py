"""`odenet bench gradients`: its measuring parts on what is known, its page, and a smoke run."""

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

from command_line import call, refused
from odenet.bench import cost, exactness, figure, memory, recomputation, table
from odenet.bench.contenders import BASE, Contender, cost_contenders, memory_contenders, named
from odenet.bench.results import Cost, Exactness, Memory, Recomputation, Results, attempt
from odenet.bench.timing import interleave

MIB = 2**20


def test_growth_is_what_was_allocated() -> None:
    """In a child of a parent that has more than the child ever takes."""
    code = (
        "from odenet.bench.memory import growth\n"
        "def work(): bytearray(b'x') * (30 << 20); return bytearray(b'x') * (50 << 20)\n"
        "print(growth(work))"
    )
    ballast = bytearray(b"x") * (500 * MIB)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(ballast) == 500 * MIB
    assert int(done.stdout) / MIB == pytest.approx(50, abs=3)


def test_memory_is_measured_apart() -> None:
    found = memory.measure_apart(named("backprop"), steps=3, rows=memory.SIDE, device="cpu", tight=False)
    assert found.note == "" and found.growth is not None and 10 * MIB < found.growth < 200 * MIB


def test_a_child_that_fails_is_a_note() -> None:
    found = memory.measure_apart(Contender("none such", lambda: "none"), steps=3, rows=8, device="cpu", tight=False)
    assert found.growth is None and "unknown" in found.note


def test_too_much_memory_is_a_note(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> int:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1048576 bytes.")

    monkeypatch.setattr(memory, "measure_here", full)
    monkeypatch.setattr(memory.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["memory", "--gradient", "backprop", "--steps", "3"])
    memory.main()
    assert json.loads(capsys.readouterr().out)["note"].startswith("needs more than ")


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
    size = cost.Size("tiny", 3, 2, 4, 6)
    rows = cost.measure_size(size, [named(BASE), named("none")], 0, "cpu", 1, lambda *_: None)
    found = {r.label: r for r in rows}
    assert found[BASE].ratio == 1.0 and found[BASE].nfe == 6 * 6 + 1
    assert found["none"].seconds is None and "unknown" in found["none"].note
    others = [r for r in rows if r.label.startswith("diffrax")]
    assert len(others) == 3
    for row in others:
        assert row.note == "" and row.difference is not None and row.difference < 1e-5


def test_without_diffrax_its_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffrax", None)
    rows = cost.measure_size(cost.Size("tiny", 3, 2, 4, 6), [named(BASE)], 0, "cpu", 1, lambda *_: None)
    assert [r.note for r in rows if r.label.startswith("diffrax")] == ["not installed: diffrax"] * 3
    assert rows[0].seconds is not None


def test_the_base_is_a_contender() -> None:
    assert BASE in [c.label for c in cost_contenders(100)]
    assert len({c.label for c in memory_contenders()}) == len(memory_contenders())


def test_recomputation_is_counted_in_steps() -> None:
    assert recomputation.recomputed(20, 20) == 0
    assert recomputation.recomputed(20, 1) == 20 * 19 / 2 == recomputation.optimum(20, 1)


def test_attempt_gives_the_value_or_one_line() -> None:
    assert attempt(lambda: 3) == (3, "")
    assert attempt(lambda: [][1])[1].startswith("IndexError: ")


RESULTS = Results(
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
    exactness=[Exactness("adjoint", "tsit5, tolerance 1e-04", "the ODE's gradient", (1e-5, 2e-5, 2e-2), 1e-3)],
    cost=[
        Cost("tiny", BASE, 0.010, 0.009, 0.012, 1.0, 0.8, None, 37, 1, None, None),
        Cost("tiny", "reversible", 0.021, 0.020, 0.030, 2.1, 1.7, 2.2, 40, 40, None, 1e-7),
        Cost("tiny", "diffrax backsolve", note="not installed: a|b"),
    ],
    recomputation=[Recomputation(50, 5, 78.0, 75), Recomputation(50, 50, 0.0, 0)],
)


def lines_of(text: str, start: str) -> list[list[str]]:
    """Cells of the table lines whose first cell is `start`."""
    rows = [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] == start]


def test_page_says_what_was_met_and_what_not() -> None:
    size = cost.Size("tiny", 3, 2, 4, 6)
    text = table.page(RESULTS, [size], {"torch_threads": 2, "torch": "9.9"}, "odenet bench gradients", "a.png", False)
    assert "odenet bench gradients\n" in text and "torch threads: 2, torch: 9.9." in text and "![" in text
    assert "smoke" not in text
    assert lines_of(text, "adjoint")[0][:7] == ["adjoint", "40.0", "75.0", "35.0", "30.0", "60", "no"]
    assert lines_of(text, "reversible")[0][:7] == [
        "reversible",
        "20.0",
        "55.0",
        "35.0",
        "21.0",
        "60",
        "no",
    ]  # by growth
    assert lines_of(text, "backprop")[0][1:5] == ["700.0", "-", "-", "-"]
    assert "1000 steps: needs more than 8.0 GiB" in text
    assert lines_of(text, "tsit5, tolerance 1e-04")[0][2:7] == ["1.0e-05", "2.0e-05", "2.0e-02", "1e-03", "no"]
    assert lines_of(text, "reversible")[1][1:7] == ["21.0", "20.0 to 30.0", "2.10", "2.2", "yes", "1.70"]
    assert "not installed: a\\|b" in text
    assert lines_of(text, "50")[0] == ["50", "5", "78", "75", "1.04", ""]


def test_numbers_are_one_a_line() -> None:
    rows = list(csv.DictReader(io.StringIO(table.numbers(RESULTS))))
    assert tuple(rows[0]) == table.CSV_COLUMNS
    found = {(r["part"], r["case"], r["gradient"], r["quantity"]): r["value"] for r in rows}
    assert len(found) == len(rows)
    assert found["memory", "1000 steps, tight", "adjoint", "growth"] == str(30 * MIB)
    assert found["memory", "1000 steps", "backprop", "growth"] == ""
    assert found["exactness", "tsit5, tolerance 1e-04", "adjoint", "error to ts"] == "0.02"
    assert found["cost", "tiny", "reversible", "ratio"] == "2.1"


def test_figure_is_drawn_with_numbers_missing() -> None:
    assert figure.draw(RESULTS.memory, RESULTS.cost).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "match"),
    [(["bench", "gradient"], "Did you mean 'gradients'"), (["bench", "gradients", "--device", "tpu"], "cpu or cuda")],
)
def test_mistakes_end_in_one_line(
    words: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(words, match, monkeypatch, capsys)


@pytest.mark.slow
def test_quick_run_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "bench", "gradients", "--quick", "--seed", "5", "--out", tmp_path) == 0
    shown = capsys.readouterr().out
    for name in ("settings.json", "gradients.md", "gradients.csv", "gradients.png"):
        assert (tmp_path / name).stat().st_size > 0 and name in shown
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["seed"] == 5 and settings["quick"] and settings["machine"]["torch"] == torch.__version__
    page = (tmp_path / "gradients.md").read_text()
    assert "smoke run" in page and all(f"## {part}" in page for part in ("Memory", "Exactness", "Cost"))
