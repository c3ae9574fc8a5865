"""The one exception that a user is meant to read, and what is said about a name that is not known.

What a user can fix (a key, a file, a size, a missing package) is a `UserError`, which the command line prints without a
traceback. Every other exception is a bug or a failing machine and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A problem that the user can fix; its text is one line: what, what is wrong, what to do."""


def in_one_line(error: object, limit: int | None = None) -> str:
    """What a library's error says, without its line breaks, cut to `limit` characters."""
    return " ".join(str(error).split())[:limit]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'geneval'?`, or nothing if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def choice(value: str, known: Iterable[str], key: str) -> str:
    """The value itself, if it is a known one; a `UserError` with its key, a hint and what is known if it is not."""
    names = list(known)
    if value not in names:
        raise UserError(f"{key}: is {value!r}{did_you_mean(value, names)}; use one of {', '.join(names)}")
    return value


def check_names(names: Iterable[str], known: Iterable[str], key: str, what: str) -> None:
    """Raises `UserError` for the first name below `key` that is not known; `what` says what such names are."""
    takes = list(known)
    for name in names:
        if name not in takes:
            hint = did_you_mean(name, takes)
            raise UserError(f"{key}.{name}: there is no such {what}{hint}; known: {', '.join(takes)}")
