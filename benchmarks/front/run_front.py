"""Runs the benchmark `front`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from ..shared.tables import NONE, Settings, markdown_table, number, page_head
from .front_measurements import constant_steps, fixed_part, machine_code_part, python_calls, random_fields

STEPS = (1, 2, 5, 10, 40)


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """Return least, median and largest value."""
    return " / ".join(number(x, f".{digits}f") for x in (min(values), float(np.median(values)), max(values)))


def run(settings: Settings) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and yield the name and the content of the file."""
    fields = random_fields(2 if settings.quick else 6)
    fixed, constant, calls = [], [], []
    for compile, grad in tqdm([(c, g) for c in (False, True) for g in (False, True)], "fixed part", disable=None):
        found = [fixed_part(f, y0, grad, compile) for f, y0 in fields]
        code = _spread([machine_code_part(f, y0, grad) for f, y0 in fields], 3) if compile else NONE
        kind = ["compiled" if compile else "eager", "with" if grad else "without"]
        fixed.append([*kind, _spread([a for a, _ in found], 3), code, _spread([b for _, b in found], 1)])
    jobs = [(method, steps) for method in ("euler", "midpoint", "rk4_38") for steps in STEPS]
    for method, steps in tqdm(jobs, "constant steps", disable=None):
        found = [constant_steps(f, y0, method, steps) for f, y0 in fields]
        mine, theirs = zip(*found, strict=True)
        constant.append([method, str(steps), _spread([a / b for a, b in found]), _spread(mine, 0), _spread(theirs, 0)])
    for grad in (False, True):
        counts = [python_calls(f, y0, grad, end) for f, y0 in fields for end in (1.0, 5.0, 20.0)]
        first = ", ".join(f"{c} for {n}" for c, n in counts[:3])
        calls.append(["with" if grad else "without", first, _spread([c / n for c, n in counts], 1)])
    sections = {
        "The fixed part of a repeated solve": markdown_table(
            ["", "gradients", "fixed part (ms)", "of it machine code (ms)", "an evaluation, f in it (us)"], fixed
        ),
        "Constant steps, eager, without gradients: time over torchdiffeq's": markdown_table(
            ["method", "steps", "ratio", "odenet (us)", "torchdiffeq (us)"], constant
        ),
        "Python calls inside the package for each evaluation of f, repeated solve": markdown_table(
            ["gradients", "the first field, ends 1, 5, 20", "calls an evaluation"], calls
        ),
    }
    how = f"Least / median / largest of {len(fields)} random fields (batch 1 to 64, dimension 2 to 8).\n"
    head = page_head("What a solve costs beside f", settings)
    yield "front.md", "\n".join([head, how, *(f"## {title}\n\n{table}" for title, table in sections.items())])
