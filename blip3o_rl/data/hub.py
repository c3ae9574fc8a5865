"""Hugging Face data sets as prompt records: a folder, or a name on the hub.

Images, audio and video are left out, because a prompt file holds text; the caller says which columns those were. The
`datasets` library is imported when a data set is opened, since it takes seconds.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from blip3o_rl.data.columns import prompt_columns, refuse_editing, without_nulls
from blip3o_rl.data.text_files import Record
from blip3o_rl.errors import UserError, in_one_line
from blip3o_rl.io import user_path


def read_dataset(name: str, split: str | None = None, subset: str | None = None) -> tuple[list[Record], list[str]]:
    """The rows of a data set, and the columns that were left out.

    Args:
        name: a folder of data files (parquet, JSON, CSV, Arrow) or one that `save_to_disk` wrote; or owner/name.
        split: of several.
        subset: the data set's configuration, where it has several.

    Raises:
        UserError: it cannot be opened, has several splits and none is chosen, or has no column of prompts.
    """
    table = _opened(name, split, subset)
    media = [column for column, feature in table.features.items() if hasattr(feature, "decode_example")]
    refuse_editing(name, media)
    table = table.remove_columns(media)
    names = prompt_columns(name, table.column_names, "prompt")
    rows = []
    for number, row in enumerate(table, start=1):
        value = without_nulls(dict(zip(names, row.values(), strict=True)))
        where = f"{name}:row {number}"
        rows.append(Record(where, json.loads(json.dumps(value, default=partial(_text, where)))))
    return rows, media


def _text(where: str, value: Any) -> str:
    """A value that JSON has no type for."""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise UserError(f"{where}: holds a {type(value).__name__}, which is no text; remove that column")


def _opened(name: str, split: str | None, subset: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    folder = user_path(name)
    given = str(folder) if folder.is_dir() else name
    saved = any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    if saved and subset is not None:
        raise UserError(f"--subset {subset}: {name} was saved without subsets; leave it out")
    try:
        found = datasets.load_from_disk(given) if saved else datasets.load_dataset(given, subset)
    except Exception as error:  # of many kinds: network, formats, missing configurations
        reason = in_one_line(error, 300)
        raise UserError(f"{name}: cannot be opened as a data set ({type(error).__name__}: {reason})") from error
    if not isinstance(found, datasets.DatasetDict):
        if split is not None:
            raise UserError(f"--split {split}: {name} was saved without splits; leave it out")
        return found
    if split is None and len(found) > 1:
        raise UserError(f"{name}: has the splits {', '.join(found)}; choose one with --split")
    if split is not None and split not in found:
        raise UserError(f"--split {split}: {name} has {', '.join(found)}")
    return found[split or next(iter(found))]
