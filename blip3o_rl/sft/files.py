"""Which files hold the rows: paths, shell patterns and webdataset's braces to a list."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path, whole_characters

COMPRESSED = (".tar.gz", ".tgz")
LINES = (".jsonl", ".jsonl.gz")
KINDS = (".tar", *COMPRESSED, *LINES)


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """The files that paths, shell patterns and webdataset's braces name, in their order; one named twice counts twice.

    Raises:
        UserError: nothing is named, a pattern finds nothing, a file is missing, empty or of an unknown kind.
    """
    named = [patterns] if isinstance(patterns, str) else patterns
    if not named:
        raise UserError("data.files: empty, so there is no data; name .tar or .jsonl files, such as data.files=[a.tar]")
    found = []
    for pattern in (one for several in named for one in expand_braces(several)):
        literal = user_path(pattern)
        paths = [str(literal)] if literal.exists() else sorted(glob.glob(str(literal), recursive=True))
        if not paths:
            raise UserError(
                f"data.files: {pattern}: there is no such file; give .tar or .jsonl files, or patterns such as "
                "pairs-*.tar or pairs-{000..009}.tar"
            )
        found += [Path(path).resolve() for path in paths]
    for path in found:
        if not path.name.endswith(KINDS):
            raise UserError(f"{path}: of an unknown kind; give {', '.join(KINDS)}")
        if whole_characters(str(path)) != str(path):
            raise UserError(f"{whole_characters(str(path))}: the name is not UTF-8; rename the file or its folder")
        if not path.is_file() or not path.stat().st_size:
            raise UserError(f"{path}: no file with anything in it; leave it out of data.files")
    return found


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` as bash and webdataset expand them; an existing file is meant as it is."""
    if os.path.exists(user_path(pattern)):
        return [pattern]
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = (_choices(part) if number % 2 else [part] for number, part in enumerate(parts))
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(span[1]), int(span[2])
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        return [str(number).zfill(len(span[1])) for number in numbers]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]
