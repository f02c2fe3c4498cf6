"""`gradient_report`: every gradient of one solve side by side: its error, evaluations, time and memory."""

from __future__ import annotations

import copy
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.leaves import in_working_precision, widened
from ..core.pytrees import flatten, tree_map
from ..core.reachable import find_reachable
from ..core.validate import describe, function, integer
from ..errors import SolveError
from ..gradients import GRADIENTS, Gradient, Reversible
from ..methods.reversible_method import ReversibleMethod
from . import checks
from .peak_memory import PeakMemory
from .solution import Solution
from .solve import solve

_FEW = 100  # numbers to differentiate by, up to which "forward" is in the default list


@dataclass(frozen=True)
class GradientRow:
    """One gradient. Errors are relative, the largest over y0, args and captured tensors; NaN where there is none.

    relative_error: against backpropagation in float64 through the same numerical solution (for `reversible` that of its
    method): what the gradient itself adds. true_error: against the solution at a tolerance of 1e-12: with the
    discretisation error. nfe, backward_nfe: evaluations of f (all samples together). seconds: of a forward and a
    backward pass, median. peak_bytes: tensors alive at most, beyond f's and the inputs'. note: why there is no number,
    or a warning.
    """

    gradient: str
    relative_error: float
    true_error: float
    nfe: int
    backward_nfe: int
    seconds: float
    peak_bytes: int
    note: str = ""


