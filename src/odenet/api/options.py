"""What a solve is told beside f, y0, ts and args, and what the looks of y0 and ts make of it.

A repeated solve of the same shapes, times and options finds both as they were: they are checked and looked up once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..control import Controller
from ..control.stop_times import StopRule, StopTimes
from ..core.leaves import in_working_precision, time_dtype
from ..core.norms import Tolerance, positive_atol
from ..core.pytrees import Spec, flatten
from ..core.torch_func import inside_transform
from ..core.validate import boolean, is_real, one_of
from ..engine.callbacks import Callbacks
from ..engine.integrate import Progress
from ..engine.problem import direction_of
from ..events.event import Event
from ..gradients import ContinuousAdjoint, Gradient
from ..methods import Method
from . import checks

_LAYOUTS = 4  # kept: those of training and of validation batches, whole and last ones
_PLAIN = {str, float, int, bool, type(None)}


@dataclass(eq=False)
class Layout:
    """What follows from the structure, shapes and dtypes of y0, and from ts.

    names, dtypes: of the leaves. ts: as given, a tensor. precise: in the engine's dtype. looks: class, shape, dtype and
    device of each leaf. times: what `_comparable` tells; () where it is used once. origin: the tensor that ts was
    given as, which is told by its place in memory and so must still be there.
    """

    spec: Spec
    names: list[str]
    dtypes: tuple[torch.dtype, ...]
    time_dtype: torch.dtype
    ts: Tensor
    precise: Tensor
    stops: StopTimes
    direction: Tensor
    rtol: Tolerance
    atol: Tolerance
    leaf_specs: tuple[Any, ...] = ()
    times_key: tuple[Any, ...] = ()
    versions: tuple[int, int] = (0, 0)
    ts_ref: weakref.ref[Tensor] | None = None

    def matches(self, leaves: Sequence[Any], spec: Spec, times: tuple[Any, ...]) -> bool:
        """Whether it is that of these leaves and times."""
        if times != self.times_key or spec != self.spec or (self.ts._version, self.precise._version) != self.versions:
            return False
        if self.ts_ref is not None and self.ts_ref() is None:
            return False  # another tensor may have its place by now
        for x, look in zip(leaves, self.leaf_specs, strict=True):
            if type(x) is not look[0] or x.shape != look[1] or x.dtype is not look[2] or x.device != look[3]:
                return False
            if x.layout is not torch.strided or x.is_inference():
                return False
        return True

    def copy_ts(self) -> Tensor:
        """ts for the caller, who may change them: a tensor that nobody else has, unless a graph leads to it."""
        return self.ts if self.ts.requires_grad else self.ts.clone()


@dataclass(eq=False)
class Options:
    """The options of `solve`, checked, with names looked up.

    layouts: the last ones, where nothing else decides them.
    """

    method: Method
    controller: Controller
    gradient: Gradient
    rtol: Any
    atol: Any
    max_steps: int
    per_sample: bool
    dense: bool
    compile: bool
    raises: bool
    events: list[Event]
    progress: bool | Progress
    callbacks: Callbacks | None
    save: Callable[..., Any] | None
    save_steps: bool
    jacobian: Callable[..., Any] | None
    layouts: list[Layout]

    @staticmethod
    def of(
        method: str | Method = "tsit5",
        rtol: Any = 1e-5,
        atol: Any = 1e-7,
        step: float | None = None,
        controller: Controller | None = None,
        gradient: str | Gradient = "discrete",
        per_sample: bool = False,
        event: Any = None,
        dense: bool = False,
        compile: bool = False,
        max_steps: int = 10_000,
        on_failure: str = "raise",
        progress: bool | Progress = False,
        callbacks: Callbacks | None = None,
        save: Callable[..., Any] | None = None,
        save_steps: bool = False,
        jacobian: Callable[..., Any] | None = None,
    ) -> Options:
        """Raise TypeError or ValueError for what is wrong whatever y0 and ts are."""
        compile, events = boolean("compile", compile), checks.events(event)
        per_sample, dense = boolean("per_sample", per_sample), boolean("dense", dense)
        one_of("on_failure", on_failure, checks.ON_FAILURE)
        checks.observers(callbacks, progress)
        solver = checks.method(method)
        control = checks.controller(controller, step, solver)
        how = checks.gradient(gradient)
        solver = solver.for_control(control.adaptive)
        for name, value in (("rtol", rtol), ("atol", atol)):
            checks.tolerance_option(name, value)
        return Options(
            solver, control, _with_method(how, control, solver), rtol, atol, checks.max_steps(max_steps), per_sample,
            dense, compile, on_failure == "raise", events, progress, callbacks, checks.function_or_none("save", save),
            boolean("save_steps", save_steps), checks.function_or_none("jacobian", jacobian), [],
        )  # fmt: skip

    def layout(self, y0: Any, ts: Any) -> tuple[Layout, Sequence[Tensor]]:
        """The layout of y0 and ts, and the leaves of y0; TypeError or ValueError where one of them is wrong."""
        leaves, spec = flatten(y0)
        rule = StopRule.from_controller(self.controller)
        # whether the layout depends on nothing but looks and times
        lasts = rule.ts_only and is_real(self.rtol) and is_real(self.atol)
        times = _comparable(ts, rule) if lasts and not (inside_transform() or torch.compiler.is_compiling()) else None
        if times is not None:
            for known in self.layouts:
                if known.matches(leaves, spec, times):
                    return known, leaves
        names, checked = checks.state(y0, self.per_sample)
        given = checks.times(ts, self.per_sample, checks.narrowest(checked))
        checks.stop_times(self.controller, given)
        working = in_working_precision(checked)
        relative, absolute = (
            checks.tolerance(name, x, y0, working) for name, x in (("rtol", self.rtol), ("atol", self.atol))
        )
        checks.positive_tolerance(relative, absolute, self.controller)
        precise = given.to(torch.float32 if given.device.type == "mps" else torch.float64)
        direction = direction_of(precise)
        made = Layout(
            spec, names, tuple(x.dtype for x in checked), time_dtype(given, working), given, precise,
            rule.stop_times(precise, direction), direction, relative, positive_atol(absolute, working),
        )  # fmt: skip
        if times is not None and not torch.is_inference_mode_enabled():
            made.leaf_specs = tuple((type(x), x.shape, x.dtype, x.device) for x in leaves)
            if all(x is y for x, y in zip(leaves, checked, strict=True)) and not given.is_inference():
                made.times_key, made.versions = times, (given._version, precise._version)
                made.ts_ref = weakref.ref(ts) if isinstance(ts, Tensor) else None
                self.layouts = [made, *self.layouts[: _LAYOUTS - 1]]
        return made, checked


def _comparable(ts: Any, rule: StopRule) -> tuple[Any, ...] | None:
    """What tells whether times to hit are the same as others, without a look at a tensor; None: nothing does."""
    if isinstance(ts, Tensor):
        if ts.requires_grad or ts.is_inference() or ts.numel() > checks.FEW:  # it is held
            return None
        return (rule, id(ts), ts._version)
    if isinstance(ts, (list, tuple)) and len(ts) <= checks.FEW and set(map(type, ts)) <= {int, float}:
        return (rule, *ts)
    return None


@lru_cache(maxsize=64, typed=True)
def _known(*given: Any) -> Options:
    return Options.of(*given)


def checked_options(*given: Any) -> Options:
    """The options, in the order of `Options.of`; plain values are looked up once."""
    return _known(*given) if set(map(type, given)) <= _PLAIN else Options.of(*given)


def _with_method(how: Gradient, control: Controller, solver: Method) -> Gradient:
    """A continuous adjoint with its method looked up, and one that its step control can work with."""
    if not isinstance(how, ContinuousAdjoint):
        return how
    checks.constant_stops(control, how.name)
    control = how.controller or control
    method = (solver if how.method is None else checks.method(how.method)).for_control(control.adaptive)
    if control.adaptive and method.error_order is None:
        raise ValueError(
            f"gradient={how.name!r} with method={method.name!r}: it has no error estimate to choose the steps of the "
            "backward solve by. Give it controller=ConstantStep(...), or an adaptive method such as 'tsit5'."
        )
    return how.with_method(method)
