"""A process whose children die: it ends, unless it needs them no more, whether or not anybody reads its last words."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from odenet.train import children

PROGRAM = f"""
import subprocess, sys, time
from odenet.train import children, interrupt
children.GRACE = 1.0
child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
with interrupt.stoppable():
    children.look_after([child])
    with children.needed(lambda: "lost"):
        child.wait()
        time.sleep(float(sys.argv[1]))
    time.sleep({children.GRACE})
    print("finished")
"""


def run(seconds: float, stderr: int) -> tuple[int, str, str]:
    words = [sys.executable, "-c", PROGRAM, str(seconds)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True) as program:
        out, err = program.communicate(timeout=60)
    return program.returncode, out, err or ""


def test_a_child_that_is_needed() -> None:
    assert run(60, subprocess.PIPE) == (2, "", "odenet: lost\n")


def test_a_child_that_is_needed_no_more() -> None:
    assert run(0.3, subprocess.PIPE) == (0, "finished\n", "")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(60, writer)[0] == 2
    finally:
        os.close(writer)


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        taken.bind(("::", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [sys.executable, "-m", "odenet.train.cli", "train", "odenet", "--quick", "--devices", "2"]
        program = subprocess.run(
            [*words, "--out", str(tmp_path)], env=os.environ | {"MASTER_PORT": port}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
    assert program.returncode == 2
    assert f"odenet: MASTER_PORT={port} is in use by another program: choose another port" in program.stderr
