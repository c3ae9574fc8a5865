"""Prompt files -> checked rows -> the parquet table that verl reads.

A prompt is an object with at least `prompt`; its other fields are the metadata that rewards read. The format is
GenEval's (tag, include, exclude), and where these fields are present they are checked here, with the file's line in the
message, because a wrong field would otherwise show up as a puzzling reward in a long run.

verl wants `prompt` as a chat; nested metadata is stored as a JSON string, because a parquet struct column would give
every row the union of all rows' keys, filled with nulls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip3o_rl.data.text_files import read_records
from blip3o_rl.errors import UserError

RELATIONS = ("left of", "right of", "above", "below")


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
    """Reads a prompt file of any kind that `text_files` reads; every prompt is a checked row.

    Raises:
        UserError: no such file, no prompt in it, not readable, a missing field or one of the wrong type.
    """
    rows = [check_row(record.value, record.where) for record in read_records(path)]
    if not rows:
        raise UserError(f'{path}: has no prompts; add one JSON object per line, such as {{"prompt": "a circle"}}')
    return rows


def check_row(data: Any, where: str) -> PromptRow:
    """Checks one prompt object; `where` ("file:line") starts every message.

    Raises:
        UserError: naming the field.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: is {_kind(data)}; write a JSON object with the field 'prompt'")
    if "prompt" not in data:
        raise UserError(f"{where}: field 'prompt' is missing; add the text to generate from")
    if not isinstance(data["prompt"], str) or not data["prompt"].strip():
        raise UserError(f"{where}: field 'prompt' is {_kind(data['prompt'])}; write a non-empty string")
    if "tag" in data and not isinstance(data["tag"], str):
        raise UserError(f"{where}: field 'tag' is {_kind(data['tag'])}; write a string")
    for field in ("include", "exclude"):
        if field in data:
            _check_clauses(data[field], field, where)
    return PromptRow(data["prompt"], data, where)


def _check_clauses(clauses: Any, field: str, where: str) -> None:
    if not isinstance(clauses, list):
        raise UserError(f"{where}: field '{field}' is {_kind(clauses)}; write a list of clauses")
    for index, clause in enumerate(clauses):
        name = f"{field}[{index}]"
        if not isinstance(clause, dict):
            raise UserError(f'{where}: field \'{name}\' is {_kind(clause)}; write {{"class": ..., "count": ...}}')
        if not isinstance(clause.get("class"), str):
            raise UserError(f"{where}: field '{name}.class' is {_kind(clause.get('class'))}; write the object's name")
        count = clause.get("count")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UserError(f"{where}: field '{name}.count' is {_kind(count)}; write a whole number of at least 1")
        if "color" in clause and not isinstance(clause["color"], str):
            raise UserError(f"{where}: field '{name}.color' is {_kind(clause['color'])}; write a colour's name")
        if "position" in clause:
            _check_position(clause["position"], index, f"{name}.position", where)


def _check_position(position: Any, index: int, name: str, where: str) -> None:
    remedy = f"write [relation, index of an earlier clause], relation one of {', '.join(RELATIONS)}"
    if not isinstance(position, list) or len(position) != 2:
        raise UserError(f"{where}: field '{name}' is {_kind(position)}; {remedy}")
    relation, target = position
    if relation not in RELATIONS:
        raise UserError(f"{where}: field '{name}' has the relation {relation!r}; {remedy}")
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < index:
        raise UserError(f"{where}: field '{name}' refers to clause {target!r}; {remedy}")


def _kind(value: Any) -> str:
    if value is None:
        return "missing or null"
    return f"{type(value).__name__} {json.dumps(value)[:40]}"


def write_parquet(
    rows: Sequence[PromptRow], path: str | Path, data_source: str, ability: str = "text_to_image"
) -> Path:
    """Writes verl's table.

    Columns: data_source (str), prompt ([{role, content}]), ability (str), reward_model {style: "rule", ground_truth:
    JSON metadata}, extra_info {index: int, prompt: str, metadata: JSON metadata, id: str}.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = []
    for index, row in enumerate(rows):
        metadata = json.dumps(dict(row.metadata))
        table.append(
            {
                "data_source": data_source,
                "prompt": [{"role": "user", "content": row.prompt}],
                "ability": ability,
                "reward_model": {"style": "rule", "ground_truth": metadata},
                "extra_info": {"index": index, "prompt": row.prompt, "metadata": metadata, "id": row.id},
            }
        )
    pq.write_table(pa.Table.from_pylist(table), path)
    return path
