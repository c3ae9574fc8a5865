"""The one exception that a user is meant to read, and the hint for a misspelt name.

What a user can fix (a key, a file, a size, a missing package) is a `UserError`, which the command line prints without a
traceback. Every other exception is a bug or a failing machine and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A problem that the user can fix; its text is one line: what, what is wrong, what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'geneval'?`, or nothing if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
