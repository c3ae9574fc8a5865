"""`report --serve`: the page of runs that still go on, in a browser.

The page is the file that `report` writes, made again when the run has written something. A header asks the browser to
load it again, so that the page itself stays free of scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from blip3o_rl.report.run_folder import RunFolder

REFRESH_S = 20


def create_app(folders: Sequence[RunFolder], write: Callable[[], Path]) -> Starlette:
    """The page of the runs in `folders` at `/`; `write` makes it and returns its file."""
    made: dict[str, object] = {}

    def show(request: Request) -> Response:
        state = [_state(folder) for folder in folders]
        if made.get("state") != state:
            made.update(file=write(), state=state)
        return FileResponse(str(made["file"]), headers={"Refresh": str(REFRESH_S), "Cache-Control": "no-store"})

    return Starlette(routes=[Route("/", show)])


def _state(folder: RunFolder) -> list[tuple[str, int]]:
    """What changes when a run has written something that its page shows."""
    files = [folder.metrics, *folder.path.glob("eval*.json"), *folder.path.glob("*.jsonl"), *folder.images.glob("*")]
    return sorted((str(file), file.stat().st_mtime_ns) for file in files if file.is_file())
