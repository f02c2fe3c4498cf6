"""The command line: `python -m benchmarks NAME`."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import torch

from .shared.tables import Settings

# each with the options that it takes
BENCHMARKS = {
    "gradients": ("memory, exactness, time and recomputation of every gradient", {"seed", "device", "quick"}),
    "peers": ("odenet beside torchdiffeq, torchode, diffrax and SciPy", {"seed", "device", "quick", "only"}),
    "precision": ("error against evaluations and time, of every method", {"quick"}),
    "front": ("what a solve costs beside f", {"quick"}),
    "stiff": ("work and precision on stiff problems, beside SciPy and diffrax", {"only"}),
    "flows": ("continuous flows: densities, couplings, samplers, speed, gradients, tables", {"quick", "only"}),
    "series": (
        "models of series at irregular times: speed, batching, predictions, classes, motions, spirals",
        {"quick", "only", "data"},
    ),
    "gpu": ("the benchmark peers on a GPU, and kernel launches", {"seed", "quick", "only"}),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; --help lists what there is", file=sys.stderr)
        sys.exit(2)


def _choices(name: str) -> tuple[str, ...]:
    """Return the values of --only."""
    if name == "stiff":
        from .stiff.run_stiff import NAMES

        return NAMES
    if name == "flows":
        from .flows.run_flows import PARTS

        return tuple(PARTS)
    if name == "series":
        from .series.run_series import PARTS

        return tuple(PARTS)
    from .libraries.problems import FIELDS

    return tuple(field.name for field in FIELDS)


def _parser() -> _Parser:
    parser = _Parser(prog="python -m benchmarks", description="Benchmarks of odenet. Each has a --help of its own.")
    commands = parser.add_subparsers(dest="name", metavar="NAME")
    for name, (text, options) in BENCHMARKS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the results (%(default)s)")
        if "seed" in options:
            command.add_argument("--seed", type=int, default=0, help="seed of weights and states (%(default)s)")
        if "device" in options:
            command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device (%(default)s)")
        if "quick" in options:
            command.add_argument("--quick", action="store_true", help="a smoke run whose numbers mean nothing")
        if "data" in options:
            command.add_argument("--data-dir", default="", help="folder of data that no package brings: .ts files")
        if "only" in options:
            command.add_argument("--only", action="append", default=[], help="one problem or part; may be given again")
    return parser


def main(words: list[str] | None = None) -> int:
    """Run a benchmark, and print its files; without a name, print the benchmarks."""
    words = sys.argv[1:] if words is None else words
    parser = _parser()
    given = parser.parse_args(words)
    if given.name is None:
        parser.print_help()
        return 0
    only = getattr(given, "only", [])
    for wrong in [one for one in only if one not in _choices(given.name)]:
        close = difflib.get_close_matches(wrong, _choices(given.name), 1)
        parser.error(f"--only {wrong}: {f'did you mean {close[0]}?' if close else 'no such problem'}")
    device = "cuda" if given.name == "gpu" else getattr(given, "device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        cure = "the benchmark peers" if given.name == "gpu" else "--device cpu"
        parser.error(f"{given.name} needs a CUDA GPU, and PyTorch finds none: use {cure}")
    command = shlex.join(["python", "-m", "benchmarks", *words])
    settings = Settings(
        command,
        getattr(given, "seed", 0),
        device,
        getattr(given, "quick", False),
        tuple(only),
        getattr(given, "data_dir", ""),
    )
    run = import_module(f".{given.name}.run_{given.name}", __package__).run
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {given.out}: {error.strerror}; choose another folder")
    files: dict[Path, None] = {}
    for name, content in run(settings):
        (given.out / name).write_bytes(content.encode() if isinstance(content, str) else content)
        files[given.out / name] = None
    print("Wrote:", *files, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
