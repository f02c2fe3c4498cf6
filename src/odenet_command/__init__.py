"""The program `odenet`. A package of its own, so that it is at work before `import odenet` loads torch."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    """End the process. A KeyboardInterrupt would not do: C++ code that imports a module may drop it."""
    os.write(2, b"odenet: interrupted\n")
    os._exit(130)


def main() -> None:
    """Run the command line; Ctrl-C ends it in one line also in the seconds of its imports."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as under nohup
    try:
        if default:
            signal.signal(signal.SIGINT, _end)
        from odenet.train.cli import main as run
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("odenet", "torch"):
            raise
        print(f'odenet: {error.name} is missing: pip install "torch-odenet[train]"', file=sys.stderr)
        sys.exit(2)
    finally:
        if default:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
