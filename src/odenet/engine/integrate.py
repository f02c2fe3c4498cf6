"""One numerical solution: the loop with its observers and with what wraps its steps. Gradients are not known here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..control.controller import Decision
from ..core.leaves import Leaves
from .advance import try_step
from .callbacks import Callbacks
from .dense_recorder import DenseRecorder, PiecewisePolynomial
from .loop import LocatedEvents, Outcome, TryStep, run
from .observer import Observer
from .output_recorder import OutputRecorder
from .problem import Problem
from .progress_reporter import ProgressReporter
from .step_attempt import State, StepAttempt
from .step_recorder import StepRecorder
from .stiffness import StiffnessDetector, can_detect_stiffness
from .stop_tracker import StopTracker
from .vmapped import VmapRecorder

Progress = Callable[[float, dict[str, int]], Any]


class Locator(Protocol):
    """Ends steps of one solve at events. `try_step` wraps that of the loop; `located`: the events that ended the solve.

    Implemented by `EventLocator` in events/locator.py; the engine knows only this protocol and the next.
    """

    def try_step(self, p: Problem, tracker: StopTracker, s: State) -> tuple[StepAttempt, Decision]: ...
    @property
    def located(self) -> LocatedEvents: ...
    def supports_subset(self) -> bool: ...


class EventSearch(Protocol):
    """The events that a solve looks for."""

    def locator(self, p: Problem, try_step: TryStep) -> Locator: ...


@dataclass
class Request:
    """What the caller wants of a solve beside its outputs."""

    dense: bool = False
    progress: Progress | None = None
    callbacks: Callbacks | None = None
    events: EventSearch | None = None
    stiffness: StiffnessDetector | None = None
    steps: StepRecorder | None = None

    def unobserved(self) -> Request:
        """For a repetition of the same solve, which the caller is not to notice."""
        return replace(self, progress=None, callbacks=None, steps=None, stiffness=None)


@dataclass
class NumericalSolution:
    """ys: (T, ...) or (B, T, ...) leaves. y1: the last state reached. pieces: the dense output, where requested."""

    ys: Leaves
    y1: Leaves
    pieces: PiecewisePolynomial | None
    outcome: Outcome


def integrate(
    p: Problem,
    request: Request,
    recorder: OutputRecorder | VmapRecorder,
    observers: Sequence[Observer] = (),
    try_step: TryStep = try_step,
) -> NumericalSolution:
    """Solve p. `observers` see each attempt after `recorder`. try_step: see `run`."""
    all_observers: list[Observer] = [recorder, *observers]
    dense = DenseRecorder() if request.dense else None
    if dense is not None:
        all_observers.append(dense)
    if request.steps is not None:
        all_observers.append(request.steps)
    if request.progress is not None:
        all_observers.append(ProgressReporter(request.progress))
    if request.stiffness is not None and can_detect_stiffness(p):
        try_step = request.stiffness.wrap(try_step)
    locator = None if request.events is None else request.events.locator(p, try_step)
    if locator is not None:
        try_step = locator.try_step
        if p.batched and p.compact and not locator.supports_subset():
            p = replace(p, compact=False)
    if request.callbacks is not None:
        try_step, p = request.callbacks.wrap(try_step), replace(p, compact=False)  # callbacks see every sample
    outcome = run(p, all_observers, try_step)
    if locator is not None:
        outcome.events = locator.located
    outcome.nfe = outcome.nfe + recorder.evaluations
    pieces = dense.pieces(p) if dense is not None else None
    return NumericalSolution(recorder.ys(), outcome.state.y, pieces, outcome)
