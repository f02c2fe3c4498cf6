"""One part of a sweep over tolerances, for launchers that start independent jobs: Slurm arrays, Ray, a shell loop.

`python examples/sweep.py --part 3 --parts 8 --out sweep` solves the settings 3, 11, 19, ... and writes sweep/3.json; a
part that is there already is left as it is, so a job that was cut off can be started again.
`python examples/sweep.py --gather --parts 8 --out sweep` prints the table of all of them.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import odenet

SETTINGS = list(product(("bosh3", "dopri5", "tsit5", "dopri8"), (1e-4, 1e-6, 1e-8, 1e-10)))


def circle(t: Tensor, y: Tensor) -> Tensor:
    """Turns once in a time of 2 pi."""
    return torch.stack([-y[1], y[0]])


def solve(method: str, tolerance: float) -> dict[str, Any]:
    """One setting: its error after a whole turn, and what it cost."""
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    sol = odenet.solve(circle, y0, [0.0, 2 * torch.pi], method=method, rtol=tolerance, atol=tolerance)
    return {"method": method, "rtol": tolerance, "error": float((sol.y1 - y0).norm()), "nfe": sol.stats.nfe}


def run(part: int, parts: int, out: Path) -> None:
    file = out / f"{part}.json"
    if file.exists():
        return
    rows = {str(i): solve(*SETTINGS[i]) for i in range(part, len(SETTINGS), parts)}
    out.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(rows))
    os.replace(partial, file)  # whole, or not there


def table(parts: int, out: Path) -> str:
    missing = [str(part) for part in range(parts) if not (out / f"{part}.json").exists()]
    if missing:
        raise SystemExit(f"sweep: parts {', '.join(missing)} are not in {out} yet")
    rows = {int(i): row for part in range(parts) for i, row in json.loads((out / f"{part}.json").read_text()).items()}
    lines = [f"{r['method']:8} {r['rtol']:7.0e} {r['error']:9.1e} {r['nfe']:6}" for _, r in sorted(rows.items())]
    return "\n".join(["method      rtol     error    nfe", *lines])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--part", type=int, default=0)
    options.add_argument("--parts", type=int, default=1)
    options.add_argument("--out", type=Path, default=Path("sweep"))
    options.add_argument("--gather", action="store_true")
    given = options.parse_args()
    if given.gather:
        print(table(given.parts, given.out))
    else:
        run(given.part, given.parts, given.out)


if __name__ == "__main__":
    main()
