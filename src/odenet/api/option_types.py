"""The options of `solve` as types: editors complete the names, and type checkers know the keywords."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, get_args

from ..control import Controller
from ..engine.callbacks import Callbacks
from ..engine.integrate import Progress
from ..events.event import Event
from ..gradients import Gradient
from ..methods import Method

MethodName = Literal[
    "tsit5", "dopri5", "dopri8", "bosh3", "heun", "ralston", "fehlberg2",
    "esdirk54", "kvaerno5", "kvaerno3", "radauIIA5", "trbdf2",
    "euler", "midpoint", "heun3", "rk4", "rk4_38",
    "implicit_euler", "implicit_midpoint", "trapezoid", "sdirk2", "radauIIA3", "gl4", "gl6",
    "explicit_adams", "implicit_adams",
]  # fmt: skip
"""Names of `odenet.methods.METHODS`."""

GradientName = Literal["discrete", "backprop", "adjoint", "gauss", "reversible", "forward"]
"""Names of `odenet.gradients.GRADIENTS`."""

OnFailure = Literal["raise", "return"]
ON_FAILURE: tuple[str, ...] = get_args(OnFailure)


class SolveOptions(TypedDict, total=False):
    """The keyword arguments of `odenet.solve` except args; see there."""

    method: MethodName | Method
    rtol: Any
    atol: Any
    step: float | None
    controller: Controller | None
    gradient: GradientName | Gradient
    per_sample: bool
    event: Event | Sequence[Event] | None
    dense: bool
    compile: bool
    max_steps: int
    on_failure: OnFailure
    progress: bool | Progress
    callbacks: Callbacks | None
    save: Callable[..., Any] | None
    save_steps: bool
    jacobian: Callable[..., Any] | None
