"""One lock for all that records or lowers a graph: TorchDynamo and Inductor serve one thread of a process at a time.

The C++ compiler runs outside of it (build.py), so one thread lowers while another waits for its library.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from .gc_pause import gc_paused

LOCK = threading.Lock()


@contextmanager
def compiling() -> Generator[None]:
    """Hold the lock, with garbage collection paused."""
    with gc_paused(), LOCK:
        yield
