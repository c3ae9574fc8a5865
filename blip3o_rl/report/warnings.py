"""What the monitors of a run reported: `warnings.jsonl`, one line per warning, each with an image of the step.

    {"step": 31, "statistic": "dark_share", "baseline": 0.45, "value": 0.93, "limit": 0.3, "deviation": 0.02,
     "stop": false, "text": "dark_share 0.450 -> 0.930, pictures go dark ...", "picture": "warnings/step_000031-...png"}

The picture's path is relative to the run folder, which may be moved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o_rl.io import append_line, read_lines, write_text
from blip3o_rl.report.run_folder import RunFolder


def file(folder: RunFolder) -> Path:
    """Where the warnings of a run are written."""
    return folder.path / "warnings.jsonl"


def picture(folder: RunFolder, step: int, statistic: str) -> Path:
    """Where the picture of a warning goes."""
    return folder.path / "warnings" / f"step_{step:06d}-{statistic.replace('/', '-')}.png"


def append(folder: RunFolder, warning: Mapping[str, Any], shown: Path) -> None:
    """Adds one warning with its picture, which lies in the run folder already."""
    append_line(file(folder), {**warning, "picture": str(shown.relative_to(folder.path))})


def read(folder: RunFolder) -> list[dict[str, Any]]:
    """All warnings of a run in their order; `picture` is an absolute path."""
    return [{**line, "picture": folder.path / line["picture"]} for line in read_lines(file(folder))]


def truncate_after(folder: RunFolder, step: int) -> None:
    """Drops the warnings and pictures of steps after `step`: a run that resumes there makes them again."""
    kept = []
    for line in read_lines(file(folder)):
        if line["step"] <= step:
            kept.append(line)
        else:
            (folder.path / line["picture"]).unlink(missing_ok=True)
    if file(folder).exists():
        write_text(file(folder), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
