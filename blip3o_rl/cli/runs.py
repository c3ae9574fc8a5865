"""What `train` and `sft` share: the form of their arguments, and the last line of an interrupted run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl import terminal
from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE [KEY=VALUE]...", help="recipe folder, then Hydra overrides of it; @FILE has one per line"
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(help="run folder to continue from its last complete checkpoint, with its own configuration"),
]


def recipe_and_overrides(arguments: list[str] | None, command: str, example: str) -> tuple[str, list[str]]:
    """The arguments of a new run.

    Raises:
        UserError: there is no recipe; the message has the example.
    """
    recipe, *overrides = arguments or [""]
    if not recipe or "=" in recipe:
        raise UserError(f"{command}: no recipe given; for example blip3o-rl {command} {example}")
    return recipe, with_files(overrides)


def with_files(overrides: list[str]) -> list[str]:
    """Overrides with the lines of a file in the place of `@FILE`; empty lines and comments (#) are left out.

    Raises:
        UserError: there is no such file, or it is no text.
    """
    from blip3o_rl.data.text_files import read_text

    found: list[str] = []
    for override in overrides:
        if not override.startswith("@"):
            found.append(override)
            continue
        file = user_path(override[1:])
        if not file.is_file():
            raise UserError(f"override '{override}': no such file; give one with an override per line")
        lines = (line.strip() for line in read_text(file).split("\n"))
        found += [line for line in lines if line and not line.startswith("#")]
    return found


@contextmanager
def interruptible(again: str = "") -> Iterator[None]:
    """Ends the command with its exit code after Ctrl-C or SIGTERM.

    Args:
        again: how to continue, unless the interruption carries a command; empty if nothing had begun.
    """
    terminal.catch_sigterm()
    try:
        yield
    except KeyboardInterrupt as error:
        command = error.args[0] if error.args else again
        print("interrupted" + (f"; go on with: {command}" if command else ""), file=sys.stderr)
        raise typer.Exit(terminal.exit_code(error)) from None
