"""What docs/scaling.md shows: the examples give the same alone and in two processes, and its blocks run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from distributed.launch import started, torchrun

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_ensemble(tmp_path: Path) -> None:
    """Of five members one process has three and the other two."""
    words = [EXAMPLES / "ensemble.py", "--members", "5", "--out"]
    alone = started([sys.executable, *map(str, words), "alone.pt"], tmp_path)
    spread = torchrun([*words, "spread.pt"], tmp_path)
    assert alone.returncode == spread.returncode == 0, alone.stderr + spread.stderr
    assert "in 1 process(es)" in alone.stdout and spread.stdout.count("in 2 process(es)") == 1
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("alone.pt", "spread.pt"))
    assert one["y1"].shape == (5, 3) and torch.equal(one["nfe"], two["nfe"])
    assert torch.allclose(one["y1"], two["y1"], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_parallel_training(tmp_path: Path) -> None:
    words = [EXAMPLES / "parallel_training.py"]
    shown = [started([sys.executable, *map(str, words)], tmp_path)]
    shown += [torchrun([*words, "--wrap", wrap], tmp_path) for wrap in ("ddp", "fsdp")]
    assert len({done.stdout for done in shown}) == 1 and "step 40" in shown[0].stdout, [x.stderr for x in shown]


@pytest.mark.slow
def test_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import sweep

    for part in (0, 2):
        sweep.run(part, 3, tmp_path / "three")
    with pytest.raises(SystemExit, match="parts 1 are not"):
        sweep.table(3, tmp_path / "three")
    sweep.run(1, 3, tmp_path / "three")
    sweep.run(0, 1, tmp_path / "one")
    assert sweep.table(3, tmp_path / "three") == sweep.table(1, tmp_path / "one")
    (tmp_path / "one" / "0.json").write_text("{}")
    sweep.run(0, 1, tmp_path / "one")  # what is there is left
    assert (tmp_path / "one" / "0.json").read_text() == "{}"


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_page(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import ray" in BLOCKS[number]:
        pytest.importorskip("ray")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    exec(compile(BLOCKS[number], f"docs/scaling.md, block {number}", "exec"), {})
