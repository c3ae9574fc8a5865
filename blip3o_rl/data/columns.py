"""Columns of tables: which of them is the prompt, and what of parquet files and data sets a prompt file can hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from blip3o_rl.data.edit_rows import EDITING, INSTRUCTION, OUTPUT
from blip3o_rl.errors import UserError, did_you_mean, in_one_line

_BYTES = re.compile(r"binary(_view)?\b(?!:)")
"""In the name of a parquet column's type."""


def read_parquet(path: Path, field: str, images: bool) -> list[dict[str, Any]]:
    """Rows of a parquet file; but for `images` as JSON has them, a date as text, and without columns of bytes.

    Nulls are absent: a struct column gives every row the union of all rows' fields.

    Raises:
        UserError: it is damaged, has not the column `field` (for `images` one of INSTRUCTION), or would lose the images
            of edits.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path)
        header = [column.name for column in columns if images or not _BYTES.search(str(column.type))]
        refuse_editing(path, set(columns.names) - set(header))
        instructed = images and any(name in header for name in INSTRUCTION)
        names = header if instructed else prompt_columns(path, header, field)
        rows = pq.read_table(path, columns=header).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = in_one_line(error, 200)
        raise UserError(f"{path}: is not readable as parquet ({reason}); make the file again") from error
    if not images:
        rows = json.loads(json.dumps(rows, default=_as_json))
    return [without_nulls(dict(zip(names, row.values(), strict=True))) for row in rows]


def _as_json(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


def prompt_columns(path: str | Path, header: list[str], field: str) -> list[str]:
    """The columns' names, with `Prompt` or `Prompts` (as PartiPrompts and DrawBench have it) read as `prompt`."""
    if twice := next((name for name in header if header.count(name) > 1), ""):
        raise UserError(f"{path}: has two columns named '{twice}'; rename one")
    if field in header:
        return header
    same = [name for name in header if name.lower() in (field, f"{field}s")]
    if len(same) != 1:
        hint = did_you_mean(field, header)
        raise UserError(f"{path}: has the columns {', '.join(header) or '(none)'}; one must be '{field}'{hint}")
    return [field if name == same[0] else name for name in header]


def without_nulls(value: Any) -> Any:
    """A value without the fields that are null, or NaN as tables of numbers have it, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None and item == item}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def refuse_editing(path: str | Path, left_out: Iterable[str]) -> None:
    """Raises UserError where a column that is left out, as it holds no text, has the images of an edit."""
    for name in left_out:
        if name in (*EDITING, *OUTPUT):
            command = "blip3o-rl prompts import-edits"
            raise UserError(f"{path}: column '{name}' holds images; make a prompt file of it with {command}")
