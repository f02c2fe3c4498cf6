"""`gradient_report`: compares gradients of one solve by error, evaluations, time and memory."""

from __future__ import annotations

import copy
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from ..control import PID
from ..core.field_protocols import UserField
from ..core.leaves import in_working_precision, widened
from ..core.pytrees import flatten, tree_map
from ..core.reachable import find_reachable
from ..core.validate import describe, function, integer
from ..errors import SolveError
from ..gradients import GRADIENTS, Gradient, Reversible
from ..methods.reversible_method import ReversibleMethod
from . import checks, state_checks
from .option_types import GradientName, SolveOptions
from .peak_memory import PeakMemory
from .solution import Solution
from .solve import solve

_MAX_FORWARD_INPUTS = 100  # with more scalar inputs, "forward" is not in the default list


@dataclass(frozen=True)
class GradientRow:
    """The results of one gradient. Errors are the largest relative errors over y0, args and captured tensors, or NaN.

    relative_error: difference from backpropagation in float64 through the same numerical solution (for `reversible`,
        through the solution of its method): the error of the gradient alone.
    true_error: difference from the gradient of a solve with tolerance 1e-12: includes the discretisation error.
    nfe, backward_nfe: evaluations of f, summed over samples.
    seconds: median time of a forward and a backward pass.
    peak_bytes: peak memory of tensors, without those of f and the inputs.
    note: the error of a failed solve, or warnings.
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
    """A list of `GradientRow`; it prints as a table."""

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
    f: UserField,
    y0: Any,
    ts: Any,
    loss: Callable[[Any], Tensor],
    *,
    gradients: Sequence[GradientName | Gradient] | None = None,
    repeats: int = 3,
    args: tuple[Any, ...] = (),
    **solve_options: Unpack[SolveOptions],
) -> GradientReport:
    """Compare several gradients of one solve: of a loss with respect to y0, tensors in args, and captured tensors.

    f, y0, ts, args, solve_options: as for `solve`, without `gradient`. loss: a function of the `Solution` that returns
    a scalar; a function of the states alone gets `sol.ys`. gradients: names and instances (default: all, "forward" only
    for few inputs). repeats: timed passes of each. Gradients are compared for tensors in args that require one.

    The reference calls f with float64 states: a `torch.nn.Module` is copied to float64, any other f must accept them.

    Raises TypeError or ValueError for a wrong argument; a gradient whose solve fails has a row with the error.

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
    state_checks.state(y0, False)
    case = Case(f, y0, ts, checks.arguments(args), loss, solve_options)
    if gradients is None:
        few = sum(x.numel() for x in case.inputs) <= _MAX_FORWARD_INPUTS
        gradients = [cast(GradientName, name) for name in GRADIENTS if name != "forward" or few]
    float64_case = case.in_float64()
    true = float64_case.accurate_gradients()
    references: dict[float | None, list[Tensor] | None] = {}
    rows: list[GradientRow] = []
    for name_or_gradient in gradients:
        gradient = checks.gradient(name_or_gradient, "an entry of gradients")
        coupling = gradient.coupling if isinstance(gradient, Reversible) else None
        if coupling not in references:
            references[coupling] = float64_case.discrete_gradients(gradient)
        label = name_or_gradient if isinstance(name_or_gradient, str) else repr(gradient)
        rows.append(_row(case, label, gradient, references[coupling], true, repeats))
    return GradientReport(rows)


def _row(
    case: Case,
    name: str,
    gradient: Gradient,
    reference: list[Tensor] | None,
    true: list[Tensor] | None,
    repeats: int,
) -> GradientRow:
    nan = float("nan")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            grads, sol = case.differentiate(gradient)
        except SolveError as error:
            return GradientRow(name, nan, nan, 0, 0, nan, 0, str(error))
        nfe, backward = (int(torch.as_tensor(sol.stats[k]).sum()) for k in ("nfe", "backward_nfe"))
        del sol
        seconds: list[float] = []
        for _ in range(repeats):
            start = time.perf_counter()
            case.differentiate(gradient)
            seconds.append(time.perf_counter() - start)
        with PeakMemory() as memory:
            memory.exclude(case.inputs)
            case.differentiate(gradient)
    note = "; ".join(dict.fromkeys(str(w.message) for w in caught))
    errors = _error(grads, reference), _error(grads, true)
    return GradientRow(name, *errors, nfe, backward, statistics.median(seconds), memory.peak, note)


