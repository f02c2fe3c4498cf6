"""`odenet bench gradients`: memory, exactness, time and recomputation of every gradient."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from . import cost, exactness, figure, machine, memory, recomputation, table
from .results import Results, Tell


@dataclass(frozen=True)
class Settings:
    """seed: of weights and states. device: cpu or cuda. quick: a smoke run whose numbers say nothing."""

    seed: int
    device: str
    quick: bool
    command: str


def run(s: Settings, tell: Tell) -> Iterator[tuple[str, str | bytes]]:
    """Measure, and give each file's name and content: the settings before anything else, the rest at the end."""
    facts = machine.describe(s.device)
    yield "settings.json", json.dumps(asdict(s) | {"machine": facts}, indent=2) + "\n"
    results = Results(
        memory=memory.measure(s.device, s.quick, tell),
        exactness=exactness.measure(s.seed, s.quick, tell),
        cost=cost.measure(s.seed, s.device, s.quick, tell),
        recomputation=recomputation.measure(s.quick, tell),
    )
    sizes = cost.QUICK if s.quick else cost.SIZES
    yield "gradients.csv", table.numbers(results)
    yield "gradients.png", figure.draw(results.memory, results.cost)
    yield "gradients.md", table.page(results, sizes, facts, s.command, "gradients.png", s.quick)
