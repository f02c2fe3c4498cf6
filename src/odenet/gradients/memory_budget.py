"""The number of checkpoints that fit into a given amount of memory."""

from __future__ import annotations

import re
from numbers import Integral

from ..core.leaves import Leaves
from ..engine.problem import Problem

_UNITS = {"": 1, "b": 1} | {
    name: base**power
    for power, letter in enumerate("kmgt", 1)
    for name, base in ((f"{letter}b", 1000), (f"{letter}ib", 1024), (letter, 1024))
}


def parse_bytes(value: object) -> int:
    """Bytes from a number, or from text with a unit: "256MiB", "1.5 GB"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", value.lower())
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"memory must be bytes, or text such as '256MiB' or '1GB'; got {value!r}")
        amount = int(float(match[1]) * _UNITS[match[2]])
    elif isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"memory must be bytes, or text such as '256MiB'; got {type(value).__name__} {value!r}")
    else:
        amount = int(value)
    if amount < 1:
        raise ValueError(f"memory must be positive; got {value!r}")
    return amount


def nbytes(leaves: Leaves) -> int:
    return sum(x.numel() * x.element_size() for x in leaves)


def checkpoints_within(memory: int, p: Problem) -> int:
    """The number of checkpoints that fit into `memory` bytes beside one step.

    One step is assumed to need four states a stage (the state that f starts from, one intermediate result of f, and the
    cotangents of both) and four for its initial and final state; the true size of f's graph is unknown.
    """
    state = nbytes(p.y0)
    per_checkpoint = state if p.method.carry_is_slope else 2 * state
    if memory < per_checkpoint:
        raise ValueError(
            f"memory of {memory} bytes holds no state of {per_checkpoint} bytes: use more, or gradient='reversible' "
            "or 'adjoint', which store no states"
        )
    step_bytes = 4 * state * (p.method.num_stages + 1)
    return max(1, (memory - step_bytes) // per_checkpoint)
