"""The learned sampler of examples/: far nearer to the flow than the method it begins from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "bespoke_sampler.py"


@pytest.mark.slow
def test_a_learned_sampler_beats_the_rule_it_began_as() -> None:
    command = [sys.executable, str(EXAMPLE), "--flow-iterations", "400", "--iterations", "150", "--steps", "4"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # two of them wait for each other on a busy machine
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250, env=one_thread).stdout
    errors = json.loads(out.rpartition("RESULT ")[2])
    assert errors["bespoke"] < 0.5 * errors["midpoint"] and errors["bespoke"] < errors["euler"]
