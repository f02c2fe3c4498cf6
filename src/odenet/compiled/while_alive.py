"""Values that belong to an object, for as long as it lives."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class WhileAlive(Generic[V]):
    """Values by object, which is told by what it is and not by what it equals.

    Codes made from the same text, as by a notebook's cell that is run again, are equal, and TorchDynamo's guards tell
    them apart all the same. An object that no weak reference can be made to has no value.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[weakref.ref[Any], V]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Any) -> V | None:
        held = self._values.get(id(key))
        return held[1] if held is not None and held[0]() is key else None

    def set(self, key: Any, value: V) -> None:
        place = id(key)
        values = self._values

        def gone(mine: weakref.ref[Any]) -> None:
            if place in values and values[place][0] is mine:  # another object may have that place by now
                del values[place]

        try:
            values[place] = weakref.ref(key, gone), value
        except TypeError:
            return
