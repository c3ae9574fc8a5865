"""Prompt rows <-> the parquet table that verl reads: what the launcher writes, the agent loop reads back.

verl wants `prompt` as a chat and hands the other columns to the agent loop. The metadata, which include the prompt, are
one JSON string, because a parquet struct column would give every row the union of all rows' keys, filled with nulls.
References are in it as absolute paths or data URIs, with the hashes of the check.
Held-out rows say so: verl's validation sends them to the same agent loop as the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.data.references import ReferenceImage


@dataclass(frozen=True, kw_only=True)
class TableRow(PromptRow):
    """A prompt as the agent loop gets it: with its number in the table, and whether it is held out."""

    index: int
    held_out: bool = False


def write_table(rows: Sequence[PromptRow], file: Path, data_source: str, held_out: bool = False) -> None:
    """Writes a parquet file and its folder; `data_source` is verl's name for where the prompts came from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = [
        {
            "data_source": data_source,
            "prompt": [{"role": "user", "content": row.prompt}],
            "ability": "text_to_image",
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {
                "index": index,
                "where": row.where,
                "metadata": json.dumps(dict(row.metadata)),
                "held_out": held_out,
                "references": json.dumps([asdict(reference) for reference in row.references]),
            },
        }
        for index, row in enumerate(rows)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), file)


def read_row(extra_info: Mapping[str, Any]) -> TableRow:
    """Reads the column `extra_info` of one row."""
    metadata = json.loads(extra_info["metadata"])
    return TableRow(
        metadata["prompt"],
        metadata,
        extra_info["where"],
        tuple(ReferenceImage(**fields) for fields in json.loads(extra_info["references"])),
        index=int(extra_info["index"]),
        held_out=bool(extra_info["held_out"]),
    )
