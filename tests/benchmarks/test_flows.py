"""The benchmark `flows`: its parts on known values, the pages, and smoke runs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from benchmarks.__main__ import main
from benchmarks.flows import (
    coupling_quality,
    density_models,
    flow_contenders,
    flow_speed,
    likelihood_race,
    sampler_gradients,
    sampler_quality,
    section_four,
    table_densities,
)
from benchmarks.flows.coupling_quality import Quality, VelocityNet
from benchmarks.flows.density_targets import grid, log_normaliser, log_target
from benchmarks.flows.distances import energy_distance, rms, wasserstein
from benchmarks.flows.sampler_gradients import Cost
from benchmarks.flows.sampler_quality import Sampled
from benchmarks.flows.section_four import Fit
from benchmarks.flows.section_four_models import GatedField
from benchmarks.flows.table_densities import Score
from benchmarks.shared.errors import value_or_error
from benchmarks.shared.subprocesses import call_each_in_subprocess
from benchmarks.shared.tables import MIB, Settings
from odenet.nn import CNF, FlowMatching, MLPField

SETTINGS = Settings("python -m benchmarks flows")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cells(text: str, start: str) -> list[list[str]]:
    """Cells of the table lines whose first cell is `start`."""
    lines = [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if line[0] == start]


def test_normalisers() -> None:
    """U2's has a closed form; the others are the same on a coarser grid."""
    tails = 0.4 * math.sqrt(2 * math.pi)
    assert log_normaliser("U2") == pytest.approx(math.log((8 + tails) * tails), abs=1e-5)
    points, area = grid(500, 8.0)
    for name in ("U1", "U3"):
        coarse = float(log_target(name, points).exp().sum() * area)
        assert log_normaliser(name) == pytest.approx(math.log(coarse), abs=1e-3)


def test_gated_field_has_its_trace() -> None:
    field, z, t = GatedField(2, 6), draw(4, 2), torch.tensor(0.3)
    exact = [torch.autograd.functional.jacobian(lambda x: field(t, x[None])[0], row).trace() for row in z]
    torch.testing.assert_close(field.with_trace(t, z)[1], torch.stack(exact))


def test_distances() -> None:
    x = draw(50, 2)
    assert wasserstein(x, x[torch.randperm(50)] + torch.tensor([3.0, 4.0])) == pytest.approx(5.0, rel=1e-5)
    assert rms(x, x + 2) == pytest.approx(2.0)
    # means over pairs: 2 * 10 - 1 - 1
    assert energy_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0], [11.0]])) == pytest.approx(18**0.5)


def test_wasserstein_is_that_of_pot() -> None:
    ot = pytest.importorskip("ot")
    x, y = draw(40, 3), 1 + draw(40, 3, seed=1)
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    assert wasserstein(x, y) == pytest.approx(ot.emd2([], [], cost) ** 0.5, rel=1e-9)


def test_path_energy_of_a_constant_velocity() -> None:
    flow = FlowMatching(lambda t, x: torch.tensor([3.0, 4.0]).expand_as(x), event_shape=(2,))
    end, energy = coupling_quality.euler(flow, torch.zeros(5, 2), 10)
    torch.testing.assert_close(end, torch.tensor([3.0, 4.0]).expand(5, 2))
    assert energy == pytest.approx(25.0, rel=1e-5)


def test_batches_are_epochs() -> None:
    rows = torch.arange(10.0)[:, None]
    found = coupling_quality.batches(rows, 4, torch.Generator().manual_seed(0))
    epoch = torch.cat([next(found) for _ in range(3)])
    assert epoch.flatten().sort().values.tolist() == rows.flatten().tolist()
    assert VelocityNet(2)(torch.tensor(0.5), draw(3, 2)).shape == (3, 2)


