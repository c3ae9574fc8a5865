"""Rows of editing data sets, as people publish them, in one form: instruction, reference images, output image, task.

                instruction                    references                         output
    own         prompt                         references                         target
    BLIP3o      instruction, input_prompt      input_image, input_images          output_image
    Edit-R1     prompt                         image
    UniRL       prompt                         media: {role: condition, uri}
    verl-omni   prompt, a chat                 images: bytes
    PromptRL    prompt                         image: bytes

So one table of names reads them all. An image is a path, bytes, a data URI, or an object that holds one. The task is
the row's field `task`, or follows from the instruction. Other fields are kept for the rewards.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from blip3o_rl.errors import did_you_mean
from blip3o_rl.model.token_layout import MAX_REFERENCES, TASKS, Task, task_of

INSTRUCTION = ("instruction", "input_prompt", "prompt")
REFERENCES = ("references", "input_images", "input_image", "images", "image", "media")
OUTPUT = ("output_image", "target")
EDITING = ("references", "input_images", "input_image")
"""Fields that only a row of editing data has."""
_EDITING_TASKS = tuple(task for task in TASKS if task != "text_to_image")
_HELD_AS = ("bytes", "path", "uri", "url")
_IMAGE_TAG = "<image>"
"""Where an image stands in the text of a chat."""

Image = str | bytes
"""A path as the row has it, or an encoded image."""


@dataclass(frozen=True)
class EditRow:
    """One edit; `output` is None in data for reinforcement learning."""

    instruction: str
    references: tuple[Image, ...]
    output: Image | None
    task: Task
    others: Mapping[str, Any]


def names_edit(data: Mapping[str, Any]) -> bool:
    """Whether an object has one of `EDITING`."""
    return any(data.get(name) is not None for name in EDITING)


def read_edit(data: Mapping[str, Any]) -> EditRow:
    """Reads an object of any of the forms.

    Raises:
        ValueError: a field is missing or of the wrong kind; the text names it.
    """
    text_field = _field(data, INSTRUCTION, "the instruction")
    images_field = _field(data, REFERENCES, "the reference images")
    instruction = _text(data[text_field], text_field)
    references = tuple(_images(data[images_field], images_field))
    if not 1 <= len(references) <= MAX_REFERENCES:
        raise ValueError(f"field '{images_field}' has {len(references)} images, the model takes 1 to {MAX_REFERENCES}")
    output_field = next((name for name in OUTPUT if data.get(name) is not None), None)
    output = None if output_field is None else _one_image(data[output_field], output_field)
    used = {text_field, images_field, output_field, "task", "metadata"}
    others = {name: value for name, value in data.items() if name not in used}
    others |= _object(data.get("metadata"), "metadata")
    return EditRow(instruction, references, output, read_task(data, instruction), others)


def read_task(data: Mapping[str, Any], instruction: str) -> Task:
    """The field `task` of a row with references, or what follows from its instruction."""
    task = data.get("task")
    if task is None:
        return task_of(instruction)
    if task not in _EDITING_TASKS:
        hint = did_you_mean(str(task), _EDITING_TASKS)
        raise ValueError(f"field 'task' is {task!r}, not one of {', '.join(_EDITING_TASKS)}{hint}")
    return cast("Task", task)


def _field(data: Mapping[str, Any], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if data.get(name) is not None:
            return name
    raise ValueError(f"no field for {what} ({', '.join(names)}); there is {', '.join(map(str, data)) or 'nothing'}")


def _object(value: Any, field: str) -> dict[str, Any]:
    """An object, or the text of one, as tables have it; of nothing an empty one."""
    if isinstance(value, str) and value.strip():
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value or {}, Mapping):
        raise ValueError(f"field '{field}' is {type(value).__name__} and no JSON object; write one, or leave it out")
    return dict(value or {})


def _text(value: Any, field: str) -> str:
    """A text, or that of the user's last turn in a chat."""
    if isinstance(value, list):
        turns = [turn.get("content") for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"]
        value = turns[-1] if turns else None
        if isinstance(value, list):
            value = "".join(str(part.get("text") or "") for part in value if isinstance(part, Mapping))
        value = value.replace(_IMAGE_TAG, "") if isinstance(value, str) else value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field '{field}' is empty or no text")
    return value.strip()


def _images(value: Any, field: str) -> list[Image]:
    entries = value if isinstance(value, list) else [value]
    if field == "media":
        entries = [entry for entry in entries if isinstance(entry, Mapping) and entry.get("role") == "condition"]
    return [_one_image(entry, field) for entry in entries]


def _one_image(value: Any, field: str) -> Image:
    if isinstance(value, Mapping):
        value = next((value[name] for name in _HELD_AS if value.get(name)), None)
    if not isinstance(value, str | bytes) or not value:
        raise ValueError(f"field '{field}' holds no path or bytes of an image")
    if isinstance(value, str) and value.startswith("data:"):
        try:
            return base64.b64decode(value.partition("base64,")[2], validate=True)
        except ValueError as error:
            raise ValueError(f"field '{field}' holds a damaged data URI ({error})") from error
    return value
