"""The one exception a user is meant to read.

Everything that a user can put right (a key, a file, a size, a missing package) is raised as `UserError` with one line
that names the thing, says what is wrong with it and how to mend it. The command line prints that line without a
traceback; every other exception is a bug or a failing machine and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A problem that the user can mend; its text is one line: what, what is wrong, what to do."""
