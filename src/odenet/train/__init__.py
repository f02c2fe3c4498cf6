"""Training and the command line. Needs the extra `train`; nothing else of the library imports this package."""

from typing import TYPE_CHECKING, Any

from .errors import UserError
from .task import Settings, Task
from .trained import load

if TYPE_CHECKING:
    from .callbacks import SolverStats

__all__ = ["Settings", "SolverStats", "Task", "UserError", "load"]


def __getattr__(name: str) -> Any:
    if name == "SolverStats":  # Lightning takes seconds to import, and loading a net does not need it
        from .callbacks import SolverStats

        return SolverStats
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
