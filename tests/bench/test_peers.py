"""`odenet bench peers`: its contenders, its measuring parts on what is known, its pages, and a smoke run."""

from __future__ import annotations

import csv
import io
import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import call, refused
from odenet.bench.fields import FIELDS, QUICK, Problem, build, choose
from odenet.bench.peers import child, contenders, figure, floor, launches, measure, odenet_side, table
from odenet.bench.peers.diffrax_side import BACKSOLVE, CHECKPOINTED
from odenet.bench.peers.odenet_side import COMPILED, EAGER
from odenet.bench.peers.rows import Ratio, Row, Times
from odenet.bench.peers.targets import targets
from odenet.bench.peers.torchdiffeq_side import ADJOINT, COMPAT, ODEINT
from odenet.bench.results import attempt

ROOT = Path(__file__).parent.parent.parent
NAMES = [field.name for field in QUICK]
PACKAGES = {ODEINT: "torchdiffeq", ADJOINT: "torchdiffeq", "torchode": "torchode"}  # diffrax: the slow test
FLOOR = floor.Floor.of(1e-4, 3e-4, 26, 4)


def problem(name: str) -> Problem:
    return build(choose(True, [name])[0], 0, "cpu")


def silent(part: str, done: int, total: int) -> None:
    pass


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

    from odenet.bench.peers import jax_fields

    given = problem(name)
    args = {f"args.{i}": x for i, x in enumerate(given.args)}
    weights = {k: jax.numpy.asarray(x.detach().numpy()) for k, x in (given.weights | args).items()}
    theirs = jax_fields.field(given)(jax.numpy.float32(0.3), jax.numpy.asarray(given.y0.detach().numpy()), weights)
    mine = given.f(torch.tensor(0.3), given.y0, *given.args).detach()
    torch.testing.assert_close(torch.tensor(theirs.tolist()), mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lotka_volterra", "long"])
def test_fields_are_the_same_in_numpy(name: str) -> None:
    from odenet.bench.peers import scipy_side

    given = problem(name)
    theirs = torch.from_numpy(scipy_side._field(given)(0.0, given.y0.detach().double().flatten().numpy()))
    mine = given.double().f(torch.tensor(0.0), given.y0.double(), *(a.double() for a in given.args))
    torch.testing.assert_close(theirs.view_as(mine), mine.detach())


@pytest.mark.parametrize("label", [COMPAT, *PACKAGES])
@pytest.mark.parametrize("name", ["tiny", "lotka_volterra", "long"])
def test_contenders_solve_the_same_problem(name: str, label: str) -> None:
    if label in PACKAGES:
        pytest.importorskip(PACKAGES[label])
    given = problem(name)
    base, runs = (contenders.by_label(x).start(given) for x in (EAGER, label))
    assert base.train is not None and runs.train is not None
    mine, theirs = base.train(), runs.train()
    assert mine.values and theirs.values
    assert measure.relative(theirs.values(), mine.values()) < 1e-2
    assert measure.relative(theirs.flat(), mine.flat()) < 5e-2


def test_scipy_solves_the_same_problem() -> None:
    given = problem("long")
    mine, theirs = (contenders.by_label(x).start(given).forward() for x in (EAGER, "SciPy solve_ivp RK45"))
    assert mine.values and theirs.values
    assert measure.relative(theirs.values(), mine.values()) < 1e-2


def test_scipy_is_asked_only_where_it_is_fair() -> None:
    fair = [f.name for f in FIELDS if any(c.label.startswith("SciPy") for c in contenders.of(f))]
    assert fair == ["lotka_volterra", "long"]


def test_absent_and_failing_contenders_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchdiffeq", "torchode", "diffrax"):
        monkeypatch.setitem(sys.modules, package, None)

    def broken(given: Problem) -> None:
        raise ValueError("no such driver")

    compiled = replace(contenders.by_label(COMPILED), start=broken)
    eager, *others = (c for c in contenders.of(QUICK[0]) if c.label not in (COMPILED, COMPAT))
    rows, lowest = measure.measure_problem(problem("tiny"), [eager, compiled, *others], 1, silent)
    assert rows[0].note == "" and rows[0].train is not None and rows[0].nfe == 26
    assert rows[1].note == "ValueError: no such driver" and rows[1].forward is None
    assert len(rows) == 8 and all(r.note.startswith("not installed: ") for r in rows[2:])
    assert lowest is not None and rows[0].train.over == pytest.approx(rows[0].train.seconds / lowest.train)


def test_errors_are_from_the_exact_solution() -> None:
    those = [contenders.by_label(EAGER), contenders.by_label(COMPAT)]
    (eager, compat), _ = measure.measure_problem(problem("lotka_volterra"), those, 1, silent)
    assert eager.y_error is not None and 1e-8 < eager.y_error < 1e-2
    assert eager.gradient_error is not None and eager.gradient_error < 5e-2 and eager.difference is None
    assert compat.difference is not None and 0 < compat.difference < 5e-2
    assert "one step size" in compat.note


def test_the_floor_counts_evaluations_and_stages() -> None:
    assert FLOOR.forward == pytest.approx(26e-4)
    assert FLOOR.train == pytest.approx(26e-4 + 4 * 6 * 3e-4)
    assert floor.mean(torch.tensor([2, 4])) == 3.0


def test_a_contender_is_measured_apart() -> None:
    eager = contenders.by_label(EAGER)
    grown, note = child.memory(QUICK[0], eager, 0, "cpu", True)
    assert note == "" and grown is not None and 0 <= grown < 50 * 2**20


def test_a_second_process_finds_the_caches_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def ask(module: str, words: list[str], env: dict[str, str]) -> tuple[dict[str, object], str]:
        folder = Path(env["TORCHINDUCTOR_CACHE_DIR"])
        seen.append((words, env, folder.exists()))
        folder.mkdir(exist_ok=True)
        return {"value": 2.0, "note": ""}, ""

    monkeypatch.setattr(child, "ask", ask)
    starts, note = child.cold(QUICK[0], contenders.by_label(COMPILED), 0, "cpu", True)
    assert note == "" and starts["cold"] == starts["again"] == 2.0 and starts["cold_process"] >= 0.0
    assert seen[0][:2] == seen[1][:2] and [there for *_, there in seen] == [False, True]


@pytest.mark.parametrize("what", ["cold", "memory"])
def test_a_child_answers_with_a_number(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    answers = []
    for label, field in ((EAGER, "tiny"), ("SciPy solve_ivp RK45", "long")):
        monkeypatch.setattr(sys, "argv", ["child", "--what", what, "--field", field, "--contender", label, "--quick"])
        child.main()
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["value"] >= 0 and answers[0]["note"] == ""
    assert answers[1] == {"value": None, "note": "no gradient"}


def test_launches_and_syncs_are_told_by_name() -> None:
    events = [("cudaLaunchKernel", 5), ("cuLaunchKernelEx", 2), ("cudaGraphLaunch", 1), ("cudaStreamSynchronize", 3)]
    assert launches.count([*events, ("cudaMemcpyAsync", 9), ("aten::add", 7)]) == (8, 3)
    text = launches.part([launches.Launches("tiny", EAGER, 80, 20, 10.0), launches.Launches("tiny", "x", note="n|o")])
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
    over = found[f"{train}in units of the floor", "worst of 2 fields: medium"]
    assert over.value == 1.2 and over.met is False
    forward = [r for (what, _), r in found.items() if what.startswith("forward")]
    assert [r.met for r in forward] == [True, False] and forward[0].value == pytest.approx(0.9)
    assert found["second process, compiled, seconds", "worst of 2 fields: medium"].met is False


def test_a_mean_needs_all_its_fields() -> None:
    (first, *_) = targets([r for r in ROWS if r.field == "tiny"], choose(True, ["tiny", "medium"]))
    assert first.value is None and first.met is None


def test_page_and_numbers_say_what_was_measured() -> None:
    fields = choose(True, ["tiny", "medium"])
    floors = {"tiny": FLOOR, "medium": None}
    ratios = [Ratio("a", "b", 2.0, 1.0), Ratio("c", "d", None, 1.0)]
    text = table.page(ROWS, fields, floors, ratios, {"torch": "9.9"}, "odenet bench peers", False, "p.png")
    assert "| a | b | 2.00 | >= 1 | yes |" in text and "| c | d | - | >= 1 | - |" in text
    assert f"| {COMPILED} | 10.00 | 9.00 to 11.00 | 1.00 | 10.00 | 9.00 to 11.00 | 0.80 |" in text
    assert "not installed: a\\|b" in text and "Floor: forward 2.60 ms, training step 9.80 ms." in text
    rows = list(csv.DictReader(io.StringIO(table.numbers(ROWS, floors))))
    found = {(r["field"], r["contender"], r["quantity"]): r["value"] for r in rows}
    assert len(found) == len(rows)
    assert found["tiny", ADJOINT, "train, seconds"] == "0.05" and found["tiny", "torchode", "nfe"] == ""


def test_figure_is_drawn_with_numbers_missing() -> None:
    fields = choose(True, ["tiny", "medium", "cnf"])
    assert figure.draw(ROWS, fields, {"tiny": FLOOR, "medium": None}).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["bench", "peer"], "Did you mean 'peers'"),
        (["bench", "peers", "--only", "tinny"], "Did you mean 'tiny'"),
        (["bench", "gradients", "--only", "tiny"], "--only chooses among the fields"),
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(words, match, monkeypatch, capsys)


def test_without_a_gpu_its_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"), run_name="__main__")
    assert end.value.code == 2 and capsys.readouterr().err == "gpu.py: PyTorch finds no CUDA GPU here\n"


@pytest.mark.slow
def test_quick_run_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contenders, "CONTENDERS", odenet_side.CONTENDERS)
    monkeypatch.setattr(child, "cold", lambda *_: ({"cold": 3.0, "cold_process": 5.0}, ""))
    monkeypatch.setattr(child, "memory", lambda *_: (None, "memory: none to be had"))
    words = ("--quick", "--seed", "5", "--only", "tiny", "--out", tmp_path)
    assert call(monkeypatch, "bench", "peers", *words) == 0
    shown = capsys.readouterr().out
    for name in ("peers.json", "peers.md", "peers.csv", "peers.png"):
        assert (tmp_path / name).stat().st_size > 0 and shown.count(name) == 1
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
    those = [c for c in contenders.of(choose(True, [name])[0]) if c.label != COMPILED]
    rows, _ = measure.measure_problem(problem(name), those, 1, silent)
    for r in rows:
        if name == "long" and r.label == "torchode joint backsolve":
            assert "output times" in r.note
        else:
            assert r.forward is not None and (r.train is not None or r.label.startswith("SciPy")), r.note


def test_attempt_gives_the_reason_of_what_does_not_apply() -> None:
    from odenet.bench.results import DoesNotApplyError

    def refuse() -> None:
        raise DoesNotApplyError("no gradient")

    assert attempt(refuse) == (None, "no gradient")
