"""`blip3o-rl rewards new`."""

from __future__ import annotations

import keyword
import shlex
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.errors import UserError


def new(
    name: Annotated[str, typer.Argument(help="a Python name, for example my_goal")],
    folder: Annotated[Path, typer.Option(help="where the two files go")] = Path(),
) -> None:
    """Writes a commented reward to start from, NAME.py, and its test, test_NAME.py."""
    from blip3o_rl.io import write_text

    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"rewards new {name}: not a name for a Python function; use letters, digits and underscores")
    templates = resources.files("blip3o_rl.scoring.authoring") / "templates"
    texts = {
        folder / file.replace("reward", name): (templates / file).read_text(encoding="utf-8").replace("NAME", name)
        for file in ("reward.py", "test_reward.py")
    }
    for path in texts:
        if path.exists():
            raise UserError(f"{path}: exists already and is not overwritten; choose another name or --folder")
    for path, text in texts.items():
        write_text(path, text)
    reward, test = texts
    check = shlex.join(["blip3o-rl", "rewards", "check", f"{reward}:{name}"])
    print(f"{reward}\n{test}\ntry it: {check} && {shlex.join(['pytest', str(test)])}")
