"""A measurement in a process of its own, which answers with JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def ask(module: str, words: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[dict[str, Any], str]:
    """What `python -m module words` prints last, and "", or nothing and why it failed, in one line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | dict(env or {}),
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {}, f"ended with code {done.returncode}: {last[:160]}"
    return json.loads(done.stdout.splitlines()[-1]), ""
