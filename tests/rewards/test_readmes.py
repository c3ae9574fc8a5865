"""Each built-in reward's README says what a user needs before optimizing it, and names every key."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from blip3o_rl.rewards.edit.benchmarks import GEditSettings, ImgEditSettings
from blip3o_rl.rewards.edit.judge import EditJudgeSettings
from blip3o_rl.rewards.preference.chat import ChatSettings
from blip3o_rl.rewards.preference.judge import JudgeSettings
from blip3o_rl.rewards.preference.unified import UnifiedSettings
from blip3o_rl.scoring.loading import load_installed
from blip3o_rl.scoring.registry import BUILT_IN

FOLDERS = sorted(file.parent for file in (Path(__file__).parents[2] / "rewards").glob("*/__init__.py"))
JUDGES = {
    **{"judge": JudgeSettings, "unifiedreward": UnifiedSettings, "questions": ChatSettings},
    **{"edit_judge": EditJudgeSettings, "imgedit": ImgEditSettings, "gedit": GEditSettings},
}


def sections(folder: Path) -> dict[str, str]:
    """Heading of the second level -> the text below it."""
    _, *parts = re.split(r"^## (.+)$", (folder / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_readme_says_measure_range_cost_hacks_and_calibration(folder):
    found = sections(folder)
    assert "range" in found["What it measures"].lower()
    assert re.search(r"\d m?s\b|seconds", found["Cost"])
    assert len(re.findall(r"^(?:- |\| )", found["How it can be hacked"], re.MULTILINE)) >= 5
    assert "hack" in found["Calibration"] and "tests/rewards/" in found["Calibration"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_readme_names_every_key(name):
    place = BUILT_IN[name]
    text = (next(f for f in FOLDERS if f".{f.name}." in place) / "README.md").read_text(encoding="utf-8")
    keys = JUDGES[name].model_fields if name in JUDGES else inspect.signature(load_installed(place, name)).parameters
    named = set(re.findall(r"`(?:\w+\.)?(\w+)(?::[^`]*)?`", text)) | set(re.findall(r"[{ ](\w+): ", text))
    assert f"`{name}`" in text or f"# {name}" in text
    assert [key for key in keys if key not in named and key != "name"] == []
