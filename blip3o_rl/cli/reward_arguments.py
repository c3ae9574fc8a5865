"""How rewards are named on the command line: `geneval geneval.mode=strict my_goal.py:my_goal my_goal.wanted=0.4`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from blip3o_rl.errors import UserError


def reward_config(words: Sequence[str], verb: str) -> dict[str, dict[str, Any]]:
    """`geneval geneval.mode=strict my_goal.py:my_goal my_goal.wanted=0.4` as a mapping like `reward.rewards`.

    A reward of a file or a module is called like its function.

    Raises:
        UserError: a word is none of these, or two rewards have one name.
    """
    rewards: dict[str, dict[str, Any]] = {}
    for word in words:
        option = re.fullmatch(r"(\w+)\.(\w+)=(.*)", word, re.DOTALL)
        if option:
            name, key, text = option.groups()
            try:
                rewards.setdefault(name, {})[key] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise UserError(f"rewards {verb} {word}: the value is not readable; quote it") from error
            continue
        place, colon, function = word.rpartition(":")
        if not re.fullmatch(r"\w+", function if colon else word) or (colon and not place):
            raise UserError(
                f"rewards {verb} {word}: neither a reward's name, FILE:FUNCTION, MODULE:FUNCTION nor NAME.KEY=VALUE; "
                "for example my_goal.py:my_goal"
            )
        entry = rewards.setdefault(function, {})
        if "path" in entry or "name" in entry:
            raise UserError(f"rewards {verb} {word}: there are two rewards called {function}; rename one")
        if colon:
            entry["path" if place.endswith(".py") else "name"] = word
    return rewards
