"""Reads what an entry of `reward.rewards` says about itself beside where the reward comes from.

    geneval:    {weight: 1.0}
    aesthetic:  {weight: 0.2, only_if: {geneval: 0.5}, otherwise: 0.0}
    hpsv2:      {held_out: true, service: {url: "http://gpu7:18085"}}
The failure policy (`on_error`, `retries`, `timeout_s`, `concurrency`) is described in `entry`, the gates in `gates`,
`service` in `service_options`. All other keys are the reward's own keyword arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.scoring.entry import DEFAULT_TIMEOUT_S, ON_ERROR
from blip3o_rl.scoring.remote.service_options import Service, read_service

ENTRY_KEYS = (
    "weight",
    "path",
    "name",
    "on_error",
    "retries",
    "timeout_s",
    "concurrency",
    "held_out",
    "only_if",
    "otherwise",
    "service",
)


@dataclass(frozen=True)
class EntryOptions:
    """What `read_options` found; `rubric` are the fields of a RubricEntry beside name and reward."""

    rubric: dict[str, Any]
    service: Service | None
    keywords: dict[str, Any]


def read_options(entry: Mapping[str, Any], key: str) -> EntryOptions:
    """Reads one entry.

    Args:
        entry: the mapping.
        key: its config key, e.g. "reward.rewards.mine".

    Raises:
        UserError: naming the key that is wrong.
    """
    on_error = entry.get("on_error", "retry")
    if on_error not in ON_ERROR:
        raise UserError(f"{key}.on_error: is {on_error!r}; use one of {', '.join(ON_ERROR)}")
    held_out = entry.get("held_out", False)
    if not isinstance(held_out, bool):
        raise UserError(f"{key}.held_out: is {held_out!r}; use true or false")
    if held_out and "weight" in entry:
        raise UserError(f"{key}.weight: a held-out reward is never trained on; remove weight or held_out")
    only_if = _gates(entry.get("only_if"), f"{key}.only_if")
    if "otherwise" in entry and not only_if:
        raise UserError(f"{key}.otherwise: is the value behind a closed gate, and there is no only_if; remove it")
    service = None if entry.get("service") is None else read_service(entry["service"], f"{key}.service")
    default_timeout = DEFAULT_TIMEOUT_S if service is None else service.patience.budget_s + DEFAULT_TIMEOUT_S
    keywords = {word: value for word, value in entry.items() if word not in ENTRY_KEYS}
    return EntryOptions(
        {
            "weight": 0.0 if held_out else number(entry.get("weight", 1.0), f"{key}.weight"),
            "on_error": on_error,
            "retries": integer(entry.get("retries"), f"{key}.retries", least=0),
            "timeout_s": number(entry.get("timeout_s", default_timeout), f"{key}.timeout_s", least=1e-3),
            "concurrency": integer(entry.get("concurrency"), f"{key}.concurrency", least=1),
            "only_if": only_if,
            "otherwise": number(entry.get("otherwise", 0.0), f"{key}.otherwise"),
            "held_out": held_out,
        },
        service,
        keywords,
    )


def _gates(value: Any, key: str) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{key}: is {value!r}; write {{other_reward: 0.5}}, the least value that opens the gate")
    return {str(gate): number(least, f"{key}.{gate}") for gate, least in value.items()}


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
