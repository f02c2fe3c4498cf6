"""Values that belong to an object and are dropped with it."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class WeakIdCache(Generic[V]):
    """Values by the identity of an object.

    Two code objects of the same text are equal, as a notebook makes them when a cell runs again, but TorchDynamo's
    guards tell them apart; hence identity. An object that allows no weak reference has no value.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[weakref.ref[Any], V]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Any) -> V | None:
        entry = self._values.get(id(key))
        return entry[1] if entry is not None and entry[0]() is key else None

    def set(self, key: Any, value: V) -> None:
        address, values = id(key), self._values

        def remove(dead: weakref.ref[Any]) -> None:
            if address in values and values[address][0] is dead:  # a new object may have the same address
                del values[address]

        try:
            values[address] = weakref.ref(key, remove), value
        except TypeError:
            return
