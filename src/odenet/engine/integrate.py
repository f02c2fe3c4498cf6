"""Compose observers and the loop: one numerical solution, with nothing said of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..control.controller import Decision
from ..core.leaves import Leaves
from .advance import Clock, Move, State, attempt
from .callbacks import Callbacks
from .loop import Found, Outcome, Trial, run
from .observer import Observer
from .problem import Problem
from .recorders import Everywhere, Pieces, Record, Report
from .step_recorder import StepEnds
from .stiffness import Stiffness, watchable
from .vmapped import Lanewise

Progress = Callable[[float, dict[str, int]], Any]


class Locator(Protocol):
    """Ends the steps of one solve at events: `attempt` wraps that of the loop, `found` is what ended the solve."""

    def attempt(self, p: Problem, clock: Clock, s: State) -> tuple[Move, Decision]: ...
    @property
    def found(self) -> Found: ...
    def divisible(self) -> bool: ...


class Events(Protocol):
    """The events of a solve (events/locator.py has them; the engine knows no more of them than this)."""

    def locator(self, p: Problem, attempt: Trial) -> Locator: ...


@dataclass
class Request:
    """What the caller wants to see of the solution beside its end."""

    dense: bool = False
    progress: Progress | None = None
    callbacks: Callbacks | None = None
    events: Events | None = None
    stiffness: Stiffness | None = None
    steps: StepEnds | None = None

    def again(self) -> Request:
        """For the same solve once more, unseen."""
        return replace(self, progress=None, callbacks=None, steps=None, stiffness=None)


@dataclass
class Solved:
    """ys: (T, ...) or (B, T, ...) leaves. y1: the last state reached. pieces: with dense."""

    ys: Leaves
    y1: Leaves
    pieces: Pieces | None
    outcome: Outcome


def integrate(
    p: Problem,
    request: Request,
    record: Record | Lanewise,
    others: Sequence[Observer] = (),
    attempt: Trial = attempt,
) -> Solved:
    """Solve p. `others` see each move after `record`."""
    observers: list[Observer] = [record, *others]
    everywhere = Everywhere() if request.dense else None
    if everywhere is not None:
        observers.append(everywhere)
    if request.steps is not None:
        observers.append(request.steps)
    if request.progress is not None:
        observers.append(Report(request.progress))
    if request.stiffness is not None and watchable(p):
        attempt = request.stiffness.around(attempt)
    locator = None if request.events is None else request.events.locator(p, attempt)
    if locator is not None:
        attempt = locator.attempt
        if p.batched and p.compact and not locator.divisible():
            p = replace(p, compact=False)
    if request.callbacks is not None:
        attempt, p = request.callbacks.around(attempt), replace(p, compact=False)  # callbacks see every sample
    outcome = run(p, observers, attempt)
    if locator is not None:
        outcome.found = locator.found
    outcome.nfe = outcome.nfe + record.evaluations
    pieces = everywhere.pieces(p) if everywhere is not None else None
    return Solved(record.ys(), outcome.state.y, pieces, outcome)
