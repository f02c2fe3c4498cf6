"""Ctrl-C, SIGTERM and SIGHUP: the command ends at once, but never between two halves of a change on disk."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from . import lock

_QUIET = 5.0  # seconds in which a further signal is taken for an impatient second Ctrl-C, and ignored


class Stopped(BaseException):
    """The command was told to stop.

    Not a KeyboardInterrupt, for which Lightning and typer have ends of their own. signum: by which signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Signals:
    """What came in. depth: of `held`. waiting: a signal that came in meanwhile. out: the folder of the run."""

    def __init__(self) -> None:
        self.out: Path | None = None
        self.said = self.at_work = False
        self.saying = threading.Lock()
        self.depth = 0
        self.waiting: int | None = None
        self.seen: tuple[int, float] | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if self.recent() is not None:
            return
        if self.depth:
            self.waiting = signum
            return
        self.stop(signum)

    def stop(self, signum: int) -> None:
        self.waiting, self.seen = None, (signum, time.monotonic())
        raise Stopped(signum)

    def recent(self) -> int | None:
        """The signal that is being handled."""
        return self.seen[0] if self.seen and time.monotonic() - self.seen[1] < _QUIET else None


_signals = _Signals()


@contextmanager
def held() -> Iterator[None]:
    """A signal that comes in meanwhile takes effect at the end."""
    _signals.depth += 1
    try:
        yield
    finally:
        _signals.depth -= 1
        if not _signals.depth and _signals.waiting is not None:
            _signals.stop(_signals.waiting)


def holding() -> bool:
    """Whether a change on disk is half made."""
    return _signals.depth > 0


def signals() -> list[int]:
    """Those that stop a command. SIGHUP: a terminal that is closed; Windows has none."""
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def at_work() -> bool:
    """Whether this is within `stoppable`."""
    return _signals.at_work


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Python programs that are started meanwhile meet no Ctrl-C until they have come to `stoppable`."""
    if os.name == "nt":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_in(out: Path) -> None:
    """The run of this command is in the folder `out`."""
    _signals.out = out


def line() -> str:
    """What is said of an interruption."""
    if _signals.out is not None and lock.begun(_signals.out):
        return "odenet: interrupted; every file is whole, a training run goes on with --resume"
    return "odenet: interrupted"


def say(words: str) -> None:
    """The last words of this command, on stderr; only the first are said."""
    with _signals.saying:
        if not _signals.said:
            _signals.said = True
            with suppress(OSError, ValueError):  # its reader, or the terminal, may be gone
                print(words, file=sys.stderr, flush=True)


def stopped() -> int | None:
    """The signal that is ending this command.

    An exception that left C code may have another type than the `Stopped` that was raised in it.
    """
    return _signals.recent()


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `Stopped` inside, once; a second one, while the first is handled, does nothing.

    For a program's whole work: after one of them all stay ignored, until the process has ended.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    _signals.__init__()
    _signals.at_work = True
    before = {s: signal.signal(s, _signals.handle) for s in signals() if signal.getsignal(s) is not signal.SIG_IGN}
    if os.name != "nt":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # of `without_ctrl_c`
    hook = sys.unraisablehook

    def again(given: Any) -> None:
        """A finaliser or a callback swallowed the exception: send the signal once more, from outside of it."""
        if not issubclass(given.exc_type, Stopped):
            hook(given)
            return
        _signals.seen = None
        threading.Timer(0.02, signal.raise_signal, (given.exc_value.signum,)).start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        _signals.at_work = False
        sys.unraisablehook = hook
        for signum, handler in before.items():  # stopped: the process ends, and no further signal is to disturb that
            signal.signal(signum, handler if _signals.recent() is None else signal.SIG_IGN)
