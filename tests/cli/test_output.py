"""How commands print."""

from __future__ import annotations

import pytest

from blip3o_rl.cli.output import print_table, table


def test_a_table_in_a_file_has_one_line_per_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = table("name", *(f"column {number}" for number in range(20)))
    rows.add_row("a", *["0.123456"] * 20)
    print_table(rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].count("0.123456") == 20
