"""The verb that looks at the machine."""

from __future__ import annotations

import logging
import os

import typer
from rich.console import Console


def doctor() -> None:
    """Says in one screen whether this machine can run it, and what to do where it cannot."""
    from blip3o_rl.training import doctor as checks

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.disable(logging.WARNING)
    console = Console()
    with console.status("loading torch, verl and vLLM"):
        found = checks.examine()
    console.print(checks.report(found))
    problems = [check for check in found if check.level == checks.BROKEN]
    if problems:
        console.print(f"[bold red]{len(problems)} problem(s) keep it from running[/]; see the remedies above")
        raise typer.Exit(1)
    console.print("[green]this machine can run it[/]; start with: make quickstart")
