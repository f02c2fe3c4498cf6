"""Targets of the benchmark `peers`. A speed-up is a ratio of median times; above 1 the first one is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..libraries.contenders import ADJOINT, BACKSOLVE, CHECKPOINTED, COMPILED, EAGER, ODEINT
from ..libraries.problems import Field
from .peer_rows import Row, Times

Value = Callable[[str], float | None]  # of a field by its name


@dataclass(frozen=True)
class Target:
    """A target and the measured value; None where it could not be measured. least: the value must not be smaller."""

    what: str
    over: str
    value: float | None
    target: float
    least: bool = True

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.target if self.least else self.value <= self.target


def _mean(what: str, fields: Iterable[str], value: Value, target: float) -> Target:
    """Return the geometric mean, where every field has its value: a mean over fewer would be another quantity."""
    values = [value(name) for name in fields]
    known = [v for v in values if v is not None]
    whole = bool(values) and len(known) == len(values)
    mean = math.exp(sum(map(math.log, known)) / len(known)) if whole else None
    return Target(what, "MLP fields, geometric mean", mean, target)


def _worst(what: str, fields: Iterable[str], value: Value, target: float, least: bool = True) -> Target:
    """Return the value farthest on the wrong side."""
    known = {name: v for name in fields if (v := value(name)) is not None}
    if not known:
        return Target(what, "no field", None, target, least)
    worst = (min if least else max)(known, key=lambda name: known[name])
    return Target(what, f"worst of {len(known)} fields: {worst}", known[worst], target, least)


def targets(rows: Sequence[Row], fields: Sequence[Field]) -> list[Target]:
    by_name = {(r.field, r.label): r for r in rows}
    names, mlps = [f.name for f in fields], [f.name for f in fields if f.mlp]
    tiny, others = [n for n in names if n == "tiny"], [n for n in mlps if n != "tiny"]

    def times(field: str, label: str, part: str) -> Times | None:
        return getattr(by_name.get((field, label)), part, None)

    def speedup(mine: str, *other: str, part: str = "train") -> Value:
        """Return the speed-up over the fastest of `other`."""

        def ratio(field: str) -> float | None:
            own = times(field, mine, part)
            theirs = [t.seconds for label in other if (t := times(field, label, part))]
            return min(theirs) / own.seconds if own and theirs else None

        return ratio

    def over_evaluations(field: str) -> float | None:
        train = times(field, COMPILED, "train")
        return train.over if train else None

    def first_step(name: str) -> Value:
        return lambda field: getattr(by_name.get((field, COMPILED)), name, None)

    compiled, eager = "training step, compiled, ", "training step, eager, "
    adjoint, odeint = "speed-up over odeint_adjoint", "speed-up over odeint"
    diffrax = speedup(COMPILED, CHECKPOINTED, BACKSOLVE)
    forward = speedup(COMPILED, CHECKPOINTED, BACKSOLVE, part="forward")
    return [
        _mean(f"{compiled}{adjoint}", mlps, speedup(COMPILED, ADJOINT), 10),
        _worst(f"{compiled}{adjoint}", names, speedup(COMPILED, ADJOINT), 4.5),
        _mean(f"{compiled}{odeint}", mlps, speedup(COMPILED, ODEINT), 2.5),
        _worst(f"{compiled}{odeint}", names, speedup(COMPILED, ODEINT), 1),
        _mean(f"{eager}{adjoint}", mlps, speedup(EAGER, ADJOINT), 3),
        _worst(f"{eager}{odeint}", names, speedup(EAGER, ODEINT), 1),
        _worst(f"{compiled}speed-up over diffrax's better gradient", names, diffrax, 1),
        _worst(f"{compiled}in units of the evaluations' cost", names, over_evaluations, 1, least=False),
        _worst("forward, compiled, speed-up over diffrax", tiny, forward, 0.8),
        _worst("forward, compiled, speed-up over diffrax", others, forward, 1),
        _worst("cold start, compiled, seconds", mlps, first_step("cold"), 10, least=False),
        _worst("second process, compiled, seconds", mlps, first_step("again"), 3, least=False),
    ]
