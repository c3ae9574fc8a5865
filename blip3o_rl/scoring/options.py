"""Checks of plain numbers in a configuration."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from blip3o_rl.errors import UserError


def number(value: Any, key: str, least: float = -math.inf) -> float:
    """A finite number of at least `least`.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise UserError(f"{key}: is {value!r}; set a number{bound}")
    return float(value)


def integer(value: Any, key: str, least: int) -> int | None:
    """A whole number of at least `least`, or None if it is not given.

    Raises:
        UserError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key}: is {value!r}; set a whole number of at least {least}")
    return value