class GradientReport(list[GradientRow]):
    """The rows of a report; printed, it is a table."""

    def __str__(self) -> str:
        head = ["gradient", "relative error", "true error", "forward", "backward", "seconds", "peak memory", "note"]
        body = [
            [
                row.gradient,
                f"{row.relative_error:.1e}",
                f"{row.true_error:.1e}",
                str(row.nfe),
                str(row.backward_nfe),
                f"{row.seconds:.2g}",
                f"{row.peak_bytes / 2**20:.2f} MiB",
                row.note,
            ]
            for row in self
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = ["  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in [head, *body]]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__


def gradient_report(
    f: Callable[..., Any],
    y0: Any,
    ts: Any,
    loss: Callable[[Any], Tensor],
    *,
    gradients: Sequence[str | Gradient] | None = None,
    repeats: int = 3,
    **solve_options: Any,
) -> GradientReport:
    """Differentiate one solve in several ways, and compare them.

    f, y0, ts, solve_options: those of `solve` (without `gradient`). loss: the `Solution` -> a scalar; a loss that takes
    the states alone is given `sol.ys`. gradients: names and instances (default: all; "forward" where there are few
    inputs). repeats: timed passes of each. The gradients compared are those with respect to y0, to the tensors in args
    that require one, and to every tensor that f closes over.

    For the float64 reference f is called with float64 states: a `torch.nn.Module` is copied in float64, any other
    callable must be able to.

    >>> import torch, odenet
    >>> report = odenet.gradient_report(
    ...     lambda t, y: -y, torch.ones(2, dtype=torch.float64), [0.0, 1.0], lambda sol: sol.y1.sum(),
    ...     gradients=["discrete", "adjoint"],
    ... )
    >>> report[0].gradient, report[0].relative_error < 1e-12
    ('discrete', True)
    """
    if "gradient" in solve_options:
        raise TypeError("gradient_report compares gradients: give gradients=[...], not gradient=...")
    function("loss", loss, "loss(solution)")
    function("f", f, "f(t, y, *args)")
    integer("repeats", repeats)
    if gradients is not None and not isinstance(gradients, (list, tuple)):
        raise TypeError(f"gradients must be a list of names and Gradient instances; got {describe(gradients)}")
    checks.state(y0, False)
    case = Case(f, y0, ts, checks.arguments(solve_options.pop("args", ())), loss, solve_options)
    if gradients is None:
        few = sum(x.numel() for x in case.inputs) <= _FEW
        gradients = [name for name in GRADIENTS if name != "forward" or few]
    wide = case.in_float64()
    true = wide.tight()
    references: dict[Any, list[Tensor] | None] = {}
    rows = []
    for given in gradients:
        how = checks.gradient(given, "an entry of gradients")
        key = how.coupling if isinstance(how, Reversible) else None
        if key not in references:
            references[key] = wide.exact(how)
        rows.append(_row(case, given, how, references[key], true, repeats))
    return GradientReport(rows)


def _row(
    case: Case,
    given: str | Gradient,
    how: Gradient,
    reference: list[Tensor] | None,
    true: list[Tensor] | None,
    repeats: int,
) -> GradientRow:
    name = given if isinstance(given, str) else repr(given) if "object at" not in repr(given) else how.name
    nan = float("nan")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            grads, sol = case.differentiate(how)
        except SolveError as error:
            return GradientRow(name, nan, nan, 0, 0, nan, 0, str(error))
        nfe, backward = (int(torch.as_tensor(sol.stats[k]).sum()) for k in ("nfe", "backward_nfe"))
        del sol
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            case.differentiate(how)
            seconds.append(time.perf_counter() - start)
        with PeakMemory() as memory:
            memory.exclude(case.inputs)
            case.differentiate(how)
    note = "; ".join(dict.fromkeys(str(w.message) for w in caught))
    errors = _error(grads, reference), _error(grads, true)
    return GradientRow(name, *errors, nfe, backward, statistics.median(seconds), memory.peak, note)


def _error(found: list[Tensor], reference: list[Tensor] | None) -> float:
    """The largest relative error of an input's gradient; one that is tiny against the others counts against them."""
    if reference is None:
        return float("nan")
    norms = [float(torch.linalg.vector_norm(r)) for r in reference]
    floor = max(norms) * 1e-12 or 1.0
    misses = [float(torch.linalg.vector_norm(a.to(r.dtype) - r)) for a, r in zip(found, reference, strict=True)]
    return max(miss / max(norm, floor) for miss, norm in zip(misses, norms, strict=True))


class Case:
    """One solve and its loss, and what to differentiate by."""

    def __init__(
        self, f: Any, y0: Any, ts: Any, args: tuple[Any, ...], loss: Callable[[Any], Tensor], options: dict[str, Any]
    ) -> None:
        self.f, self.ts, self.loss, self.options = f, ts, loss, options
        self.y0 = tree_map(lambda x: x.detach().clone().requires_grad_() if isinstance(x, Tensor) else x, y0)
        self.args = tree_map(_leaf, args)
        tensors = [x for x in flatten((self.y0, self.args))[0] if isinstance(x, Tensor) and x.requires_grad]
        known, found = {id(x) for x in tensors}, find_reachable(f)
        captured = [x for _, x in (*found.leaves.values(), *found.computed.values())]
        self.inputs = tensors + [x for x in captured if id(x) not in known]

    def in_float64(self) -> Case:
        y0, args = tree_map(_doubled, self.y0), tree_map(_doubled, self.args)
        return Case(_double(self.f), y0, self.ts, args, self.loss, self.options)

    def differentiate(self, gradient: str | Gradient, **changes: Any) -> tuple[list[Tensor], Solution]:
        sol = solve(self.f, self.y0, self.ts, args=self.args, gradient=gradient, **self.options | changes)
        grads = torch.autograd.grad(self._value(sol), self.inputs, allow_unused=True)
        zeros = (torch.zeros_like(x) if g is None else g for g, x in zip(grads, self.inputs, strict=True))
        return list(zeros), sol

    def _value(self, sol: Solution) -> Tensor:
        try:
            value = self.loss(sol)
        except (TypeError, AttributeError) as wrong:
            try:
                value = self.loss(sol.ys)
            except Exception:
                raise wrong from None
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError(f"loss must return a scalar tensor; got {value!r}")
        return value

    def gradients_or_none(self, gradient: str, **changes: Any) -> list[Tensor] | None:
        """The gradients alone; None where the solve fails."""
        try:
            return self.differentiate(gradient, **changes)[0]
        except SolveError:
            return None

    def exact(self, how: Gradient) -> list[Tensor] | None:
        """By backpropagation through the numerical solution that `how` differentiates; None where the solve fails."""
        changes = {}
        if isinstance(how, Reversible):
            base = checks.method(self.options.get("method", "tsit5"))
            changes = {"method": ReversibleMethod(base, how.coupling)}
        return self.gradients_or_none("backprop", **changes)

    def tight(self) -> list[Tensor] | None:
        """Of the solution at a tolerance of 1e-12; None where that solve fails."""
        given = self.options.get("controller")
        jumps = None if given is None else given.jump_ts
        changes = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12, "step": None, "max_steps": 1_000_000}
        changes["controller"] = None if jumps is None else checks.PID(jump_ts=jumps)
        return self.gradients_or_none("discrete", **changes)


def _leaf(x: Any) -> Any:
    return x.detach().clone().requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x


def _doubled(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    (working,) = in_working_precision([x])
    wide = widened(working)
    return x if wide is x else wide.detach().requires_grad_(x.requires_grad)


def _double(f: Any) -> Any:
    """f in float64, where it holds its parameters in a way that can be copied."""
    if isinstance(f, nn.Module):
        return copy.deepcopy(f).double()
    if isinstance(f, functools.partial):
        return functools.partial(_double(f.func), *tree_map(_doubled, f.args), **tree_map(_doubled, f.keywords))
    return f
