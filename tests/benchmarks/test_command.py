"""`python -m benchmarks`: what it lists, what it refuses, and that nothing of it is in the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, main

ROOT = Path(__file__).parents[2]


def test_without_a_name_the_benchmarks_are_listed() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks"], capture_output=True, text=True, check=True, cwd=ROOT)
    printed = " ".join(done.stdout.split())
    assert all(f"{name} {text}" in printed for name, (text, _) in BENCHMARKS.items())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0 and "--out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["peer"], "peers"),
        (["gradients", "--device", "tpu"], "cpu"),
        (["gradients", "--only", "tiny"], "--only"),
        (["peers", "--only", "tinny"], "did you mean tiny?"),
        (["stiff", "--only", "ROBERT"], "did you mean ROBER?"),
        (["flows", "--only", "sampler"], "did you mean samplers?"),
        (["gpu"], "use the benchmark peers"),
        (["front", "--out", __file__], "choose another folder"),
        (["peers", "--device", "cuda"], "use --device cpu"),
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        main(words)
    message = capsys.readouterr().err
    assert end.value.code == 2 and match in message and message.count("\n") == 1


def test_module_names_are_unique() -> None:
    names = Counter(file.name for file in (ROOT / "benchmarks").rglob("*.py") if file.name != "__init__.py")
    assert not [name for name, count in names.items() if count > 1]


def test_the_package_imports_no_library_that_it_is_compared_with() -> None:
    """SciPy's solver, which odenet.compat has as torchdiffeq has it, is no comparison."""
    for file in (ROOT / "src" / "odenet").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (benchmarks|jax|diffrax|torchode|torchdiffeq)\b", text, re.M), file


@pytest.mark.slow
def test_speed_runs_once() -> None:
    """The timed calls of `make bench-quick`, without timing."""
    pytest.importorskip("pytest_benchmark")
    words = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--benchmark-disable", "benchmarks/speed"]
    env = os.environ | {"PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], capture_output=True, text=True, check=False, cwd=ROOT, env=env
    )
    assert done.returncode == 0 and "10 passed" in done.stdout, done.stdout + done.stderr
