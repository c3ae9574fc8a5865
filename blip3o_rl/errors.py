"""The one exception that a user is meant to read, and the hint for a misspelt name.

Everything that a user can put right (a key, a file, a size, a missing package) is raised as `UserError` with one line
that names the thing, says what is wrong with it and how to fix it. The command line prints that line without a
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
