"""A problem that the user can mend: one line on stderr and exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Its message is the one line: what is wrong, with which file or option, and the cure."""


def first_line(error: BaseException) -> str:
    """What another library says, in one line of what a terminal can show."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return "".join(c if c.isprintable() else "?" for c in line)
