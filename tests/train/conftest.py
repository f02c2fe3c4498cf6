"""Commands run as the programs that they are."""

from command_line import default_dtype

__all__ = ["default_dtype"]