@pytest.mark.parametrize("label", [flow_contenders.EAGER, *list(flow_contenders.CONTENDERS)[-2:]])
def test_contenders_compute_the_same_gradient(label: str) -> None:
    if "torchdiffeq" in label:
        pytest.importorskip("torchdiffeq")
    if "diffrax" in label:
        pytest.importorskip("diffrax")
    field, x = MLPField(2, (8, 8)), draw(6, 2)
    flow_speed._fill(field, 1, 2.0)
    exact = torch.autograd.grad(CNF(field, rtol=1e-6, atol=1e-6).loss(x), list(field.parameters()))
    step = flow_contenders.CONTENDERS[label](field, x, 1e-6)
    for mine, theirs in zip(step()(), exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    flow_speed._fill(field, 2, 1.0)  # a contender sees new weights
    assert not torch.allclose(step()()[0], exact[0], rtol=1e-2)


def test_a_missing_library_is_a_note() -> None:
    def missing(*_: object) -> object:
        raise ImportError("no", name="torchcfm")

    assert value_or_error(missing) == (None, "not installed: torchcfm")


def test_the_race_ends_at_the_threshold() -> None:
    assert likelihood_race.seconds_until([(1.0, -3.0), (2.0, -2.0), (3.0, -1.0)], -2.5) == 2.0
    assert likelihood_race.seconds_until([(1.0, -3.0)], -2.5) is None
    rows = []
    for label, seconds in ((likelihood_race.OURS, 1.0), (likelihood_race.THEIRS, 8.0)):
        rows.append(("race", "toy", label, "first step", 5.0, ""))
        for i in (1, 2):
            rows.append(("race", "toy", label, f"seconds at {i}", i * seconds, ""))
            rows.append(("race", "toy", label, f"nats at {i}", float(-4 + i), ""))
    text = likelihood_race.section(rows)
    assert cells(text, "toy")[-1] == ["toy", "-2.005", "-2.000", "2.0", "5.0", "16.0", "8.00"]
    assert flow_speed.ratio_line([1.0, 4.0, 2.0]) == ["1.00", "2.00", "4.00", "2.00"]


def test_fit_keeps_the_best_weights() -> None:
    """The loss drives the parameter away from what val wants, so that the first of the looks is the best."""
    module = torch.nn.Linear(1, 1)
    bias: Any = module.bias
    seen: list[float] = []

    def log_prob(z: torch.Tensor, tolerance: float) -> torch.Tensor:
        seen.append(bias.item())
        return -(bias + 10).square()

    model = density_models.Learned(module, lambda _: 0 * module.weight.sum() - bias.sum(), log_prob)
    best, iterations = density_models.fit(model, repeat(torch.zeros(1, 1)), torch.zeros(1, 1), 0.2)
    assert len(seen) == density_models.LOOKS and seen == sorted(seen) and seen[0] < seen[-1]
    assert bias.item() == seen[0] and best == pytest.approx(-((seen[0] + 10) ** 2)) and iterations >= len(seen)


def test_a_learned_grid_is_better_than_a_uniform_one() -> None:
    """dx/dt = -x, ever faster towards t = 1: steps are wanted there."""
    flow = FlowMatching(lambda t, x: -8 * t**3 * x, event_shape=(1,))
    learned = sampler_quality.learned_grid(flow, "midpoint", 4, 40, 0)
    x0 = draw(20, 1).double()
    exact = x0 * math.exp(-2.0)
    error, uniform = (
        rms(flow.sample(x0=x0, method="midpoint", **how), exact) for how in ({"grid": learned}, {"steps": 4})
    )
    assert error < 0.5 * uniform and bool((learned.diff() > 0).all())


def test_pages_say_what_was_measured() -> None:
    fits = [Fit("U1", "NF", 8, s, 0.5 + s, 1000) for s in (0, 1)] + [Fit("U1", "CNF", 8, 0, note="failed")]
    text = section_four.page(fits, [Fit("moons", "NF", 64, 0, -1.0, 10)], SETTINGS)
    assert cells(text, "NF, K = 8") == [["NF, K = 8", "1.000 ± 0.707", "1,000"]] and "failed" in text
    assert section_four.draw(fits).startswith(b"\x89PNG")
    found = [Quality("normal", "moons", "CFM", s, 1.0 + s, 2.0, 0.5) for s in (0, 1)]
    assert ["CFM", "1.500 ± 0.707"] in cells(coupling_quality.page(found, SETTINGS), "CFM")
    rows = [Sampled("8gaussians", "vp", 0, "exact", "-", energy=0.1)]
    rows += [Sampled("8gaussians", "vp", s, "ddim", "uniform", 4, 4, 0.2 + s, 0.3, 0.4) for s in (0, 1, 2)]
    rows += [Sampled("8gaussians", "vp", 0, "tsit5", "0.01", 0, 26, 0.01, 0.02, 0.11)]
    text = sampler_quality.page(rows, SETTINGS)
    assert ["ddim", "uniform", "1.2"] in cells(text, "ddim") and "tight solve: 0.100" in text
    assert cells(text, "tsit5") == [["tsit5", "0.01", "26", "0.01", "0.02", "0.110"]]
    assert sampler_quality.draw(rows).startswith(b"\x89PNG")
    costs = [Cost("adjoint", 20, 3 * MIB, (0.01, 0.03, 0.02), 1e-7), Cost("backprop", 20, None, (), None, "too much")]
    text = sampler_gradients.page(costs, {"before": [1.0, 3.0, 2.0]}, "", SETTINGS)
    assert cells(text, "adjoint") == [["adjoint", "3.0", "20.0 (10.0 to 30.0)", "1e-07", ""]]
    assert cells(text, "before") == [["before", "2.000 (1.000 to 3.000)"]] and "too much" in text
    scores = [Score("digits", "CNF", -100.0, 1.0, 2.25, 5000, 1000), Score("digits", "zuko NSF", note="not installed")]
    text = table_densities.page(scores, SETTINGS)
    assert cells(text, "CNF") == [["CNF", "-100.00 ± 1.00", "2.250", "5,000", "1,000", ""]] and "not installed" in text


def test_jobs_run_in_processes_of_their_own() -> None:
    found = call_each_in_subprocess(math.hypot, [(3.0, 4.0), (5.0, 12.0), ("x",)])
    assert found[:2] == [(5.0, ""), (13.0, "")] and found[2][0] is None and "TypeError" in found[2][1]


def here(function: Callable[..., Any], jobs: Sequence[Sequence[Any]], **_: object) -> list[tuple[Any, str]]:
    return [value_or_error(lambda job=job: function(*job)) for job in jobs]


@pytest.mark.parametrize(
    ("part", "module"),
    [
        ("section4", section_four),
        ("otcfm", coupling_quality),
        ("samplers", sampler_quality),
        pytest.param("tabular", table_densities, marks=pytest.mark.slow),
    ],
)
def test_quick_run(part: str, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has loaded the libraries."""
    if part == "tabular":
        pytest.importorskip("sklearn")
    monkeypatch.setattr(module, "call_each_in_subprocess", here)
    assert main(["flows", "--quick", "--only", part, "--out", str(tmp_path)]) == 0
    page = (tmp_path / f"flows_{part}.md").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / f"flows_{part}.csv").read_text())))
    assert "smoke run" in page and rows
    assert all(row["note"] == "" or "not installed" in row["note"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["speed", "sampler-gradients"])
def test_quick_run_in_processes(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchdiffeq", "diffrax", "sklearn"):
        pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["flows", "--quick", "--only", part, "--out", str(tmp_path)]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / f"flows_{part.replace('-', '_')}.csv").read_text())))
    assert all(row["note"] == "" or "not installed" in row["note"] for row in rows)
    assert len(rows) > 5
