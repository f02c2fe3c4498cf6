"""The benchmarks `peers` and `gpu`: the contenders, their parts on known values, their pages, and a smoke run."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import run_gpu
from benchmarks.libraries import contenders
from benchmarks.libraries.contenders import ADJOINT, BACKSOLVE, CHECKPOINTED, COMPAT, COMPILED, EAGER, ODEINT, by_label
from benchmarks.libraries.problems import FIELDS, QUICK, Problem, build, choose
from benchmarks.peers import first_step, peers_report, run_peers
from benchmarks.peers.comparison import compare, relative_error
from benchmarks.peers.peer_rows import EvaluationCost, Row, Times, mean_count
from benchmarks.peers.targets import Target, targets
from benchmarks.shared import peak_memory
from benchmarks.shared.errors import NotApplicableError
from benchmarks.shared.tables import Settings

NAMES = [field.name for field in QUICK]
PACKAGES = {ODEINT: "torchdiffeq", ADJOINT: "torchdiffeq", "torchode": "torchode"}  # diffrax: the slow test
COST = EvaluationCost.of(1e-4, 3e-4, 26, 4)
SMALL = Settings("python -m benchmarks peers --quick", quick=True)


def problem(name: str) -> Problem:
    return build(choose(True, [name])[0], 0, "cpu")


def test_quick_fields_are_the_same_in_small() -> None:
    assert [f.name for f in FIELDS] == NAMES
    assert [(f.kind, f.tolerance, f.per_sample, f.mlp) for f in FIELDS] == [
        (f.kind, f.tolerance, f.per_sample, f.mlp) for f in QUICK
    ]
    assert choose(True, ["cnf", "tiny"]) == [QUICK[0], QUICK[4]]


def test_weights_follow_from_the_seed() -> None:
    one, same, other = (build(QUICK[0], seed, "cpu") for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.inputs, same.inputs, strict=True))
    assert not torch.equal(one.y0, other.y0)


def test_the_trace_of_the_flow_is_exact() -> None:
    given = problem("cnf").double()
    y, t = given.y0.detach(), torch.tensor(0.3, dtype=torch.float64)
    for i in range(len(y)):
        jacobian = torch.func.jacrev(lambda z, i=i: given.f(t, torch.cat([z, y[i, 2:]])[None])[0, :2])(y[i, :2])
        assert float(given.f(t, y)[i, 2].detach()) == pytest.approx(-float(jacobian.trace().detach()))


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_the_same_in_jax(name: str) -> None:
    pytest.importorskip("diffrax")
    import jax  # pyright: ignore[reportMissingImports]

    from benchmarks.libraries import jax_fields

    given = problem(name)
    args = {f"args.{i}": x for i, x in enumerate(given.args)}
    weights = {k: jax.numpy.asarray(x.detach().numpy()) for k, x in (given.weights | args).items()}
    theirs = jax_fields.make(given)(jax.numpy.float32(0.3), jax.numpy.asarray(given.y0.detach().numpy()), weights)
    mine = given.f(torch.tensor(0.3), given.y0, *given.args).detach()
    torch.testing.assert_close(torch.tensor(theirs.tolist()), mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lotka_volterra", "long"])
def test_fields_are_the_same_in_numpy(name: str) -> None:
    from benchmarks.libraries.scipy_solver import numpy_field

    given = problem(name)
    theirs = torch.from_numpy(numpy_field(given)(0.0, given.y0.detach().double().flatten().numpy()))
    mine = given.double().f(torch.tensor(0.0), given.y0.double(), *(a.double() for a in given.args))
    torch.testing.assert_close(theirs.view_as(mine), mine.detach())


@pytest.mark.parametrize("label", [COMPAT, *PACKAGES])
@pytest.mark.parametrize("name", ["tiny", "lotka_volterra", "long"])
def test_contenders_solve_the_same_problem(name: str, label: str) -> None:
    if label in PACKAGES:
        pytest.importorskip(PACKAGES[label])
    given = problem(name)
    base, runs = (by_label(x).start(given) for x in (EAGER, label))
    assert base.train is not None and runs.train is not None
    mine, theirs = base.train(), runs.train()
    assert relative_error(theirs.ys(), mine.ys()) < 1e-2
    assert relative_error(theirs.flat_gradient(), mine.flat_gradient()) < 5e-2


def test_scipy_solves_the_same_problem() -> None:
    given = problem("long")
    mine, theirs = (by_label(x).start(given).forward() for x in (EAGER, "SciPy solve_ivp RK45"))
    assert relative_error(theirs.ys(), mine.ys()) < 1e-2


def test_scipy_is_asked_only_where_it_is_fair() -> None:
    fair = [f.name for f in FIELDS if any(c.label.startswith("SciPy") for c in contenders.contenders_on(f))]
    assert fair == ["lotka_volterra", "long"]


def test_absent_and_failing_contenders_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchdiffeq", "torchode", "diffrax"):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"benchmarks.libraries.{package}_solver", raising=False)

    def broken(given: Problem) -> None:
        raise ValueError("no such driver")

    compiled = replace(by_label(COMPILED), start=broken)
    eager, *others = (c for c in contenders.contenders_on(QUICK[0]) if c.label not in (COMPILED, COMPAT))
    rows, cost = compare(problem("tiny"), [eager, compiled, *others], 1)
    assert rows[0].note == "" and rows[0].train is not None and rows[0].nfe == 26
    assert rows[1].note == "ValueError: no such driver" and rows[1].forward is None
    assert len(rows) == 8 and all(r.note.startswith("not installed: ") for r in rows[2:])
    assert cost is not None and rows[0].train.over == pytest.approx(rows[0].train.seconds / cost.train)


def test_errors_are_from_the_exact_solution() -> None:
    those = [by_label(EAGER), by_label(COMPAT)]
    (eager, compat), _ = compare(problem("lotka_volterra"), those, 1)
    assert eager.y_error is not None and 1e-8 < eager.y_error < 1e-2
    assert eager.gradient_error is not None and eager.gradient_error < 5e-2 and eager.difference is None
    assert compat.difference is not None and 0 < compat.difference < 5e-2
    assert "one step size" in compat.note


def test_the_cost_of_the_evaluations_counts_stages() -> None:
    assert COST.forward == pytest.approx(26e-4)
    assert COST.train == pytest.approx(26e-4 + 4 * 6 * 3e-4)
    assert mean_count(torch.tensor([2, 4])) == 3.0


def test_memory_is_measured_in_a_child_process() -> None:
    growth, note = first_step.measure_memory("tiny", EAGER, SMALL)
    assert note == "" and growth is not None and 0 <= growth < 50 * 2**20


def test_a_second_process_finds_the_caches_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def call(function: object, *args: object, env: dict[str, str]) -> tuple[float, str]:
        folder = Path(env["TORCHINDUCTOR_CACHE_DIR"])
        calls.append((args, env, folder.exists()))
        folder.mkdir(exist_ok=True)
        return 2.0, ""

    monkeypatch.setattr(first_step, "call_in_subprocess", call)
    starts, note = first_step.measure_starts("tiny", COMPILED, SMALL)
    assert note == "" and starts["cold"] == starts["again"] == 2.0 and starts["cold_process"] >= 0.0
    assert calls[0][:2] == calls[1][:2] and [there for *_, there in calls] == [False, True]


@pytest.mark.parametrize("measure", [first_step.first_step_seconds, first_step.step_memory])
def test_the_first_step_needs_a_gradient(measure: Callable[..., float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert measure("tiny", EAGER, 0, "cpu", True) >= 0
    with pytest.raises(NotApplicableError, match="no gradient"):
        measure("long", "SciPy solve_ivp RK45", 0, "cpu", True)


def test_launches_and_synchronisations_are_known_by_name() -> None:
    events = [("cudaLaunchKernel", 5), ("cuLaunchKernelEx", 2), ("cudaGraphLaunch", 1), ("cudaStreamSynchronize", 3)]
    assert run_gpu.count([*events, ("cudaMemcpyAsync", 9), ("aten::add", 7)]) == (8, 3)
    rows = [("tiny", EAGER, 80, 20, 10.0), ("tiny", "x", None, None, None, "n|o")]
    text = run_gpu.section([run_gpu.Launches(*row) for row in rows])
    assert f"| tiny | {EAGER} | 80 | 20 | 10 | 8.0 | 2.0 |  |" in text and "n\\|o" in text


def times(seconds: float, over: float | None = None) -> Times:
    return Times(seconds, seconds * 0.9, seconds * 1.1, over)


def row(field: str, label: str, train: float | None, forward: float = 0.01, over: float | None = None) -> Row:
    return Row(field, label, times(forward, 1.0), None if train is None else times(train, over))


ROWS = [
    replace(row("tiny", COMPILED, 0.01, over=0.8), cold=9.0, again=2.0),
    replace(row("medium", COMPILED, 0.01, over=1.2), cold=8.0, again=4.0),
    *(row(f, EAGER, 0.03, over=2.0) for f in ("tiny", "medium")),
    *(row(f, ADJOINT, t) for f, t in (("tiny", 0.05), ("medium", 0.8))),
    *(row(f, ODEINT, 0.04) for f in ("tiny", "medium")),
    *(row(f, CHECKPOINTED, 0.02, forward=0.009) for f in ("tiny", "medium")),
    *(row(f, BACKSOLVE, 0.015, forward=0.02) for f in ("tiny", "medium")),
    Row("tiny", "torchode", note="not installed: a|b"),
]


def test_targets_are_ratios_and_the_worst_field_is_named() -> None:
    found = {(r.what, r.over): r for r in targets(ROWS, choose(True, ["tiny", "medium"]))}
    mean, train = "MLP fields, geometric mean", "training step, compiled, "
    assert found[f"{train}speed-up over odeint_adjoint", mean].value == pytest.approx(math.sqrt(5 * 80))
    worst = found[f"{train}speed-up over odeint_adjoint", "worst of 2 fields: tiny"]
    assert worst.value == pytest.approx(5) and worst.met
    assert found[f"{train}speed-up over diffrax's better gradient", "worst of 2 fields: tiny"].value == pytest.approx(
        1.5
    )
    over = found[f"{train}in units of the evaluations' cost", "worst of 2 fields: medium"]
    assert over.value == 1.2 and over.met is False
    forward = [r for (what, _), r in found.items() if what.startswith("forward")]
    assert [r.met for r in forward] == [True, False] and forward[0].value == pytest.approx(0.9)
    assert found["second process, compiled, seconds", "worst of 2 fields: medium"].met is False


def test_a_mean_needs_all_its_fields() -> None:
    (first, *_) = targets([r for r in ROWS if r.field == "tiny"], choose(True, ["tiny", "medium"]))
    assert first.value is None and first.met is None


def test_page_and_numbers_say_what_was_measured() -> None:
    fields = choose(True, ["tiny", "medium"])
    costs = {"tiny": COST, "medium": None}
    met = [Target("a", "b", 2.0, 1.0), Target("c", "d", None, 1.0)]
    text = peers_report.page(ROWS, fields, costs, met, SMALL, "peers")
    assert "| a | b | 2.00 | >= 1 | yes |" in text and "| c | d | - | >= 1 | - |" in text
    assert f"| {COMPILED} | 10.00 | 9.00 to 11.00 | 1.00 | 10.00 | 9.00 to 11.00 | 0.80 |" in text
    assert "not installed: a\\|b" in text and "Cost of the evaluations: forward 2.60 ms, training step 9.80 ms." in text
    rows = list(csv.DictReader(io.StringIO(peers_report.numbers(ROWS, costs))))
    found = {(r["field"], r["contender"], r["quantity"]): r["value"] for r in rows}
    assert len(found) == len(rows)
    assert found["tiny", ADJOINT, "train, seconds"] == "0.05" and found["tiny", "torchode", "nfe"] == ""


def test_figure_is_drawn_with_numbers_missing() -> None:
    fields = choose(True, ["tiny", "medium", "cnf"])
    assert peers_report.draw(ROWS, fields, {"tiny": COST, "medium": None}).startswith(b"\x89PNG")


@pytest.mark.slow
def test_quick_run_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_peers, "contenders_on", lambda field: contenders.CONTENDERS[:2])
    monkeypatch.setattr(first_step, "measure_starts", lambda *_: ({"cold": 3.0, "cold_process": 5.0}, ""))
    monkeypatch.setattr(first_step, "measure_memory", lambda *_: (None, "memory: none to be had"))
    assert main(["peers", "--quick", "--seed", "5", "--only", "tiny", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("peers.json", "peers.md", "peers.csv", "peers.png"):
        assert (tmp_path / name).stat().st_size > 0 and printed.count(name) == 1
    settings = json.loads((tmp_path / "peers.json").read_text())
    assert settings["seed"] == 5 and settings["only"] == ["tiny"] and settings["machine"]["torch"] == torch.__version__
    page = (tmp_path / "peers.md").read_text()
    assert "smoke run" in page and "## Targets" in page and "### tiny" in page
    assert "3.0 (5.0)" in page and "memory: none to be had" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_contender_runs_on_every_field(name: str) -> None:
    for package in ("torchdiffeq", "torchode", "diffrax"):
        pytest.importorskip(package)
    those = [c for c in contenders.contenders_on(choose(True, [name])[0]) if c.label != COMPILED]
    rows, _ = compare(problem(name), those, 1)
    for r in rows:
        if name == "long" and r.label == "torchode joint backsolve":
            assert "output times" in r.note
        else:
            assert r.forward is not None and (r.train is not None or r.label.startswith("SciPy")), r.note
