"""`blip3o-rl report`: the page and the table of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    folder: Annotated[Path | None, typer.Argument(help="run folder; by default the latest in runs/")] = None,
) -> None:
    """Writes report.html of a run: before and after, curves, time by stage, images, monitors, configuration."""
    from blip3o_rl.report import page, summary
    from blip3o_rl.report.run_folder import RunFolder

    run = RunFolder.latest() if folder is None else RunFolder.open(folder)
    found = summary.summarize(run)
    Console().print(summary.table(found))
    print(page.write(run, found))
