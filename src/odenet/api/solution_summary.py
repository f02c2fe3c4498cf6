"""`repr` and `str` of a solution: shapes, times, steps and status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.pytrees import flatten_with_names
from ..core.status import Status
from ..core.torch_func import outside_transforms, unwrapped

if TYPE_CHECKING:
    from .solution import Solution

_MAX_LEAVES = 4  # leaves of a state that are listed


def one_line(x: Solution) -> str:
    """`repr`: one line."""
    steps = f"{_range(x.stats['accepted'])} steps"
    return f"Solution({_state(x.y1)}, t {_times(x)}, {_status(x.status)}, {steps})"


def several_lines(x: Solution, problem: str) -> str:
    """`str`: a few lines. problem: equation and method as text, or empty."""
    samples = f" for {len(x.t1)} samples" if x.t1.ndim == 1 else ""
    counts = {k: _range(x.stats[k]) for k in ("accepted", "rejected", "nfe", "backward_nfe")}
    out = [
        f"Solution{' of ' if problem else ''}{problem}{samples}",
        f"  state: {_state(x.y1)}",
        f"  t: {_times(x)}; {x.ts.shape[-1]} output times",
        f"  steps: {counts['accepted']} accepted, {counts['rejected']} rejected",
        f"  evaluations of f: {counts['nfe']}, in the last backward pass {counts['backward_nfe']}",
        f"  status: {_status(x.status)}",
    ]
    if x.hits is not None:
        which = torch.as_tensor(x.hits.which)
        out.append(f"  events: {_range((which >= 0).sum(-1))}")
    return "\n".join(out)


def _state(y: Any) -> str:
    pairs = flatten_with_names(y)
    listed = pairs[:_MAX_LEAVES]
    texts = [f"y{name} {tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}" for name, leaf in listed]
    return ", ".join(texts) + (f" and {len(pairs) - _MAX_LEAVES} more" if len(pairs) > _MAX_LEAVES else "")


def _times(x: Solution) -> str:
    start, end = x.ts[..., 0], x.ts[..., -1]
    unfinished = "" if _values(end) == _values(x.t1) else f" of {_range(end)}"
    return f"from {_range(start)} to {_range(x.t1)}{unfinished}"


def _status(status: Status | Tensor) -> str:
    codes = _values(status)
    names = {int(code): Status(int(code)).name for code in codes}
    if len(codes) == 1:
        return names[int(codes[0])]
    count = {code: sum(int(c) == code for c in codes) for code in sorted(names)}
    return ", ".join(f"{n} {names[code]}" for code, n in count.items())


def _range(x: Any) -> str:
    """A number; for samples with different numbers "smallest to largest"."""
    values = _values(x)
    low, high = min(values), max(values)
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def _values(x: Any) -> list[float]:
    """The entries as numbers, of all vmapped samples."""
    if not isinstance(x, Tensor):
        return [x]
    with outside_transforms():
        return unwrapped(x).detach().reshape(-1).tolist()
