"""Training runs for tests: real processes that meet faults, and what they leave behind.

`Nursery` is a process that has imported everything and forks a child for each command, so a run costs its training and
not three seconds of imports. A fault is armed in the child: it acts at the n-th call of the system for a file.
"""

from __future__ import annotations

import csv
import errno
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_TIMES = ("seconds_step", "seconds")
_CALLS = ("open", "write", "fsync", "replace")


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: its exit code, or minus the signal that killed it. calls: file calls it made."""

    code: int
    out: str
    err: str
    calls: int

    def one_line(self, *parts: str) -> None:
        """Exit code 2 and one line on stderr with these parts in it."""
        assert self.code == 2, (self.code, self.err)
        lines = [line for line in self.err.splitlines() if line]
        assert len(lines) == 1 and lines[0].startswith("odenet: ") and "Traceback" not in self.err, self.err
        for part in parts:
            assert part in lines[0], self.err


# As the installed program; signals as in a terminal, also where the tests were started with some of them ignored.
_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from odenet_command import main
main()
"""


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", _PROGRAM, *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(*words: object, cwd: Path | None = None) -> Ended:
    """A command in a process of its own, from the start."""
    done = subprocess.run(command(*words), capture_output=True, text=True, env=environment(), cwd=cwd, check=False)
    return Ended(done.returncode, done.stdout, done.stderr, 0)


class Nursery:
    """Forks the children. Use as a context."""

    def __enter__(self) -> Nursery:
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

        fault, at the at-th file call: "kill", "stop" (SIGTERM twice), the name of an errno, for this call and all that
        follow it, or "remove PATH".
        """
        order = {"words": [str(w) for w in words], "scratch": str(scratch), "fault": fault, "at": at}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        calls = (scratch / "calls").stat().st_size
        return Ended(code, (scratch / "out").read_text(), (scratch / "err").read_text(), calls)


def _arm(fault: str, at: int, log: int) -> None:
    """Have the at-th call for a file meet the fault."""
    count = 0
    really = os.write

    def wrapped(name: str) -> Any:
        call = getattr(os, name)

        def faulty(*args: Any, **options: Any) -> Any:
            nonlocal count
            if name == "write" and args[0] <= 2:  # the terminal
                return call(*args, **options)
            count += 1
            really(log, b"x")
            if fault == "kill" and count == at:
                if name == "write":
                    really(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "stop" and count == at:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            if fault.startswith("remove ") and count == at:
                shutil.rmtree(fault.removeprefix("remove "))
            if fault.startswith("E") and count >= at:
                number = getattr(errno, fault)
                raise OSError(number, os.strerror(number))
            return call(*args, **options)

        return faulty

    for name in _CALLS:
        setattr(os, name, wrapped(name))


def _child(order: dict[str, Any]) -> None:
    scratch = Path(order["scratch"])
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    log = os.open(scratch / "calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
    sys.argv = ["odenet", *order["words"]]
    _arm(order["fault"], order["at"], log)
    from odenet.train import cli

    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    os._exit(code)


def _serve() -> None:
    for module in ("lightning", "sklearn.datasets", "sklearn.model_selection", "torch.utils.tensorboard"):
        importlib.import_module(module)
    importlib.import_module("odenet.train.compare")
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.close(0)
            _child(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def checkpoint(path: Path) -> dict[str, Any]:
    """All that is in a checkpoint but times."""
    state = torch.load(path, weights_only=True)
    for row in state["callbacks"]["History"]["rows"]:
        row.pop("seconds_step")
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
    """A CSV file but its times."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in _TIMES} for row in csv.DictReader(file)]


def assert_same(a: Path, b: Path) -> None:
    """Two finished runs have the same checkpoints, metrics and table, and no file that is half written."""
    names = sorted(p.name for p in a.iterdir() if p.is_dir())
    assert names and names == sorted(p.name for p in b.iterdir() if p.is_dir())
    for name in names:
        assert equal(checkpoint(a / name / "last.ckpt"), checkpoint(b / name / "last.ckpt")), name
        assert table(a / name / "metrics.csv") == table(b / name / "metrics.csv")
    assert table(a / "results.csv") == table(b / "results.csv")
    assert (a / "settings.json").read_bytes() == (b / "settings.json").read_bytes()
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}
    assert not partial(b)


def partial(folder: Path) -> list[Path]:
    return list(folder.rglob("*partial*"))


if __name__ == "__main__":
    _serve()
