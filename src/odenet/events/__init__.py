"""Events: conditions along a solution that end it or change its state, and the gradients of their times."""

from .event import Event, Hit

__all__ = ["Event", "Hit"]
