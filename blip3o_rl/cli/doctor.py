"""`blip3o-rl doctor`: can this machine run it? Every finding on one screen, each problem with its remedy."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from blip3o_rl.machine import Finding

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "broken": ("✗", "bold red")}


def doctor() -> None:
    """Says in one screen whether this machine can run it, and what to do where it cannot."""
    from blip3o_rl import machine
    from blip3o_rl.training import installation
    from blip3o_rl.training.preflight import SMALLEST

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.disable(logging.WARNING)
    console = Console()
    with console.status("loading torch, verl and vLLM"):
        found = [*machine.findings(SMALLEST), *installation.examine()]
    console.print(screen(found))
    broken = sum(finding.level == machine.BROKEN for finding in found)
    if broken:
        console.print(f"[bold red]{broken} problem(s) keep it from running[/]; see the remedies above")
        raise typer.Exit(1)
    console.print("[green]this machine can run it[/]; start with: make quickstart")


def screen(findings: Iterable[Finding]) -> Table:
    """The findings as a table, with a line below each problem."""
    rows = Table.grid(padding=(0, 1))
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True, style="bold")
    rows.add_column(overflow="fold")
    for finding in findings:
        mark, style = MARKS[finding.level]
        rows.add_row(Text(mark, style=style), finding.name, Text(finding.detail))
        if finding.level != "ok":
            rows.add_row("", "", Text(f"-> {finding.remedy}", style=style))
    return rows
