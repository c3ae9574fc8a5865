"""`blip3o-rl report`: the page and the table of a run, or several runs next to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="run folders; by default the latest in runs/")
    ] = None,
) -> None:
    """Writes report.html of a run: before and after, curves, images, monitors, time by stage, configuration. Several
    runs are shown next to each other in outputs/report.html."""
    from blip3o_rl.report import page, summary
    from blip3o_rl.report.run_folder import RunFolder

    runs = [RunFolder.open(folder) for folder in folders or ()] or [RunFolder.latest()]
    for run in runs:
        Console().print(summary.table(summary.summarize(run)))
    print(page.write(runs[0]) if len(runs) == 1 else page.write_several(runs, Path("outputs/report.html").resolve()))
