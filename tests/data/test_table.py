"""What verl reads, and that the agent loop gets back what the launcher wrote."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.data.table import TableRow, read_row, write_table

NESTED = {"prompt": "two squares", "include": [{"class": "square", "count": 2}], "target": 0.5}
FREE = {"prompt": "ein Schild \u201eZ\u00fcrich\u201c", "other": None}


def test_the_table_has_verls_columns_and_gives_every_row_back(tmp_path: Path) -> None:
    rows = [PromptRow(line["prompt"], line, f"p.jsonl:{n}") for n, line in enumerate((NESTED, FREE), 1)]
    write_table(rows, tmp_path / "deep" / "t.parquet", "shapes")
    table = pq.read_table(tmp_path / "deep" / "t.parquet").to_pylist()
    assert list(table[0]) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert table[0]["data_source"] == "shapes" and table[0]["reward_model"]["style"] == "rule"
    assert [row["prompt"] for row in table] == [[{"role": "user", "content": row.prompt}] for row in rows]
    found = [read_row(row["extra_info"]) for row in table]
    assert found == [TableRow(row.prompt, row.metadata, row.where, index=number) for number, row in enumerate(rows)]
    assert [row.prompt for row in found] == [row.prompt for row in rows]
