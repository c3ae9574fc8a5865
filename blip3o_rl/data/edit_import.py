"""Published editing data sets -> prompt rows with `references`, for reinforcement learning.

Images that are bytes in a table become files next to the prompt file, each once; paths are written relative to it. A
row that cannot be used is a line of the report and is left out, up to a limit. Every row is checked like a prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from blip3o_rl.data.edit_benchmarks import imgedit_items, row_of
from blip3o_rl.data.edit_rows import Image, read_edit
from blip3o_rl.data.images import read_image
from blip3o_rl.data.prompts import check_row, prompt_line
from blip3o_rl.data.references import check_size
from blip3o_rl.data.text_files import open_lines, parse_json, read_records, read_text
from blip3o_rl.errors import UserError
from blip3o_rl.io import replacing


@dataclass(frozen=True)
class Imported:
    """Prompt rows, and one line per row that was left out."""

    rows: list[dict[str, Any]]
    report: list[str]


def import_edits(source: Path, out: Path, max_bad: int, images: Path | None = None) -> Imported:
    """Reads JSON lines, parquet or ImgEdit's JSON for a prompt file `out`; writes the images that the rows hold.

    Args:
        images: the folder that paths of images are relative to; None for that of the source.

    Raises:
        UserError: the file cannot be read, has no usable row, or more than `max_bad` bad ones.
    """
    found = Imported([], [])
    for where, value in _records(source):
        try:
            found.rows.append(_row(value, where, images or source.parent, out))
        except (ValueError, UserError) as error:
            found.report.append(str(error) if isinstance(error, UserError) else f"{where}: {error}")
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
    elif source.suffix == ".json":
        try:
            yield from ((f"{source}: {key}", row) for key, row in imgedit_items(parse_json(read_text(source))))
        except ValueError as error:
            raise UserError(f"{source}: {error}") from error
    else:
        yield from ((f"{source}:{number}", line) for number, line in open_lines(source))


def _row(value: Any, where: str, images: Path, out: Path) -> dict[str, Any]:
    data = parse_json(value, finite=True) if isinstance(value, str) else value
    if not isinstance(data, dict):
        raise ValueError(f"is {type(data).__name__}, not a JSON object")
    edit = read_edit(row_of(data))
    row: dict[str, Any] = {"prompt": edit.instruction}
    row["references"] = [_stored(image, f"{where}: reference image", out) for image in edit.references]
    if edit.output is not None:
        row["target"] = _stored(edit.output, f"{where}: output image", out)
    if "task" in data:
        row["task"] = edit.task
    row |= {name: value for name, value in edit.others.items() if name not in row}
    for name, value in row.items():
        if isinstance(value, bytes):
            raise ValueError(f"field '{name}' holds bytes, which are neither references nor target; leave it out")
    plain = json.loads(json.dumps(row, default=str))  # dates and decimals of a parquet file
    return prompt_line(check_row(plain, where, images), out)


def _stored(image: Image, name: str, out: Path) -> str:
    """The path of an image; its bytes are written next to the prompt file."""
    if isinstance(image, str):
        return image
    check_size(read_image(image, name), name)
    kind = str(PillowImage.open(BytesIO(image)).format).lower()
    path = (out.parent / f"{out.stem}-images" / f"{hashlib.sha256(image).hexdigest()[:16]}.{kind}").absolute()
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_bytes(image)
    return str(path)
