"""Image files and their prompts, for scoring images that were generated earlier or elsewhere.

What an image was meant to show comes, in this order, from
    a line of the prompt file that names it, `{"image": "cats/a.png", "prompt": ...}`, relative to the folder;
    the line of the prompt file with the very prompt that the PNG carries;
    without a prompt file, GenEval's layout, `00001/samples/0000.png` with its prompt in `00001/metadata.jsonl`;
    or the PNG alone: `blip3o-rl generate` writes the prompt there.
Sub-folders are read, too. Hidden files are not: macOS leaves `._a.png` next to `a.png` in archives.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blip3o_rl.data.images import SUFFIXES, read_image, read_text_chunks
from blip3o_rl.data.prompts import PromptRow, read_prompts
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Sample


@dataclass(frozen=True)
class FolderImage:
    """An image file and the prompt it is to show; `name` is its path in the folder."""

    file: Path
    name: str
    row: PromptRow

    def sample(self) -> Sample:
        """Reads the image and its prompt's references; UserError if one is not readable."""
        references = tuple(reference.load() for reference in self.row.references)
        return Sample(self.name, self.row.prompt, read_image(self.file), self.row.metadata, references=references)


def read_folder(folder: Path, prompts: Path | None = None) -> tuple[list[FolderImage], list[str]]:
    """The images of a folder and its sub-folders, and the names of those left out because nothing says what they show.

    An image that several lines of the prompt file name is there once for each of them.

    Raises:
        UserError: no such folder, no image with a prompt in it, an image that cannot be read, a line that names an
            image that is not there, or two different lines for the prompt that an image carries.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give one with images")
    files = {_key(str(file.relative_to(folder))): file for file in _image_files(folder)}
    if not files:
        raise UserError(f"{folder}: has no images ({', '.join(SUFFIXES)}); give a folder that has")
    pairs: list[tuple[Path, PromptRow]] = []
    by_prompt: dict[str, list[PromptRow]] = defaultdict(list)
    for row in read_prompts(prompts) if prompts is not None else []:
        by_prompt[row.prompt.strip()].append(row)
        if row.metadata.get("image") is not None:
            pairs.append((_named_file(row, folder, files), row))
    left_out = []
    for file in sorted(set(files.values()) - {file for file, _ in pairs}):
        its_row = _by_prompt(file, by_prompt) if prompts is not None else _alone(file)
        if its_row is None:
            left_out.append(_name(file, folder))
        else:
            pairs.append((file, its_row))
    if not pairs:
        remedy = (
            f'name each in a line of it, {{"image": "{left_out[0]}", "prompt": ...}}'
            if prompts is not None
            else "give --prompts; images made by `blip3o-rl generate` carry their own"
        )
        raise UserError(f"{folder}: nothing says what its {len(files)} images show; {remedy}")
    found = [FolderImage(file, _name(file, folder), row) for file, row in pairs]
    return sorted(found, key=lambda image: image.name), left_out


def _image_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = (name for name in folders if not name.startswith("."))
        yield from (Path(parent, n) for n in names if not n.startswith(".") and n.lower().endswith(SUFFIXES))


def _key(name: str) -> str:
    """A path in the folder, however it is written: `./a.png`, `a\\b.png`, composed and decomposed accents."""
    return unicodedata.normalize("NFC", os.path.normpath(name.replace("\\", "/")))


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)


def _named_file(row: PromptRow, folder: Path, files: Mapping[str, Path]) -> Path:
    name = row.metadata["image"]
    if isinstance(name, str) and _key(name) in files:
        return files[_key(name)]
    if isinstance(name, str) and (folder / name).is_file():
        return folder / name  # outside of the folder, hidden, or with an unusual suffix
    raise UserError(f"{row.where}: field 'image' is {name!r}, and {folder} has no such image; fix the name")


def _carried_prompt(file: Path) -> str:
    """The prompt in a PNG's text chunks; empty if there is none."""
    return read_text_chunks(file).get("prompt", "").strip()


def _by_prompt(file: Path, by_prompt: Mapping[str, list[PromptRow]]) -> PromptRow | None:
    """The line with the prompt that a PNG carries."""
    fitting = by_prompt.get(_carried_prompt(file), [])
    for row in fitting[1:]:
        if row.metadata != fitting[0].metadata:
            raise UserError(
                f"{row.where}: has the same prompt as {fitting[0].where} and other fields, and {file} carries this "
                "prompt; name the images in the lines"
            )
    return fitting[0] if fitting else None


def _alone(file: Path) -> PromptRow | None:
    """The prompt of an image without a prompt file."""
    benchmark = file.parent.parent / "metadata.jsonl"
    if file.parent.name == "samples" and benchmark.is_file():
        return read_prompts(benchmark)[0]
    carried = _carried_prompt(file)
    return PromptRow(carried, {"prompt": carried}, str(file)) if carried else None
