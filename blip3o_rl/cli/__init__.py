"""The command line, one file per command; `blip3o_rl.cli.run(["train", "recipes/shapes"])` is `blip3o-rl train ...`."""

from __future__ import annotations


def run(arguments: list[str]) -> int:
    """Runs one command line in this process and returns its exit code; see `main.run`."""
    from blip3o_rl.cli import main

    return main.run(arguments)
