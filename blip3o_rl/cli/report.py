"""`blip3o-rl report`: the page and the table of a run, or several runs next to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.cli import options
from blip3o_rl.cli.output import print_table
from blip3o_rl.errors import UserError


def report(
    context: typer.Context,
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="run folders; by default the latest in runs/")
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="draw boxes and read texts over the images that changed most")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="show the page in a browser and keep it up to date while runs go on")
    ] = False,
    host: Annotated[str, typer.Option(help="address of --serve")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port of --serve; 0: a free one", min=0, max=65535)] = 8050,
) -> None:
    """Writes report.html of a run: before and after, curves, images, monitors, time by stage, configuration. Several
    runs are shown next to each other in outputs/report.html."""
    from blip3o_rl.report import page, summary
    from blip3o_rl.report.run_folder import RunFolder

    if overlay and len(folders or ()) > 1:
        raise UserError("--overlay: the page of several runs has no images; report one run")
    if not serve and {"--host", "--port"} & {*options.given_options(context)}:
        raise UserError("--host and --port: are of --serve; give it as well, or leave them out")
    runs = [RunFolder.open(folder) for folder in folders or ()] or [RunFolder.latest()]
    for run in runs:
        print_table(summary.table(summary.summarize(run)))
    several = Path("outputs/report.html").resolve()

    def write() -> Path:
        return page.write(runs[0], overlay=overlay) if len(runs) == 1 else page.write_several(runs, several)

    print(write())
    if serve:
        from blip3o_rl.http_server import serve as serve_app
        from blip3o_rl.report.live import create_app

        serve_app(create_app(runs, write), host, port, lambda url: print(f"{url}   (Ctrl-C ends it)", flush=True))
