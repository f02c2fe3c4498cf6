"""The targets, and whether a run met them. A speed-up is a ratio of median times; above 1 the first is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from ..fields import Field
from .diffrax_side import BACKSOLVE, CHECKPOINTED
from .odenet_side import COMPILED, EAGER
from .rows import Ratio, Row
from .torchdiffeq_side import ADJOINT, ODEINT

_TRAIN, _FORWARD = "train", "forward"


class _Found:
    """The rows of a run, to be asked for numbers by field and label."""

    def __init__(self, rows: Sequence[Row], fields: Sequence[Field]) -> None:
        self.rows = {(r.field, r.label): r for r in rows}
        self.all = [f.name for f in fields]
        self.mlps = [f.name for f in fields if f.mlp]

    def seconds(self, field: str, label: str, part: str) -> float | None:
        row = self.rows.get((field, label))
        times = None if row is None else row.train if part == _TRAIN else row.forward
        return None if times is None else times.seconds

    def speedup(self, mine: str, other: Sequence[str], part: str) -> Callable[[str], float | None]:
        """By field: over the fastest of `other`."""

        def ratio(field: str) -> float | None:
            own = self.seconds(field, mine, part)
            theirs = [s for label in other if (s := self.seconds(field, label, part)) is not None]
            return None if own is None or not theirs else min(theirs) / own

        return ratio

    def over_floor(self, field: str) -> float | None:
        row = self.rows.get((field, COMPILED))
        return None if row is None or row.train is None else row.train.over

    def start(self, name: str) -> Callable[[str], float | None]:
        def seconds(field: str) -> float | None:
            row = self.rows.get((field, COMPILED))
            return None if row is None else getattr(row, name)

        return seconds


def _geometric(what: str, fields: Iterable[str], number: Callable[[str], float | None], target: float) -> Ratio:
    """Only where every field has its number: a mean over fewer would be another quantity."""
    values = [number(name) for name in fields]
    known = [v for v in values if v is not None]
    whole = bool(values) and len(known) == len(values)
    mean = math.exp(sum(map(math.log, known)) / len(known)) if whole else None
    return Ratio(what, "MLP fields, geometric mean", mean, target)


def _worst(
    what: str, fields: Iterable[str], number: Callable[[str], float | None], target: float, least: bool = True
) -> Ratio:
    """The field farthest on the wrong side, of those with a number."""
    known = {name: v for name in fields if (v := number(name)) is not None}
    if not known:
        return Ratio(what, "no field", None, target, least)
    worst = (min if least else max)(known, key=lambda name: known[name])
    return Ratio(what, f"worst of {len(known)} fields: {worst}", known[worst], target, least)


def targets(rows: Sequence[Row], fields: Sequence[Field]) -> list[Ratio]:
    found = _Found(rows, fields)
    adjoint, odeint, diffrax = (ADJOINT,), (ODEINT,), (CHECKPOINTED, BACKSOLVE)
    train = "training step, "
    compiled = {other: found.speedup(COMPILED, other, _TRAIN) for other in (adjoint, odeint, diffrax)}
    eager = {other: found.speedup(EAGER, other, _TRAIN) for other in (adjoint, odeint)}
    forward = found.speedup(COMPILED, diffrax, _FORWARD)
    tiny = [name for name in found.all if name == "tiny"]
    return [
        _geometric(f"{train}compiled, speed-up over odeint_adjoint", found.mlps, compiled[adjoint], 10),
        _worst(f"{train}compiled, speed-up over odeint_adjoint", found.all, compiled[adjoint], 4.5),
        _geometric(f"{train}compiled, speed-up over odeint", found.mlps, compiled[odeint], 2.5),
        _worst(f"{train}compiled, speed-up over odeint", found.all, compiled[odeint], 1),
        _geometric(f"{train}eager, speed-up over odeint_adjoint", found.mlps, eager[adjoint], 3),
        _worst(f"{train}eager, speed-up over odeint", found.all, eager[odeint], 1),
        _worst(f"{train}compiled, speed-up over diffrax's better gradient", found.all, compiled[diffrax], 1),
        _worst(f"{train}compiled, in units of the floor", found.all, found.over_floor, 1, least=False),
        _worst("forward, compiled, speed-up over diffrax", tiny, forward, 0.8),
        _worst("forward, compiled, speed-up over diffrax", [n for n in found.mlps if n not in tiny], forward, 1),
        _worst("cold start, compiled, seconds", found.mlps, found.start("cold"), 10, least=False),
        _worst("second process, compiled, seconds", found.mlps, found.start("again"), 3, least=False),
    ]
