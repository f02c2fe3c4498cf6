"""The checked options of a solve, and the layout that follows from the shapes of y0 and from ts.

A repeated solve with the same shapes, times and options reuses both: they are checked once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
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
from . import checks, state_checks
from .option_types import ON_FAILURE, GradientName, MethodName, OnFailure

_MAX_LAYOUTS = 4  # full and last batches of training and of validation
_HASHABLE_TYPES = {str, float, int, bool, type(None)}


@dataclass(eq=False)
class Layout:
    """The consequences of the structure, shapes and dtypes of y0, and of ts.

    names, dtypes: of the leaves. ts: the caller's times as a tensor. engine_ts: ts in the engine's time dtype.
    leaf_specs: class, shape, dtype and device of each leaf. times_key: see `_times_key`; () for a layout that is not
    reused. ts_ref: the caller's tensor ts if the key contains its id, which is valid only while the tensor is alive.
    """

    spec: Spec
    names: list[str]
    dtypes: tuple[torch.dtype, ...]
    time_dtype: torch.dtype
    ts: Tensor
    engine_ts: Tensor
    stops: StopTimes
    direction: Tensor
    rtol: Tolerance
    atol: Tolerance
    leaf_specs: tuple[Any, ...] = ()
    times_key: tuple[Hashable, ...] = ()
    versions: tuple[int, int] = (0, 0)
    ts_ref: weakref.ref[Tensor] | None = None

    def matches(self, leaves: Sequence[Any], spec: Spec, times_key: tuple[Hashable, ...]) -> bool:
        """True when this is the layout of these leaves and times."""
        if times_key != self.times_key or spec != self.spec:
            return False
        if (self.ts._version, self.engine_ts._version) != self.versions:
            return False  # the times were changed in place
        if self.ts_ref is not None and self.ts_ref() is None:
            return False  # another tensor may have the same id by now
        for x, (kind, shape, dtype, device) in zip(leaves, self.leaf_specs, strict=True):
            if type(x) is not kind or x.shape != shape or x.dtype is not dtype or x.device != device:
                return False
            if x.layout is not torch.strided or x.is_inference():
                return False
        return True

    def copy_ts(self) -> Tensor:
        """ts for the caller, who may change it in place: a copy, unless ts requires a gradient."""
        return self.ts if self.ts.requires_grad else self.ts.clone()


@dataclass(eq=False)
class Options:
    """The options of `solve`, checked, with names replaced by objects. layouts: the latest reusable ones."""

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
    def from_keywords(
        method: MethodName | Method = "tsit5",
        rtol: Any = 1e-5,
        atol: Any = 1e-7,
        step: float | None = None,
        controller: Controller | None = None,
        gradient: GradientName | Gradient = "discrete",
        per_sample: bool = False,
        event: Event | Sequence[Event] | None = None,
        dense: bool = False,
        compile: bool = False,
        max_steps: int = 10_000,
        on_failure: OnFailure = "raise",
        progress: bool | Progress = False,
        callbacks: Callbacks | None = None,
        save: Callable[..., Any] | None = None,
        save_steps: bool = False,
        jacobian: Callable[..., Any] | None = None,
    ) -> Options:
        """Raise TypeError or ValueError for an option that is wrong for any y0 and ts."""
        compile, events = boolean("compile", compile), checks.events(event)
        per_sample, dense = boolean("per_sample", per_sample), boolean("dense", dense)
        one_of("on_failure", on_failure, ON_FAILURE)
        checks.observers(callbacks, progress)
        named_method = checks.method(method)
        checked_controller = checks.controller(controller, step, named_method)
        checked_gradient = checks.gradient(gradient)
        checked_method = named_method.for_control(checked_controller.adaptive)
        for name, value in (("rtol", rtol), ("atol", atol)):
            checks.tolerance_option(name, value)
        return Options(
            checked_method, checked_controller,
            _with_adjoint_method(checked_gradient, checked_controller, checked_method), rtol, atol,
            checks.max_steps(max_steps), per_sample, dense, compile, on_failure == "raise", events, progress, callbacks,
            checks.function_or_none("save", save), boolean("save_steps", save_steps),
            checks.function_or_none("jacobian", jacobian), [],
        )  # fmt: skip

    def layout(self, y0: Any, ts: Any) -> tuple[Layout, Sequence[Tensor]]:
        """The layout of y0 and ts, and the leaves of y0; TypeError or ValueError where one of them is wrong."""
        leaves, spec = flatten(y0)
        rule = StopRule.from_controller(self.controller)
        # a layout is reused if it depends on leaf_specs and times alone
        reusable = rule.ts_only and is_real(self.rtol) and is_real(self.atol)
        reusable = reusable and not (inside_transform() or torch.compiler.is_compiling())
        key = _times_key(ts, rule) if reusable else None
        if key is not None:
            for known in self.layouts:
                if known.matches(leaves, spec, key):
                    return known, leaves
        names, checked = state_checks.state(y0, self.per_sample)
        checked_ts = state_checks.times(ts, self.per_sample, state_checks.smallest_range(checked))
        checks.stop_times(self.controller, checked_ts)
        working = in_working_precision(checked)
        rtol = state_checks.tolerance("rtol", self.rtol, y0, working)
        atol = state_checks.tolerance("atol", self.atol, y0, working)
        checks.positive_tolerance(rtol, atol, self.controller)
        engine_ts = checked_ts.to(torch.float32 if checked_ts.device.type == "mps" else torch.float64)
        direction = direction_of(engine_ts)
        layout = Layout(
            spec, names, tuple(x.dtype for x in checked), time_dtype(checked_ts, working), checked_ts, engine_ts,
            rule.stop_times(engine_ts, direction), direction, rtol, positive_atol(atol, working),
        )  # fmt: skip
        if key is not None and not torch.is_inference_mode_enabled():
            layout.leaf_specs = tuple((type(x), x.shape, x.dtype, x.device) for x in leaves)
            if all(x is y for x, y in zip(leaves, checked, strict=True)) and not checked_ts.is_inference():
                layout.times_key, layout.versions = key, (checked_ts._version, engine_ts._version)
                layout.ts_ref = weakref.ref(ts) if isinstance(ts, Tensor) else None
                self.layouts = [layout, *self.layouts[: _MAX_LAYOUTS - 1]]
        return layout, checked


def _times_key(ts: Any, rule: StopRule) -> tuple[Hashable, ...] | None:
    """A key that is equal for equal stop times, made without reading a tensor's values; None if there is none."""
    if isinstance(ts, Tensor):
        # not for many times, as a layout keeps them in memory
        if ts.requires_grad or ts.is_inference() or ts.numel() > state_checks.FEW_TIMES:
            return None
        return (rule, id(ts), ts._version)
    if isinstance(ts, (list, tuple)) and len(ts) <= state_checks.FEW_TIMES and set(map(type, ts)) <= {int, float}:
        return (rule, *ts)
    return None


@lru_cache(maxsize=64, typed=True)
def _cached_options(*values: Any) -> Options:
    return Options.from_keywords(*values)


def checked_options(*values: Any) -> Options:
    """`Options.from_keywords(*values)`, in the order of its parameters; cached if all values are plain."""
    plain = set(map(type, values)) <= _HASHABLE_TYPES
    return _cached_options(*values) if plain else Options.from_keywords(*values)


def _with_adjoint_method(gradient: Gradient, controller: Controller, method: Method) -> Gradient:
    """The gradient; a continuous adjoint gets its method, which must suit its controller.

    controller, method: of the forward solve, and of the backward solve if the gradient names no others.
    """
    if not isinstance(gradient, ContinuousAdjoint):
        return gradient
    checks.constant_stops(controller, gradient.name)
    controller = gradient.controller or controller
    method = method if gradient.method is None else checks.method(gradient.method)
    method = method.for_control(controller.adaptive)
    if controller.adaptive and method.error_order is None:
        raise ValueError(
            f"gradient={gradient.name!r} with method={method.name!r}: this method has no error estimate to choose the "
            "steps of the backward solve by. Give the gradient controller=ConstantStep(...), or an adaptive method "
            "such as 'tsit5'."
        )
    return gradient.with_method(method)
