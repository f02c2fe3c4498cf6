"""Training runs for tests: real processes that meet faults, and what they leave behind.

`ForkServer` is a process that has imported everything and forks a child for each command, so a run costs its training
and not the seconds of its imports. A fault is armed in the child: it acts at the n-th call that puts a file on the
disk.
"""

from __future__ import annotations

import csv
import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# As the installed program; signals as in a terminal, also where the tests were started with some of them ignored.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from odenet_command import main
main()
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: its exit code, or minus the signal that killed it. calls: of fsync and replace."""

    code: int
    out: str
    err: str
    calls: int = 0

    def one_line(self, *parts: str) -> None:
        """Exit code 2 and one line on stderr with these parts in it."""
        assert self.code == 2, (self.code, self.err)
        (line,) = [line for line in self.err.splitlines() if line]
        assert line.startswith("odenet: ") and all(part in line for part in parts), self.err


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(*words: object, cwd: Path | None = None) -> Ended:
    """A command in a process of its own, from the start."""
    done = subprocess.run(command(*words), capture_output=True, text=True, env=environment(), cwd=cwd, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


class ForkServer:
    """Forks the children. Use as a context."""

    def __enter__(self) -> ForkServer:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)

    def run(self, scratch: Path, *words: object, fault: str = "", at: int = 0) -> Ended:
        """Run `odenet words`; what it prints goes through files in `scratch`.

        fault, at the at-th call: "kill", "stop" (SIGTERM twice), or the name of an errno, for this call and all that
        follow it.
        """
        order = {"words": [str(w) for w in words], "scratch": str(scratch), "fault": fault, "at": at}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        texts = [(scratch / name).read_text() for name in ("out", "err")]
        return Ended(code, *texts, (scratch / "calls").stat().st_size)


def _arm(fault: str, at: int, log: int) -> None:
    """Have the at-th call meet the fault."""
    count = 0

    def wrapped(name: str) -> Any:
        call = getattr(os, name)

        def faulty(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            os.write(log, b"x")
            if fault == "kill" and count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "stop" and count == at:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            if fault.startswith("E") and count >= at:
                number = getattr(errno, fault)
                raise OSError(number, os.strerror(number))
            return call(*args, **options)

        return faulty

    for name in ("fsync", "replace"):
        setattr(os, name, wrapped(name))


def _child(order: dict[str, Any]) -> None:
    scratch = Path(order["scratch"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    log = os.open(scratch / "calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
    sys.argv = ["odenet", *order["words"]]
    _arm(order["fault"], order["at"], log)
    from odenet.train import cli

    code = 1
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def _serve() -> None:
    for module in ("lightning", "sklearn.datasets", "torch.utils.tensorboard", "odenet.train.images.compare"):
        importlib.import_module(module)
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.close(0)
            _child(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def checkpoint(path: Path) -> dict[str, Any]:
    """What is in a checkpoint, but the path of its folder."""
    state = torch.load(path, weights_only=True)
    del state["callbacks"][next(key for key in state["callbacks"] if key.startswith("ModelCheckpoint"))]
    return state


def equal(a: Any, b: Any) -> bool:
    """The same, bit by bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def table(path: Path) -> list[dict[str, str]]:
    """A CSV file but its measured times."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same(a: Path, b: Path) -> None:
    """Two finished runs, or comparisons, have the same checkpoints, weights, metrics and table, and no half a file."""
    runs = sorted(path.parent.relative_to(a) for path in a.rglob("model.safetensors"))
    assert runs and runs == sorted(path.parent.relative_to(b) for path in b.rglob("model.safetensors"))
    for each in runs:
        saved = sorted(path.name for path in (a / each / "checkpoints").iterdir())
        assert saved == sorted(path.name for path in (b / each / "checkpoints").iterdir())
        for name in saved:
            assert equal(checkpoint(a / each / "checkpoints" / name), checkpoint(b / each / "checkpoints" / name)), name
        for name in ("model.safetensors", "metrics.csv", "results.json", "settings.json"):
            assert (a / each / name).read_bytes() == (b / each / name).read_bytes(), name
    if (a / "results.csv").exists():
        assert table(a / "results.csv") == table(b / "results.csv")
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}
    assert not partial(b)


def partial(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


if __name__ == "__main__":
    _serve()
