"""A reward's own environment has what serving that reward imports, and nothing else is imported there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REWARDS = Path(__file__).parents[2] / "rewards"
SAME = {"opencv-python-headless": "opencv", "opencv-python": "opencv", "opencv-contrib-python": "opencv"}
"""Three packages for one module."""
OWN = {"PIL", "cv2", "fastapi", "httpx", "numpy", "psutil", "pydantic", "rich", "starlette", "typer", "uvicorn", "yaml"}
"""What our own code imports there. Libraries import optional ones, too, that happen to be installed here."""
PROGRAM = """
import importlib, importlib.metadata, json, sys
serving = ("cli.main", "cli.rewards_serve", "machine", "scoring.remote.service")
for name in (*(f"blip3o_rl.{name}" for name in serving), *sys.argv[1:]):
    importlib.import_module(name)
owners = importlib.metadata.packages_distributions()
files = {name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(json.dumps({name: owners[name] for name in files if name in owners}))
"""


def listed(file: Path) -> set[str]:
    """Names in a list of pinned requirements."""
    names = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==", file.read_text(), re.MULTILINE)
    return {SAME.get(normal(name), normal(name)) for name in names}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("ocr/environments/paddle.txt", "blip3o_rl.rewards.ocr.paddle"),
        ("geneval/environments/mmdet.txt", "blip3o_rl.rewards.geneval.reward"),
    ],
)
def test_what_a_service_imports_is_in_its_environment(file, module):
    done = subprocess.run([sys.executable, "-c", PROGRAM, module], check=True, capture_output=True, text=True)
    imported = json.loads(done.stdout)
    assert "torch" not in imported, "a service of a light reward starts without torch"
    lacking = {
        name: owners
        for name, owners in imported.items()
        if name in OWN and not {SAME.get(normal(owner), normal(owner)) for owner in owners} & listed(REWARDS / file)
    }
    assert lacking == {}
