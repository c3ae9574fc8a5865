"""Picture files and their prompts, for scoring pictures that no run has just drawn.

A picture's prompt comes from a prompt file, whose lines name it (`{"image": "a.png", "prompt": ...}`) or have the very
prompt that the PNG carries; or, without a prompt file, from the PNG alone: `blip3o-rl generate` writes it there.
Metadata such as GenEval's `include` come from prompt files only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blip3o_rl.data.images import read_image, read_text_chunks
from blip3o_rl.data.prompts import PromptRow, read_prompts
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Sample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Picture:
    """A file and the prompt it is to show."""

    file: Path
    row: PromptRow

    def sample(self) -> Sample:
        """Reads the picture.

        Raises:
            UserError: it is none.
        """
        return Sample(self.file.name, self.row.prompt, read_image(self.file), self.row.metadata)


def read_folder(folder: Path, prompts: Path | None = None) -> tuple[list[Picture], list[Path]]:
    """The pictures of a folder by name, and those left out because nothing says what they show.

    Args:
        folder: with PNG, JPEG or WebP files; sub-folders are not read.
        prompts: JSONL prompt file.

    Raises:
        UserError: no such folder, no picture with a prompt in it, a picture that cannot be read, or a line that names
            a picture that is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give one with pictures")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder}: has no pictures ({', '.join(SUFFIXES)}); give a folder that has")
    rows = read_prompts(prompts) if prompts is not None else []
    by_file = _named_files(rows, folder)
    by_prompt = {row.prompt: row for row in rows}
    found, left_out = [], []
    for file in files:
        carried = _carried_prompt(file)
        row = by_file.get(file.name) or by_prompt.get(carried)
        if row is None and prompts is None and carried:
            row = PromptRow(carried, {"prompt": carried}, str(file))
        if row is None:
            left_out.append(file)
        else:
            found.append(Picture(file, row))
    if not found:
        remedy = (
            'name each in a line of it, {"image": "' + files[0].name + '", "prompt": ...}'
            if prompts is not None
            else "give --prompts; pictures made by `blip3o-rl generate` carry their own"
        )
        raise UserError(f"{folder}: nothing says what its {len(files)} pictures show; {remedy}")
    return found, left_out


def _named_files(rows: list[PromptRow], folder: Path) -> dict[str, PromptRow]:
    named: dict[str, PromptRow] = {}
    for row in rows:
        name = row.metadata.get("image")
        if name is None:
            continue
        if not isinstance(name, str) or not (folder / name).is_file():
            raise UserError(f"{row.where}: field 'image' is {name!r}, and {folder} has no such picture; mend the name")
        named[name] = row
    return named


def _carried_prompt(file: Path) -> str:
    """The prompt in a PNG's text chunks; empty if there is none."""
    return read_text_chunks(file).get("prompt", "").strip()
