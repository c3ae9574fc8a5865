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

import pyarrow as pa
import pyarrow.parquet as pq

from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.data.references import ReferenceImage, prompt_key
from blip3o_rl.model.token_layout import Task


@dataclass(frozen=True)
class TableRow:
    """A prompt as the agent loop gets it: its number in the table, id, metadata, references, whether it is held out."""

    index: int
    id: str
    metadata: Mapping[str, Any]
    held_out: bool = False
    references: tuple[ReferenceImage, ...] = ()

    @property
    def prompt(self) -> str:
        return str(self.metadata["prompt"])

    @property
    def key(self) -> str:
        """See `references.prompt_key`."""
        return prompt_key(self.prompt, (reference.sha256 for reference in self.references))

    @property
    def task(self) -> Task | None:
        """The field `task` of an edit; None where it follows from the instruction."""
        return self.metadata.get("task") if self.references else None


def write_table(rows: Sequence[PromptRow], file: Path, data_source: str, held_out: bool = False) -> None:
    """Writes a parquet file and its folder; `data_source` is verl's name for where the prompts came from."""
    table = [
        {
            "data_source": data_source,
            "prompt": [{"role": "user", "content": row.prompt}],
            "ability": "text_to_image",
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {
                "index": index,
                "id": row.id,
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
    references = tuple(ReferenceImage(**fields) for fields in json.loads(extra_info["references"]))
    return TableRow(int(extra_info["index"]), extra_info["id"], metadata, bool(extra_info["held_out"]), references)
