"""Runs the programs of examples/torchdiffeq under torchdiffeq and under its drop-in, and writes a table of both.

python tools/torchdiffeq_side_by_side.py --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
EXAMPLES = Path("examples/torchdiffeq")
OUT = ROOT / "benchmarks" / "results" / "torchdiffeq.md"
DROP_IN = "odenet.compat.torchdiffeq"
SIDES: dict[str, list[str]] = {"torchdiffeq": [], DROP_IN: ["-m", DROP_IN]}
PROGRAMS = (
    "spiral.py",
    "spiral.py --adjoint --iterations 60",
    "spiral.py --method rk4",
    "bouncing_ball.py",
    "bouncing_ball.py --adjoint",
    "cnf.py --no-adjoint",
    "cnf.py",
    "cnf.py --data circles",
    "latent_ode.py",
    "latent_ode.py --adjoint --points 20 --iterations 30",
    "mnist.py --no-adjoint",
    "mnist.py",
)


@dataclass
class Side:
    """What the runs of a program under one package said; losses, evaluations and times are those of all runs."""

    results: list[dict[str, Any]]

    def of(self, key: str) -> float:
        return median(result[key] for result in self.results)


def run(program: str, side: str, threads: int) -> dict[str, Any]:
    """The RESULT line of one process."""
    name, *words = program.split()
    command = [sys.executable, *SIDES[side], str(EXAMPLES / name), *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def compare(program: str, repeats: int, threads: int) -> dict[str, Side]:
    """Both sides in turn, so that what else the machine does falls on both; the second round in reversed order."""
    sides = {name: Side([]) for name in SIDES}
    for turn in range(repeats):
        for name in sorted(SIDES, reverse=turn % 2 == 0):
            sides[name].results.append(run(program, name, threads))
    return sides


def row(program: str, sides: dict[str, Side]) -> str:
    theirs, ours = sides["torchdiffeq"], sides[DROP_IN]
    cells = [f"`{program}`", *(f"{side.of('loss_before'):.6g}" for side in (theirs, ours))]
    cells += [f"{side.of('loss'):.4g}" for side in (theirs, ours)]
    cells += [f"{side.of('nfe'):.0f}" for side in (theirs, ours)]
    cells += [f"{side.of('seconds'):.2f}" for side in (theirs, ours)]
    cells.append(f"{theirs.of('seconds') / ours.of('seconds'):.2f}")
    return f"| {' | '.join(cells)} |"


HEADER = """\
| program | loss before | drop-in | loss after | drop-in | evaluations | drop-in | seconds | drop-in | times faster |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def text(rows: list[str], repeats: int, threads: int) -> str:
    import torch

    sys.path.append(str(ROOT))
    from benchmarks.shared.machine import describe_machine

    machine = describe_machine()
    known = ", ".join(f"{key}: {machine[key]}" for key in ("processor", "logical_cores", "python", "torch"))
    return f"""\
# Programs written for torchdiffeq

```
python tools/torchdiffeq_side_by_side.py --repeats {repeats} --threads {threads}
```

{known}, torchdiffeq: {version("torchdiffeq")}, threads: {threads}, device: cpu, dtype: {torch.get_default_dtype()}.

The programs of `examples/torchdiffeq`, unmodified, with the same seeds: once as they are, once as
`python -m {DROP_IN} program`. Each run is a process of its own, the two in turn; the median of {repeats}. The
loss before training is that of one solve with the initial parameters, the loss after it that of the trained model.
Evaluations of the field and seconds are those of the training, without imports.

{HEADER}
{chr(10).join(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every process")
    parser.add_argument("--only", default="", help="programs whose command line holds this")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    chosen = [program for program in PROGRAMS if args.only in program]
    if not chosen:
        parser.error(f"--only {args.only!r} fits none of: {'; '.join(PROGRAMS)}")
    print(HEADER, flush=True)
    rows = []
    for program in chosen:
        rows.append(row(program, compare(program, args.repeats, args.threads)))
        print(rows[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text(rows, args.repeats, args.threads), encoding="utf-8")


if __name__ == "__main__":
    main()
