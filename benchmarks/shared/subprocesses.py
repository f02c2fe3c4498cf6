"""Functions called in a process of their own: its caches are empty, and its peak memory is its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .errors import value_or_error

_ROOT = Path(__file__).parents[2]  # from where `benchmarks` can be imported


def call_in_subprocess(
    function: Callable[..., Any], *args: Any, env: Mapping[str, str] | None = None
) -> tuple[Any, str]:
    """Return the value of function(*args) and "", or None and a one-line error message.

    The function is imported by its name; its arguments and its value go through JSON.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__, function.__module__, function.__qualname__, json.dumps(args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=_ROOT,
        env=os.environ | dict(env or {}),
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return None, f"ended with code {done.returncode}: {last[:160]}"
    value, error = json.loads(done.stdout.splitlines()[-1])
    return value, error


def call_each_in_subprocess(
    function: Callable[..., Any], jobs: Sequence[Sequence[Any]], *, at_once: int = 2, title: str = ""
) -> list[tuple[Any, str]]:
    """Return what `call_in_subprocess` does for the arguments of each job, some at once, each on one thread."""

    def call(job: Sequence[Any]) -> tuple[Any, str]:
        return call_in_subprocess(function, *job, env={"OMP_NUM_THREADS": "1"})

    with ThreadPoolExecutor(at_once) as pool:
        return list(tqdm(pool.map(call, jobs), title, len(jobs), disable=None if title else True))


def main(module: str, name: str, args: str) -> None:
    """Print the value of a function and its error message as JSON: the child process."""
    print(json.dumps(value_or_error(lambda: getattr(import_module(module), name)(*json.loads(args)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
