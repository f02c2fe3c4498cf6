"""Ctrl-C, SIGTERM and SIGHUP end the command at once, in one line; every file is whole."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType

from .processes import supervised

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received: list[int] = []
_runs: list[Path] = []
_PARENT = os.getppid()


class Stopped(BaseException):
    """The command was told to stop. Not a KeyboardInterrupt, for which Lightning and Typer have ends of their own."""


def _stop(signum: int, frame: FrameType | None) -> None:
    _received.append(signum)
    raise Stopped


def install() -> None:
    """Have the signals raise `Stopped`; one that the caller of the program ignores stays ignored."""
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        for signum in _SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, _stop)


def ignore() -> None:
    """Let the end of the command not be disturbed by a further signal."""
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def received() -> int | None:
    """The signal that is ending this command; an exception that left C code may have lost the type `Stopped`."""
    return _received[0] if _received else None


def speak_of(settings: Path) -> None:
    """The command is of a run, which --resume can take up once this file is there."""
    _runs.append(settings)


def line() -> str:
    """What is said of an interruption."""
    if _runs and _runs[-1].exists():
        return "interrupted; every file is whole, the training goes on with --resume"
    return "interrupted"


def supervisor() -> int | None:
    """The process that started this one as one of several, and looks after it."""
    return _PARENT if supervised() else None
