"""What the monitors of a run reported: `warnings.jsonl`, one line per warning, each with an image of the step if images
are what drifted.

    {"step": 31, "statistic": "dark_share", "baseline": 0.45, "value": 0.93, "limit": 0.3, "deviation": 0.02,
     "stop": false, "text": "dark_share 0.450 -> 0.930, images go dark ...", "image": "warnings/step_000031-...png"}

The image's path is relative to the run folder, which may be moved, or null. Runs of earlier versions call it `picture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o_rl.io import append_line, read_lines, write_lines
from blip3o_rl.report.run_folder import RunFolder


def file(folder: RunFolder) -> Path:
    """Where the warnings of a run are written."""
    return folder.path / "warnings.jsonl"


def image_file(folder: RunFolder, step: int, statistic: str) -> Path:
    """Where the images of a warning go."""
    return folder.path / "warnings" / f"step_{step:06d}-{statistic.replace('/', '-')}.png"


def append(folder: RunFolder, warning: Mapping[str, Any], image: Path | None) -> None:
    """Adds one warning with its image, which is in the run folder already."""
    append_line(file(folder), {**warning, "image": image and str(image.relative_to(folder.path))})


def read(folder: RunFolder) -> list[dict[str, Any]]:
    """All warnings of a run in their order; `image` is an absolute path or None."""
    return [{**line, "image": _image(folder, line)} for line in read_lines(file(folder))]


def truncate_after(folder: RunFolder, step: int) -> None:
    """Drops the warnings and images of steps after `step`: a run that resumes there makes them again."""
    if not file(folder).exists():
        return
    lines = read_lines(file(folder))
    for line in lines:
        if line["step"] > step and (image := _image(folder, line)):
            image.unlink(missing_ok=True)
    write_lines(file(folder), [line for line in lines if line["step"] <= step])


def _image(folder: RunFolder, line: Mapping[str, Any]) -> Path | None:
    name = line.get("image") or line.get("picture")
    return folder.path / name if name else None
