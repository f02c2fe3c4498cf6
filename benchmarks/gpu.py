"""The comparison of `odenet bench peers` on a GPU, with launches and host syncs: benchmarks/results/gpu.md.

python benchmarks/gpu.py [--quick] [--only FIELD] [--seed N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from odenet.bench.fields import FIELDS, choose
from odenet.bench.peers import launches
from odenet.bench.peers.run import Settings, run
from odenet.bench.progress import shown
from odenet.train.runner import write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a smoke run whose numbers say nothing")
    parser.add_argument("--only", action="append", choices=[f.name for f in FIELDS], default=[])
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: PyTorch finds no CUDA GPU here", file=sys.stderr)
        return 2
    command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    settings = Settings(given.seed, "cuda", given.quick, command, tuple(given.only), name="gpu")
    text = ""
    with shown() as tell:
        for name, content in run(settings, tell):
            write(given.out / name, content)
            if name == "gpu.md":
                text = str(content)
        fields = choose(given.quick, given.only)
        rows = [row for field in fields for row in launches.measure(field, given.seed, "cuda")]
    write(given.out / "gpu.md", f"{text}\n{launches.part(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
