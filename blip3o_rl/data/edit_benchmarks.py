"""The items of editing benchmarks as rows of editing data: ImgEdit's `basic_edit.json`, GEdit's parquet files.

    ImgEdit   {key: {"id": path of the image, "prompt": ..., "edit_type": ...}}
    GEdit     task_type, key, instruction, instruction_language, input_image, input_image_raw

The type of edit becomes the row's tag. GEdit asks everything in English and in Chinese; Chinese tags say so, since the
two are reported apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

IMGEDIT = ("id", "prompt", "edit_type")
GEDIT = ("task_type", "instruction", "instruction_language")
CHINESE = " (cn)"
"""Ends the tags of Chinese instructions."""


def imgedit_items(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, row) of ImgEdit's items.

    Raises:
        ValueError: the content is not in the benchmark's form.
    """
    items = content if isinstance(content, Mapping) else {}
    if not items or not all(isinstance(item, Mapping) and {*IMGEDIT} <= {*item} for item in items.values()):
        raise ValueError(f"is no object of items with {', '.join(IMGEDIT)}; give ImgEdit's basic_edit.json")
    for key, item in items.items():
        yield key, {"prompt": item["prompt"], "image": item["id"], "id": key, "tag": item["edit_type"]}


def row_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A GEdit item as a row of editing data, with the image before it was resized; any other object as it is."""
    if not {*GEDIT} <= {*data}:
        return data
    language = str(data["instruction_language"])
    return {
        "instruction": data["instruction"],
        "input_image": data.get("input_image_raw") or data.get("input_image"),
        "id": f"{data.get('key')}-{language}",
        "tag": f"{data['task_type']}{CHINESE if language == 'cn' else ''}",
    }
