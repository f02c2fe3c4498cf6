"""Everyone in the comparison, in the order of the tables."""

from __future__ import annotations

from ...errors import unknown_name
from ..fields import Field
from . import diffrax_side, odenet_side, scipy_side, torchdiffeq_side, torchode_side
from .runs import Contender

CONTENDERS: tuple[Contender, ...] = (
    *odenet_side.CONTENDERS,
    *torchdiffeq_side.CONTENDERS,
    *torchode_side.CONTENDERS,
    *diffrax_side.CONTENDERS,
    *scipy_side.CONTENDERS,
)


def of(field: Field) -> list[Contender]:
    """Those that are compared on this field."""
    return [c for c in CONTENDERS if c.kinds is None or field.kind in c.kinds]


def by_label(label: str) -> Contender:
    known = {c.label: c for c in CONTENDERS}
    if label not in known:
        raise unknown_name("contender", label, known)
    return known[label]
