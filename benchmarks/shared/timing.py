"""Wall times of calls that take turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm

Calls = Mapping[str, Callable[[], object]]


def interleave(
    calls: Calls, turns: int, *, shortest: float = 0.2, pause: float = 0.05, longest: float = math.inf, title: str = ""
) -> dict[str, list[float]]:
    """Return the seconds of one call of each, a number a turn. Each has one turn before any has its next.

    A disturbance of the machine then meets all of them. A turn of quick calls repeats them until it lasts about
    `shortest` seconds; `pause` lets the threads of the call before, which wait actively, go to sleep. The first two
    calls of each are not counted: they warm up, and set the number of calls a turn. Turns are fewer, but at least
    three, where all of them would take more than `longest` seconds. title: of the progress bar.
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
    for _ in tqdm(range(turns), desc=title, disable=None if title else True):
        for label, call in calls.items():
            time.sleep(pause)
            start = time.perf_counter()
            for _ in range(counts[label]):
                call()
            seconds[label].append((time.perf_counter() - start) / counts[label])
    return seconds
