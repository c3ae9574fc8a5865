"""Published editing data sets -> prompt rows with `references`, for reinforcement learning.

Images that are bytes in a table become files next to the prompt file, each once; paths are written relative to it. A
row that cannot be used is a line of the report and is left out, up to a limit. Every image is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from blip3o_rl.data.edit_rows import Image, read_edit
from blip3o_rl.data.images import read_image
from blip3o_rl.data.text_files import open_lines, parse_json, read_records
from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path


@dataclass(frozen=True)
class Imported:
    """Prompt rows, and one line per row that was left out."""

    rows: list[dict[str, Any]]
    report: list[str]


def import_edits(source: Path, out: Path, max_bad: int) -> Imported:
    """Reads JSON lines or parquet for a prompt file `out`; writes the images that the rows hold.

    Raises:
        UserError: the file cannot be read, has no usable row, or more than `max_bad` bad ones.
    """
    found = Imported([], [])
    for where, value in _records(source):
        try:
            found.rows.append(_row(value, source, out))
        except (ValueError, UserError) as error:
            found.report.append(f"{where}: {error}")
            if len(found.report) > max_bad:
                raise UserError(
                    f"{found.report[-1]}; with it {len(found.report)} rows are bad and --max-bad={max_bad} may be left "
                    "out; fix the data or raise the limit"
                ) from error
    if not found.rows:
        raise UserError(f"{source}: no usable row; {found.report[0] if found.report else 'the file is empty'}")
    return found


def _records(source: Path) -> Iterator[tuple[str, Any]]:
    """(where, value or the text of a line) of all rows."""
    if source.suffix == ".parquet":
        yield from ((record.where, record.value) for record in read_records(source, images=True))
    else:
        yield from ((f"{source}:{number}", line) for number, line in open_lines(source))


def _row(value: Any, source: Path, out: Path) -> dict[str, Any]:
    data = parse_json(value) if isinstance(value, str) else value
    if not isinstance(data, dict):
        raise ValueError(f"is {type(data).__name__}, not a JSON object")
    edit = read_edit(data)
    row: dict[str, Any] = {"prompt": edit.instruction}
    row["references"] = [_stored(image, "reference", source, out) for image in edit.references]
    if edit.output is not None:
        row["target"] = _stored(edit.output, "output", source, out)
    if "task" in data:
        row["task"] = edit.task
    row |= {name: value for name, value in edit.others.items() if name not in row}
    for name, value in row.items():
        if isinstance(value, bytes):
            raise ValueError(f"field '{name}' holds bytes, which are neither references nor target; leave it out")
    return json.loads(json.dumps(row, default=str))  # dates and decimals of a parquet file


def _stored(image: Image, name: str, source: Path, out: Path) -> str:
    """The image's path relative to the prompt file."""
    if isinstance(image, str):
        path = source.parent / user_path(image)
        read_image(path)
        return os.path.relpath(path, out.parent)
    read_image(image, f"{name} image")
    kind = str(PillowImage.open(BytesIO(image)).format).lower()
    path = out.parent / f"{out.stem}-images" / f"{hashlib.sha256(image).hexdigest()[:16]}.{kind}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return os.path.relpath(path, out.parent)
