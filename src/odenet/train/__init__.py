"""Training and the command line. Needs the extra `train`; nothing else of the library imports this package."""

from .errors import UserError
from .task import Settings, Task
from .trained import load

__all__ = ["Settings", "Task", "UserError", "load"]
