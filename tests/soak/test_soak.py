"""No growth over many solves: `tools/soak.py` in short, and that it would see growth."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import odenet

TOOL = Path(__file__).parents[2] / "tools" / "soak.py"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak"]


def test_no_growth_eagerly() -> None:
    """Counts to the last object; memory, which a short run cannot tell, loosely."""
    out = run("--no-compile", "--solves", "2000", "--steps", "24", "--looks", "6", "--bound", "30")
    assert out.rstrip().endswith("Nothing grows.")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="compile=True needs a C++ compiler")
def test_no_growth_compiled() -> None:
    out = run("--solves", "60000", "--steps", "300", "--looks", "12", "--bound", "15")
    assert out.rstrip().endswith("Nothing grows.")


kept = []


@pytest.mark.slow
@pytest.mark.parametrize("leaks", [False, True])
def test_growth_is_seen(soak, leaks: bool) -> None:
    """A solve that leaves a tensor, and its field, behind."""

    def kind(i: int) -> None:
        f = lambda t, y: -y  # noqa: E731
        sol = odenet.solve(f, torch.ones(2), [0.0, 0.1], method="euler", step=0.1)
        if leaks:
            kept.append((f, sol.y1))

    try:
        watch = soak.solve_all(soak.Watch("solves", 60), ((kind, 5),), looks=6)
    finally:
        kept.clear()
    grown = watch.grown()
    assert ("tensors" in grown) == leaks and ("objects: builtins.function" in grown) == leaks, grown


def test_slope_of_memory(soak) -> None:
    """In MiB a whole run, over the second half alone."""
    watch = soak.Watch("solves", 8, sizes=[0.0, 50.0, 80.0, 90.0, 100.0, 101.0, 102.0, 103.0])
    assert watch.growth() == pytest.approx(8.0)
