"""Two evaluations of a run next to each other: what may be compared, and the images of the same prompts and seeds.

A comparison is only printed if both evaluations had the same settings, prompts and seeds. They may differ: a run can be
resumed with other `run.eval_*`, `render.*` or `model.scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_rl.data.images import read_image
from blip3o_rl.io import read_json
from blip3o_rl.report.run_folder import RunFolder

SCORE, REWARD = "overall", "reward"
"""Keys of an evaluation file: its score, and the value of the run's own rewards (null where they failed)."""
_DIGESTS = ("prompts_sha256", "rewards_sha256")
"""Settings that older evaluations do not have."""


@dataclass(frozen=True)
class Pair:
    """The first image of a held-out prompt before and after training, uint8 [H, W, 3], with its scores."""

    prompt: str
    before: np.ndarray
    after: np.ndarray
    score_before: float
    score_after: float


@dataclass(frozen=True)
class Comparison:
    """Both evaluations of a run.

    Attributes:
        difference: why they must not be compared, one line; empty if they may.
        score, reward: (before, after), or None where there is no such number to compare.
        pairs: of the prompts whose images were saved both times.
    """

    difference: str
    score: tuple[float, float] | None
    reward: tuple[float, float] | None
    pairs: list[Pair]


def compare(folder: RunFolder) -> Comparison | None:
    """The comparison of a run; None if an evaluation is missing or has no score."""
    if not folder.eval_before.is_file() or not folder.eval_after.is_file():
        return None
    before, after = read_json(folder.eval_before), read_json(folder.eval_after)
    score = _numbers(before, after, SCORE)
    if score is None:
        return None
    difference = _difference(before, after)
    if difference:
        return Comparison(difference, None, None, [])
    reward = _numbers(before, after, REWARD) if _agree(before, after, "rewards_sha256") else None
    return Comparison("", score, reward, _pairs(folder.path, before, after))


def _numbers(before: dict[str, Any], after: dict[str, Any], key: str) -> tuple[float, float] | None:
    a, b = before.get(key), after.get(key)
    return (float(a), float(b)) if isinstance(a, int | float) and isinstance(b, int | float) else None


def _agree(before: dict[str, Any], after: dict[str, Any], key: str) -> bool:
    """Whether a setting is the same, or one evaluation is too old to have it."""
    a, b = before.get("settings", {}), after.get("settings", {})
    return key not in a or key not in b or a[key] == b[key]


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    a, b = before.get("settings", {}), after.get("settings", {})
    keys = [key for key in dict.fromkeys((*a, *b)) if key not in _DIGESTS and a.get(key) != b.get(key)]
    if keys:
        return ", ".join(f"{key} {a.get(key)} before and {b.get(key)} after" for key in keys)
    shown = [[(image.get("prompt"), image.get("seed")) for image in one.get("images", [])] for one in (before, after)]
    if shown[0] != shown[1] or not _agree(before, after, "prompts_sha256"):
        return "other prompts or seeds after than before"
    return ""


def _pairs(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> list[Pair]:
    found = []
    for a, b in zip(before.get("images", []), after.get("images", []), strict=True):
        files = [folder / str(image["file"]) for image in (a, b) if image.get("file")]
        if len(files) == 2 and all(file.is_file() for file in files):
            pixels = [read_image(file) for file in files]
            found.append(Pair(a["prompt"], pixels[0], pixels[1], a["partial"], b["partial"]))
    return found
