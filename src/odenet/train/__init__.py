"""Training and the command line. Needs the extra `train`; nothing else of the library imports this package."""

from .task import Settings, Task
from .trained import load
from .user_error import UserError

__all__ = ["Settings", "Task", "UserError", "load"]
