"""Observer: the loop's only hook."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .advance import Move


class Observer(ABC):
    """Sees every move of a solve, in order, rejected ones too."""

    @abstractmethod
    def see(self, move: Move) -> None: ...
