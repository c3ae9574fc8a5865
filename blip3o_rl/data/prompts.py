"""Prompt files -> checked rows; `table` writes them for verl.

A prompt is an object with at least `prompt`; its other fields are the metadata that rewards read and check. Every
message starts with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.data.text_files import read_records
from blip3o_rl.errors import UserError


@dataclass(frozen=True)
class PromptRow:
    """One prompt with its metadata (which includes the prompt) and where it came from ("file:line")."""

    prompt: str
    metadata: Mapping[str, Any]
    where: str

    @property
    def id(self) -> str:
        return str(self.metadata.get("id", self.where.rsplit("/", 1)[-1]))


def read_prompts(path: str | Path) -> list[PromptRow]:
    """The checked rows of a prompt file of any kind that `text_files` reads.

    Raises:
        UserError: no such file, no prompt in it, not readable, a missing field or one of the wrong type.
    """
    rows = [check_row(record.value, record.where) for record in read_records(path)]
    if not rows:
        raise UserError(f'{path}: has no prompts; add one JSON object per line, such as {{"prompt": "a circle"}}')
    return rows


def check_row(data: Any, where: str) -> PromptRow:
    """Checks the fields that every prompt has; the others are the rewards' to check (`Rubric.check_prompts`).

    Raises:
        UserError: naming `where` ("file:line") and the field.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: is {_kind(data)}; write a JSON object with the field 'prompt'")
    if "prompt" not in data:
        raise UserError(f"{where}: field 'prompt' is missing, there is {', '.join(data) or 'nothing'}; add it")
    if not isinstance(data["prompt"], str) or not data["prompt"].strip():
        raise UserError(f"{where}: field 'prompt' is {_kind(data['prompt'])}; write a non-empty string")
    if not isinstance(data.get("tag", ""), str):
        raise UserError(f"{where}: field 'tag' is {_kind(data['tag'])}; write a string")
    return PromptRow(data["prompt"], data, where)


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {json.dumps(value)[:40]}"
