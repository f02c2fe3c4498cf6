"""Peak memory of a training step of a neural controlled equation, by the length of the series and the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import odenet
from odenet.nn import NeuralCDE
from odenet.nn.controlled.controlled_model import ControlName
from odenet.series.control_path import derivative_pieces

from ..shared.errors import NotApplicableError
from ..shared.measured_rows import Row, values
from ..shared.peak_memory import RETURN_FREED_MEMORY, limit_memory, memory_growth
from ..shared.subprocesses import call_in_subprocess
from ..shared.tables import NONE, markdown_table
from .random_paths import CHANNELS, HIDDEN, random_walks
from .scan_speed import training_step

PART = "memory"
SAMPLES, LENGTHS, CONTROLS, SLOTS = 32, (100, 300, 1000, 3000), ("hermite", "linear"), 16
PATH, GROWTH = "data and path", "growth in bytes"
GRADIENTS: dict[str, Callable[[], Any]] = {
    "discrete": lambda: "discrete",
    f"discrete, checkpoints={SLOTS}": lambda: odenet.Discrete(checkpoints=SLOTS),
    "adjoint": lambda: "adjoint",
    "reversible": lambda: "reversible",
    "backprop": lambda: "backprop",
}


def growth(label: str, control: ControlName, length: int) -> int:
    """Growth of the peak by a training step, or by what it makes of series and path alone, in this process."""
    limit = limit_memory("cpu")

    def work(rows: int) -> Callable[[], Any]:
        series = random_walks(SAMPLES, rows, 0)
        plain = NeuralCDE(CHANNELS, HIDDEN, control=control)
        path = plain.path(series)
        if label == PATH:
            return lambda: (plain.scaled(series), derivative_pieces(path.pieces))
        gradient = GRADIENTS[label]()
        torch.manual_seed(0)
        model = NeuralCDE(CHANNELS, HIDDEN, 1, control=lambda _: path, method="rk4", step=1.0, gradient=gradient)
        return training_step(model, series, torch.zeros(SAMPLES, 1))

    try:
        work(5)()  # loads libraries, whose memory does not count
        return memory_growth(work(length))
    except RuntimeError as error:
        if "memory" in str(error) and "alloc" in str(error):
            raise NotApplicableError(f"needs more than {limit / 2**30:.1f} GiB") from None
        raise


def measure(quick: bool) -> list[Row]:
    controls, lengths, labels = (CONTROLS[:1], (5, 9), ("discrete",)) if quick else (CONTROLS, LENGTHS, (*GRADIENTS,))
    env = RETURN_FREED_MEMORY | {"OMP_NUM_THREADS": "1"}
    rows: list[Row] = []
    for control in controls:
        for length in lengths:
            for label in (PATH, *labels):
                value, note = call_in_subprocess(growth, label, control, length, env=env)
                rows.append((PART, case_name(control, length), label, GROWTH, value, note))
    return rows


def case_name(control: str, length: int) -> str:
    return f"{control}, T = {length}"


def beyond_the_path(rows: Sequence[Row], control: str, label: str) -> dict[int, float]:
    """Bytes by length: the growth of a training step less that of the path alone."""
    found: dict[int, float] = {}
    for case in dict.fromkeys(r[1] for r in rows if r[0] == PART and r[1].startswith(f"{control},")):
        whole, path = (values(rows, PART, case, name, GROWTH) for name in (label, PATH))
        if whole and path:
            found[int(case.rsplit(" ", 1)[1])] = whole[0] - path[0]
    return found


def labels_of(rows: Sequence[Row]) -> list[str]:
    return [x for x in dict.fromkeys(r[2] for r in rows if r[0] == PART) if x != PATH]


def controls_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(r[1].split(",")[0] for r in rows if r[0] == PART))


def section(rows: Sequence[Row]) -> str:
    lengths = list(dict.fromkeys(int(r[1].rsplit(" ", 1)[1]) for r in rows if r[0] == PART))
    lines: list[list[str]] = []
    for control in controls_of(rows):
        paths = [values(rows, PART, case_name(control, n), PATH, GROWTH) for n in lengths]
        lines.append([control, PATH, *(f"{p[0] / 2**20:.1f}" if p else NONE for p in paths), "", ""])
        for label in labels_of(rows):
            found = beyond_the_path(rows, control, label)
            slope = (found[lengths[-1]] - found[lengths[0]]) / (lengths[-1] - lengths[0]) if len(found) > 1 else None
            note = next((r[5] for r in rows if r[0] == PART and r[2] == label and r[5]), "")
            cells = [f"{found[n] / 2**20:.1f}" if n in found else NONE for n in lengths]
            lines.append([control, label, *cells, NONE if slope is None else f"{slope / 2**10:.2f}", note])
    text = f"""\
## Memory

Growth of the peak memory by a training step of `NeuralCDE({CHANNELS}, {HIDDEN})`, rk4 with a step for each row, batch
{SAMPLES}, in MiB; each number from a process of its own, whose allocator returns what is freed. The data and the path
through them are there before, and grow with T in any case; so do the scaled data and the derivative of the path that a
step makes, "{PATH}". The other rows are what comes on top of that. Last column: KiB for each further row. A state is
{SAMPLES * HIDDEN * 4 / 2**10:g} KiB.
"""
    head = ["control", "gradient", *(f"T = {n}" for n in lengths), "KiB a row", "note"]
    return "\n".join([text, markdown_table(head, lines)])