def _error(grads: list[Tensor], reference: list[Tensor] | None) -> float:
    """The largest relative error; a gradient far smaller than the largest one is compared to 1e-12 of that."""
    if reference is None:
        return float("nan")
    norms = [float(torch.linalg.vector_norm(r)) for r in reference]
    floor = max(norms) * 1e-12 or 1.0
    errors = [float(torch.linalg.vector_norm(a.to(r.dtype) - r)) for a, r in zip(grads, reference, strict=True)]
    return max(error / max(norm, floor) for error, norm in zip(errors, norms, strict=True))


class Case:
    """One solve, its loss, and the inputs to differentiate with respect to."""

    def __init__(
        self, f: Any, y0: Any, ts: Any, args: tuple[Any, ...], loss: Callable[[Any], Tensor], options: SolveOptions
    ) -> None:
        self.f, self.ts, self.loss, self.options = f, ts, loss, options
        self.y0 = tree_map(lambda x: x.detach().clone().requires_grad_() if isinstance(x, Tensor) else x, y0)
        self.args = tree_map(_leaf, args)
        tensors = [x for x in flatten((self.y0, self.args))[0] if isinstance(x, Tensor) and x.requires_grad]
        known, reachable = {id(x) for x in tensors}, find_reachable(f)
        captured = [x for _, x in (*reachable.leaves.values(), *reachable.computed.values())]
        self.inputs = tensors + [x for x in captured if id(x) not in known]

    def in_float64(self) -> Case:
        y0, args = tree_map(_leaf_in_float64, self.y0), tree_map(_leaf_in_float64, self.args)
        return Case(_function_in_float64(self.f), y0, self.ts, args, self.loss, self.options)

    def differentiate(
        self, gradient: GradientName | Gradient, changes: SolveOptions | None = None
    ) -> tuple[list[Tensor], Solution]:
        """The gradients for all inputs, and the solution; changes: options that replace those of the case."""
        options: SolveOptions = {**self.options, **(changes or {}), "gradient": gradient}
        sol = solve(self.f, self.y0, self.ts, args=self.args, **options)
        grads: Any = torch.autograd.grad(self._loss_of(sol), self.inputs, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, self.inputs, strict=True)], sol

    def _loss_of(self, sol: Solution) -> Tensor:
        try:
            value: Any = self.loss(sol)
        except (TypeError, AttributeError) as error:
            try:
                value = self.loss(sol.ys)
            except Exception:
                raise error from None
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError(f"loss must return a scalar tensor; got {value!r}")
        return value

    def gradients_or_none(self, gradient: GradientName, changes: SolveOptions) -> list[Tensor] | None:
        """The gradients; None if the solve fails."""
        try:
            return self.differentiate(gradient, changes)[0]
        except SolveError:
            return None

    def discrete_gradients(self, gradient: Gradient) -> list[Tensor] | None:
        """Backpropagation through the numerical solution that `gradient` differentiates; None if the solve fails."""
        changes: SolveOptions = {}
        if isinstance(gradient, Reversible):
            base = checks.method(self.options.get("method", "tsit5"))
            changes = {"method": ReversibleMethod(base, gradient.coupling)}
        return self.gradients_or_none("backprop", changes)

    def accurate_gradients(self) -> list[Tensor] | None:
        """Gradients of a solve with tolerance 1e-12; None if it fails."""
        controller = self.options.get("controller")
        jump_ts = None if controller is None else controller.jump_ts
        changes: SolveOptions = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12, "step": None, "max_steps": 1_000_000}
        changes["controller"] = None if jump_ts is None else PID(jump_ts=jump_ts)
        return self.gradients_or_none("discrete", changes)


def _leaf(x: Any) -> Any:
    return x.detach().clone().requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x


def _leaf_in_float64(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    (working,) = in_working_precision([x])
    wide = widened(working)
    return x if wide is x else wide.detach().requires_grad_(x.requires_grad)


def _function_in_float64(f: Any) -> Any:
    """A module or a partial with its tensors in float64; any other f unchanged."""
    if isinstance(f, nn.Module):
        return copy.deepcopy(f).double()
    if isinstance(f, functools.partial):
        args, keywords = tree_map(_leaf_in_float64, f.args), tree_map(_leaf_in_float64, f.keywords)
        return functools.partial(_function_in_float64(f.func), *args, **keywords)
    return f
