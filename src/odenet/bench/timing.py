"""Wall times of calls that take turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

Calls = Mapping[str, Callable[[], object]]


def interleave(
    calls: Calls,
    turns: int,
    *,
    shortest: float = 0.2,
    pause: float = 0.05,
    longest: float = math.inf,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Seconds a call of each, one number a turn; each has one turn before any has its next.

    So that a disturbance of the machine meets all of them. A turn of quick calls repeats them until it lasts about
    `shortest` seconds; `pause` lets the threads of the one before, which wait for work actively, go to sleep. A first
    turn of each is not counted: it warms up and tells how many calls a turn has. Where all turns would take more than
    `longest` seconds there are fewer, but three.
    """
    counts = {}
    expected = 0.0
    for label, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-6)
        counts[label] = min(100, max(1, math.ceil(shortest / once)))
        expected += counts[label] * once + pause
    if calls:
        turns = min(turns, max(3, int(min(turns, longest / expected))))
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    for turn in range(turns):
        for i, (label, call) in enumerate(calls.items()):
            tell(turn * len(calls) + i, turns * len(calls))
            time.sleep(pause)
            start = time.perf_counter()
            for _ in range(counts[label]):
                call()
            seconds[label].append((time.perf_counter() - start) / counts[label])
    return seconds
