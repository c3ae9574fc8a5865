"""An evaluation needs no more memory for more images. Two evaluations with vLLM, about a minute each on two cores."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import watch

PEAK = """
import resource, sys
from blip3o_rl.cli.main import run
assert run(sys.argv[1:]) == 0
print("peak", *(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def peaks(folder: Path, prompts: int) -> list[int]:
    """Largest memory (KiB) of `blip3o-rl eval` with 5 images per prompt, and of its engine."""
    words = ["eval", "shapes", "--prompts", str(prompts), "--images", "5", "--batch-size", "20", "--steps", "2"]
    command = [sys.executable, "-c", PEAK, *words, "--out", str(folder / f"{prompts}.json")]
    done = watch.run(command, folder, os.environ, folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(number) for number in done.stdout.split("peak ")[-1].split()]


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    few, many = peaks(tmp_path, 8), peaks(tmp_path, 80)
    assert all(b < 1.1 * a for a, b in zip(few, many, strict=True)), f"40 images {few} KiB, 400 images {many} KiB"
