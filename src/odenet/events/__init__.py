"""Events: conditions that end a solve or change its state; where they lie, and the gradients of their times.

One event, from the call of `solve` to its gradient:

1. The caller passes an `Event` (`event.py`); `event_functions.py` evaluates it and its reset on leaves.
2. `EventLoop` (`event_loop.py`) solves segment by segment: one ordinary solve from each event to the next.
3. In a segment, `EventLocator` (`locator.py`) wraps the step function of the loop. After each accepted step it takes
   the event values along the dense output (`step_values.py`) at nine Chebyshev points (`chebyshev.py`) and looks for
   the first root of their polynomial, checked by the event function itself (`roots.py`).
4. A step with a root is rejected and taken again, to end at the root. `Landing` (`landing.py`) repeats that by secants
   until the value at the end of the step is zero up to rounding (`rounding.py`), or finds that there is no event.
5. The segment ends with `LocatedEvents`. `event_time.py` attaches the time and the state to everything that the time
   depends on, by the implicit function theorem. The result is a `Hit`.
6. A reset makes the state from which the next segment starts; after a terminal event the segments are joined.
"""

from .event import Event, Hit

__all__ = ["Event", "Hit"]
