"""Optional fields of a prompt's line: one that is misspelt would be a demand that nobody reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ALIKE = 0.8
"""Share of common letters from which a name is taken for a misspelt one; `context` is not a misspelt `text`."""


def misspelt(fields: Iterable[str], known: Iterable[str], optional: str) -> str:
    """Why the fields cannot stand: one of them looks like `optional`, which nobody would read; empty if all can.

    Args:
        fields: the names in the prompt's line.
        known: further fields that are read.
        optional: the optional field.
    """
    for name in fields:
        if name not in (optional, *known) and difflib.get_close_matches(name.lower(), [optional], 1, ALIKE):
            return f"nobody reads its field '{name}'; did you mean '{optional}'?"
    return ""
