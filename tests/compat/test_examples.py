"""The programs of examples/torchdiffeq, unmodified, say the same under torchdiffeq and under the drop-in."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchdiffeq")
DROP_IN = "odenet.compat.torchdiffeq"
if importlib.util.find_spec(DROP_IN) is None or importlib.util.find_spec(f"{DROP_IN}.__main__") is None:
    pytest.skip(f"{DROP_IN} cannot be run", allow_module_level=True)

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples" / "torchdiffeq").glob("*.py"))

# Program, relative tolerance of one solve, and by what fraction of what the training changed may two trainings differ.
#
# Both packages are right to the program's rtol, so a solve may differ by a few of it, and by what float32 rounds: 1e-7
# in each of some hundred steps, where the program asks for less (the spiral asks for 1e-7). A gradient with a relative
# error of e turns the direction of a step by e, so that after a few steps two trainings differ by a small multiple of e
# times what they changed. e is the tolerance of a backward solve, too, but only where cotangents are above its atol:
# torchdiffeq's is absolute, and cotangents of a mean over a batch are about 1 / batch. So its classifier by the adjoint
# method is compared loosely: with --no-adjoint, where both differentiate what they computed, both agree.
QUICK = [
    ("spiral.py --iterations 10", 1e-5, 1e-4),
    ("bouncing_ball.py --iterations 2", 1e-4, 1e-4),
    ("cnf.py --iterations 5", 1e-4, 1e-3),
    ("latent_ode.py --iterations 5", 1e-4, 5e-3),
    ("mnist.py --iterations 8 --tol 1e-4 --no-adjoint", 1e-4, 1e-2),
]
LONGER = [
    ("spiral.py --iterations 10 --adjoint", 1e-5, 1e-4),
    ("spiral.py --iterations 10 --method rk4", 1e-5, 1e-4),
    ("bouncing_ball.py --iterations 2 --adjoint", 1e-4, 1e-2),  # measured: 5e-3; ours is that of --no-adjoint
    ("cnf.py --iterations 10 --data circles", 1e-4, 1e-2),
    ("cnf.py --iterations 10 --no-adjoint", 1e-4, 1e-2),
    ("latent_ode.py --iterations 5 --points 20 --adjoint", 1e-4, 1e-2),
    ("mnist.py --iterations 8 --tol 1e-4", 1e-4, 0.2),  # measured: 0.08, two thirds of it torchdiffeq's
]


def result(program: str, *launcher: str) -> dict[str, Any]:
    """What the program's last line says; that it ended well and warned of nothing."""
    name, *words = program.split()
    command = [sys.executable, *launcher, f"examples/torchdiffeq/{name}", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    last = done.stdout.splitlines()[-1]
    assert last.startswith("RESULT ")
    return json.loads(last.removeprefix("RESULT "))


@pytest.mark.parametrize(
    ("program", "of_solve", "of_training"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONGER)],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_the_same_program_says_the_same(program: str, of_solve: float, of_training: float) -> None:
    with ThreadPoolExecutor() as both:
        theirs, ours = both.map(lambda launcher: result(program, *launcher), [(), ("-m", DROP_IN)])
    assert ours.keys() == theirs.keys()
    assert ours["loss_before"] == pytest.approx(theirs["loss_before"], rel=of_solve)
    progress = abs(theirs["loss"] - theirs["loss_before"])
    assert progress > 1e-3 * theirs["loss_before"]
    allowed = of_training * progress + of_solve * theirs["loss"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0, abs=allowed)
    for key in ("times", "gravity", "restitution", "velocity"):  # the ball's
        if key in theirs:
            assert ours[key] == pytest.approx(theirs[key], rel=of_training)


@pytest.mark.slow
def test_the_learned_ball_is_the_true_one() -> None:
    """The drop-in alone, to convergence: gradients of event times lead to the parameters of the closed form."""
    found = result("bouncing_ball.py --adjoint", "-m", DROP_IN)
    assert found["loss"] < 1e-7
    for key, true in {"gravity": 9.8, "restitution": 0.8, "velocity": 3.0}.items():
        assert math.isclose(found[key], true, rel_tol=2e-3)


def test_every_program_is_run() -> None:
    assert sorted({program.split()[0] for program, *_ in QUICK}) == EXAMPLES
