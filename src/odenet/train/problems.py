"""A problem that the user can mend: one line on stderr and exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Its message is the one line: what is wrong, with which file or option, and the cure."""
