"""The further processes that this one has started: they end when it does, and it does not outlive one that died.

A call into a library may wait for the other processes for many minutes, and no exception can end it before. So a thread
looks on, and ends the program if the main thread does not.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from . import interrupt

GRACE = 3.0  # seconds for the main thread, or for a process that was told to stop, to end by itself
_PERIOD = 0.1


class _Family:
    """together: whether this process has ever been one of several. lost: what to say if one dies; None: nothing now."""

    def __init__(self) -> None:
        self.together = False
        self.lost: Callable[[], str] | None = None
        self.started: Sequence[subprocess.Popen[Any]] = ()
        self.ending = threading.Lock()

    def watch(self, woken: socket.socket) -> None:
        while True:
            ready, _, _ = select.select([woken], [], [], _PERIOD)
            came = [n for n in (woken.recv(64) if ready else b"") if n in interrupt.signals()]
            dead = self.dead()
            lost = self.lost
            if not came and dead and lost is not None:
                came = [n for n in dead if n in interrupt.signals()]
                if came:
                    os.kill(os.getpid(), came[0])  # who stops one of them stops the run
            if came:
                self.end()
                _wait(lambda: True)
                _leave(128 + came[0], interrupt.line)
            elif dead and lost is not None and _wait(lambda lost=lost: self.lost is lost):
                self.end()
                _leave(2, lambda lost=lost: f"odenet: {lost()}")

    def dead(self) -> list[int]:
        """Of each process that did not end well: the signal that it ended by, or 0."""
        codes = [process.poll() for process in self.started]
        return [-c if c < 0 else max(c - 128, 0) for c in codes if c]

    def end(self) -> None:
        with self.ending:
            running = [process for process in self.started if process.poll() is None]
            for process in running:
                process.terminate()  # SIGTERM also after Ctrl-C: it is silent, whatever the process is at
            deadline = time.monotonic() + GRACE
            for process in running:
                try:
                    process.wait(max(deadline - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


_family = _Family()


def _wait(wanted: Callable[[], bool]) -> bool:
    """Give the main thread time to end the program; a change on disk is still brought to its end.

    Gives whether the end is wanted still.
    """
    deadline = time.monotonic() + GRACE
    while wanted() and (time.monotonic() < deadline or interrupt.holding()):
        time.sleep(_PERIOD)
    return wanted()


def _leave(status: int, line: Callable[[], str]) -> NoReturn:
    """End the program in place of the main thread, which may hold the lock of stdout."""
    try:
        interrupt.say(line())
    finally:
        os._exit(status)


def look_after(started: Sequence[subprocess.Popen[Any]]) -> None:
    """These processes were started for this run."""
    _family.started = started
    if threading.current_thread() is not threading.main_thread() or not interrupt.at_work():
        return
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.detach(), warn_on_full_buffer=False)  # written to also while the main thread waits
    threading.Thread(target=_family.watch, args=(woken,), daemon=True, name="odenet-children").start()


def one_of_several() -> None:
    """This process takes part in a run of several."""
    _family.together = True


@contextmanager
def needed(lost: Callable[[], str]) -> Iterator[None]:
    """One that dies meanwhile ends the run. lost: what is said then."""
    _family.lost = lost
    try:
        yield
    finally:
        _family.lost = None


def end() -> None:
    """End them, before they see this process go and take that for a fault."""
    _family.end()


def leave(status: int) -> NoReturn:
    """Exit; at once where threads of a process group would be torn down in the middle of an exchange."""
    if _family.together:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # its reader may be gone
                stream.flush()
        os._exit(status)
    sys.exit(status)
