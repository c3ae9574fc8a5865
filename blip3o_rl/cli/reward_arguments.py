"""How rewards are named on the command line: `geneval geneval.mode=strict my_goal.py:my_goal my_goal.wanted=0.4`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.data.prompts import PromptRow

FORM = "NAME|FILE:FUNCTION|NAME.KEY=VALUE"

Rewards = Annotated[list[str], typer.Argument(metavar=f"{FORM}...", help="rewards, and their keys as in a recipe")]
Metadata = Annotated[
    str | None, typer.Option(metavar="JSON", help="metadata of the prompt, for rewards that need some of their own")
]
Prompts = Annotated[
    Path | None, typer.Option(help="prompt file whose first line the rewards are tried on; by default their examples")
]
Side = Annotated[int, typer.Option(min=16, max=4096, help="side of the images in pixels")]


def reward_config(arguments: Sequence[str], command: str) -> dict[str, dict[str, Any]]:
    """The arguments as a mapping like `reward.rewards`. A reward of a file or a module is called like its function.

    Raises:
        UserError: an argument is none of these, or two rewards have one name; `command` is for the message.
    """
    import yaml

    rewards: dict[str, dict[str, Any]] = {}
    for argument in arguments:
        if option := re.fullmatch(r"(\w+(?:\.\w+)+)=(.*)", argument, re.DOTALL):
            name, *above, key = option[1].split(".")
            try:
                group = rewards.setdefault(name, {})
                for part in above:
                    group = group.setdefault(part, {})
                group[key] = yaml.safe_load(option[2])
            except yaml.YAMLError as error:
                raise UserError(f"{command} {argument}: the value is not readable; quote it") from error
            except (AttributeError, TypeError) as error:  # a value and keys below it
                raise UserError(f"{command} {argument}: {'.'.join(above)} has a value already; remove one") from error
            continue
        place, colon, function = argument.rpartition(":")
        if not re.fullmatch(r"\w+", function) or (colon and not place):
            raise UserError(
                f"{command} {argument}: neither a reward's name, FILE:FUNCTION, MODULE:FUNCTION nor NAME.KEY=VALUE; "
                "for example my_goal.py:my_goal"
            )
        entry = rewards.setdefault(function, {})
        if "path" in entry or "name" in entry:
            raise UserError(f"{command} {argument}: there are two rewards called {function}; rename one")
        if colon:
            entry["path" if place.endswith(".py") else "name"] = argument
    return rewards


def first_row(prompts: Path | None) -> list[PromptRow]:
    """The first line of a prompt file, or nothing without one."""
    from blip3o_rl.data.prompts import read_prompts

    return [] if prompts is None else read_prompts(prompts)[:1]


def read_metadata(text: str | None) -> dict[str, Any] | None:
    """The JSON object of `--metadata`."""
    try:
        fields = {} if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--metadata {text}: is not JSON ({error.msg}); write '{{\"target\": 3}}'") from error
    if not isinstance(fields, dict):
        raise UserError(f"--metadata {text}: is not a JSON object; write '{{\"target\": 3}}'")
    return None if text is None else fields
