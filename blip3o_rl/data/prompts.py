"""Prompt files -> checked rows; `table` writes them for verl.

A prompt is an object with at least `prompt`; its other fields are the metadata that rewards read and check. With the
field `references` it is an instruction to edit these images. Every message starts with file and line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.data.edit_rows import read_task
from blip3o_rl.data.references import ReferenceImage, is_uri, prompt_key, read_reference, with_images
from blip3o_rl.data.text_files import read_records
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.model.token_layout import MAX_REFERENCES, Task
from blip3o_rl.stores import local


@dataclass(frozen=True)
class PromptRow:
    """One prompt with its metadata (which includes the prompt) and where it came from ("file:line").

    With references it is an instruction; the metadata have their names under `references`.
    """

    prompt: str
    metadata: Mapping[str, Any]
    where: str
    references: tuple[ReferenceImage, ...] = ()

    @property
    def id(self) -> str:
        given = self.metadata.get("id")
        return self.where.rsplit("/", 1)[-1] if given is None else str(given)

    @property
    def key(self) -> str:
        """See `references.prompt_key`."""
        return prompt_key(self.prompt, (reference.sha256 for reference in self.references))

    @property
    def task(self) -> Task | None:
        """The field `task` of an edit; None where it follows from the instruction."""
        return self.metadata.get("task") if self.references else None


def read_prompts(path: str | Path) -> list[PromptRow]:
    """The checked rows of a prompt file of any kind that `text_files` reads.

    Raises:
        UserError: no such file, no prompt in it, not readable, a missing field or one of the wrong type, or two prompts
            with one id.
    """
    file = local(path)
    rows = [check_row(record.value, record.where, file.parent) for record in read_records(file)]
    if not rows:
        raise UserError(f'{path}: has no prompts; add one JSON object per line, such as {{"prompt": "a circle"}}')
    named: dict[str, PromptRow] = {}
    for row in rows:
        if named.setdefault(row.id, row).key != row.key:
            raise UserError(f"{row.where}: has the id {row.id!r} of {named[row.id].where}; give each prompt its own")
    return rows


def prompt_line(row: PromptRow, file: Path) -> dict[str, Any]:
    """A row as the line of a prompt file: images as data URIs, or as paths relative to the file."""

    def written(source: str) -> str:
        return source if is_uri(source) else os.path.relpath(source, file.parent)

    line = dict(row.metadata)
    if row.references:
        line["references"] = [written(reference.source) for reference in row.references]
        if isinstance(line.get("target"), str):
            line["target"] = written(line["target"])
        if isinstance(edit := line.get("edit"), Mapping) and isinstance(edit.get("mask"), str):
            line["edit"] = {**edit, "mask": written(edit["mask"])}
    return line


def check_row(data: Any, where: str, folder: Path = Path()) -> PromptRow:
    """Checks the fields that every prompt has; the others are the rewards' to check (`Rubric.check_prompts`).

    Args:
        folder: what the paths of references are relative to.

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
    if "references" not in data:
        return PromptRow(data["prompt"], data, where)
    given = data["references"]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_REFERENCES:
        found = f"a list of {len(given)}" if isinstance(given, list) else _kind(given)
        raise UserError(
            f"{where}: field 'references' is {found}; write a list of 1 to {MAX_REFERENCES} images, or leave it out"
        )
    if wrong := [entry for entry in given if not isinstance(entry, str) or not entry.strip()]:
        raise UserError(f"{where}: field 'references' holds {_kind(wrong[0])}; write the path of an image")
    try:
        task = read_task(data, data["prompt"])
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    references = tuple(read_reference(entry, folder, where) for entry in given)
    metadata = with_images(data, references[0], task == "keep", folder, where)
    names = [reference.name for reference in references]
    return PromptRow(data["prompt"], {**metadata, "references": names}, where, references)


def check_editing(rows: Iterable[PromptRow], model: ModelFolder) -> bool:
    """Whether any row has references, which is to say whether the model is going to edit.

    Raises:
        UserError: a row has, and the model cannot edit, or takes fewer.
    """
    most = max(rows, key=lambda row: len(row.references), default=None)
    if most is None or not most.references:
        return False
    try:
        model.check_editing(len(most.references))
    except UserError as error:
        raise UserError(f"{most.where}: has references, and {error}") from error
    return True


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {json.dumps(value)[:40]}"
