"""The program `odenet`. A package of its own, so that it is at work before `import odenet` loads torch."""

from __future__ import annotations

import os
import signal
from types import FrameType


def _leave(signum: int, frame: FrameType | None) -> None:
    if all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        os.write(2, b"odenet: interrupted\n")  # the first of several processes says it for all
    os._exit(128 + signum)


def main() -> None:
    """Run the command line. Ctrl-C ends it in one line also in the seconds of its imports, when no file is open yet."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _leave)
    if os.name != "nt":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # blocked by a first process that started this one
    from odenet.train import cli

    cli.main()
