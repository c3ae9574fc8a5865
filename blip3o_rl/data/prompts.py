"""Prompt files (JSONL) -> checked rows -> the parquet table that verl reads.

A prompt file has one JSON object a line with at least `prompt`; the rest of the object is the metadata that rewards
read. The format is GenEval's (tag, include, exclude), and where these fields are present they are checked here, with
the file's line in the message, because a wrong field would otherwise show up as a puzzling reward in a long run.

verl wants `prompt` as a chat; nested metadata is stored as a JSON string, because a parquet struct column would give
every row the union of all rows' keys, filled with nulls.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip3o_rl.data.synthetic.scene_prompts import held_out_prompts, train_prompts
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
        raise UserError(f"{where}: field 'prompt' is missing; add the text to draw")
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


def write_prompts(path: str | Path, metadata: Iterable[Mapping[str, Any]]) -> list[PromptRow]:
    """Writes a JSONL prompt file and returns its rows."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dict(line)) + "\n" for line in metadata), encoding="utf-8")
    return read_prompts(path)


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


def prompts_to_parquet(source: str | Path, target: str | Path, data_source: str = "") -> list[PromptRow]:
    """Reads a prompt file, writes the table and returns the rows (for the rubric's `check_prompts`)."""
    rows = read_prompts(source)
    write_parquet(rows, target, data_source or Path(source).stem)
    return rows


def build_shapes(folder: str | Path, n_train: int = 2048, n_held_out: int = 64, seed: int = 0) -> dict[str, Path]:
    """Writes the mini shapes data set: train and held_out, each as .jsonl and .parquet.

    The two sides share no prompt, except the `single_object` ones (see `mini.prompts`).

    Returns:
        {"train": ..., "held_out": ...}: the parquet files.

    Raises:
        UserError: a size below 1, or more held-out prompts than there are.
    """
    if n_train < 1 or n_held_out < 1:
        raise UserError(f"shapes: {n_train} training and {n_held_out} held-out prompts; ask for at least one of each")
    folder = Path(folder)
    try:
        sides = {"train": train_prompts(n_train, seed), "held_out": held_out_prompts(n_held_out)}
    except ValueError as error:
        raise UserError(f"shapes: {error}; ask for fewer") from error
    files = {}
    for side, metadata in sides.items():
        rows = write_prompts(folder / f"{side}.jsonl", metadata)
        files[side] = write_parquet(rows, folder / f"{side}.parquet", "shapes")
    return files
