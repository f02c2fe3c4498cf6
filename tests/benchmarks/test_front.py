"""The benchmark `front`: a smoke run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torchdiffeq")

from benchmarks.__main__ import main
from benchmarks.front import front_measurements, run_front


@pytest.mark.slow
def test_quick_run_writes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def once(calls: dict[str, object], turns: int, **_: object) -> dict[str, list[float]]:
        return {label: [1e-3 * (i + 1)] for i, label in enumerate(calls)}

    monkeypatch.setattr(front_measurements, "interleave", once)
    monkeypatch.setattr(run_front, "STEPS", (2,))
    assert main(["front", "--quick", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "front.md").read_text()
    assert "| euler | 2 | 0.50 / 0.50 / 0.50 | 1000 / 1000 / 1000 | 2000 / 2000 / 2000 |" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| eager", "| compiled"))]
    assert len(rows) == 4 and rows[0][3] == "-" and all(float(x) > 0 for x in rows[2][3].split(" / "))


def test_python_calls_grow_with_the_evaluations() -> None:
    ((f, y0),) = front_measurements.random_fields(1)
    (few, nfe), (many, more) = (front_measurements.python_calls(f, y0, False, end) for end in (1.0, 5.0))
    assert 0 < few < many and nfe < more
