"""Image-text pairs for supervised fine-tuning: webdataset tar files and JSON lines, and how a picture is prepared.

    photos-000.tar     key.jpg | key.png | key.webp beside key.txt (or key.json with the caption field)
    pairs.jsonl        {"image": "pictures/1.png", "caption": "a photo of a circle"}, paths relative to the file

A file is read from front to back, so that a tar can be larger than memory and lie on a slow disk. What is wrong with a
pair is kept with it, under the name of file and line or member; who reads decides what to do about it.

Pictures are prepared as BLIP3o-NEXT does it: the image tokenizer sees the whole picture squashed to a square, the
autoencoder the centre square (shorter side resized, then cropped). For a picture that is not square the two differ;
`crop="both"` cuts out the centre square for both.
"""

from __future__ import annotations

import glob
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip3o_rl.data.images import read_image
from blip3o_rl.errors import UserError
from blip3o_rl.model.editing import autoencoder_pixels
from blip3o_rl.model.pixels import squashed

PICTURES = ("jpg", "jpeg", "png", "webp")
TARS = (".tar", ".tar.gz", ".tgz")
LINES = (".jsonl",)
CROPS = ("target", "both")


class BadPair(Exception):
    """A pair that cannot be used; its text is the reason."""


@dataclass(frozen=True)
class Fields:
    """Names of the fields in a JSON object."""

    image: str = "image"
    caption: str = "caption"


@dataclass(frozen=True)
class RawPair:
    """A pair as it lies in the file. `where` is "file:line" or "file:key"; `fault` says why it cannot be used."""

    where: str
    caption: str = ""
    picture: bytes | Path = b""
    fault: str = ""


@dataclass(frozen=True)
class Pair:
    """A pair, prepared.

    square: uint8 [S, S, 3] of the image tokenizer's side S.
    pixels: the autoencoder's input, float32 [3, S, S] in [-1, 1].
    """

    where: str
    caption: str
    square: np.ndarray
    pixels: torch.Tensor


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """The files that paths and shell patterns name, in their order; one named twice is read twice in a pass.

    Raises:
        UserError: nothing is named, a pattern finds nothing, a file is missing, empty or of an unknown kind.
    """
    named = [patterns] if isinstance(patterns, str) else list(patterns)
    if not named:
        raise UserError("data.files: empty, so there is no data; name .tar or .jsonl files, such as data.files=[a.tar]")
    found = []
    for pattern in named:
        paths = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        if not paths:
            raise UserError(f"data.files: {pattern}: there is no such file; give .tar or .jsonl files, or a pattern")
        found += [Path(path) for path in paths]
    for path in found:
        if not path.name.endswith((*TARS, *LINES)):
            raise UserError(f"{path}: of an unknown kind; give {', '.join((*TARS, *LINES))}")
        if not path.is_file() or not path.stat().st_size:
            raise UserError(f"{path}: no file with anything in it; leave it out of data.files")
    return found


def check_first(files: Sequence[Path], fields: Fields) -> None:
    """Reads the first pair, so that a misspelt field is one error and not a series of bad pairs.

    Raises:
        UserError: the first file has no pair, or its first one is bad.
    """
    first = next(read_pairs(files[0], fields, lambda index: True), None)
    if first is None:
        raise UserError(f"{files[0]}: has no pairs of picture and caption; leave it out of data.files")
    try:
        open_picture(first[1])
    except BadPair as error:
        raise UserError(
            f"{first[1].where}: {error}; mend the first pair, or see data.image_field and data.caption_field"
        ) from error


def read_pairs(path: Path, fields: Fields, wanted: Callable[[int], bool]) -> Iterator[tuple[int, RawPair]]:
    """(index, pair) of a file, front to back; only those whose index is wanted are read into memory."""
    return (read_lines if path.name.endswith(LINES) else read_tar)(path, fields, wanted)


def read_lines(path: Path, fields: Fields, wanted: Callable[[int], bool]) -> Iterator[tuple[int, RawPair]]:
    """Pairs of a file of JSON lines; the index counts lines from 0, blank ones are left out."""
    with path.open("rb") as file:
        for index, line in enumerate(file):
            if wanted(index) and line.strip():
                yield index, _parsed(f"{path}:{index + 1}", partial(_from_line, line, path.parent, fields))


def read_tar(path: Path, fields: Fields, wanted: Callable[[int], bool]) -> Iterator[tuple[int, RawPair]]:
    """Pairs of a tar: consecutive members whose names agree up to the first dot. The index counts such groups."""
    index, key = -1, ""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not extension:
                    continue
                if folder + slash + stem != key or index < 0:
                    if wanted(index) and members:
                        yield index, _from_members(path, key, members, fields)
                    index, key, members = index + 1, folder + slash + stem, {}
                if wanted(index):
                    content = tar.extractfile(member)
                    members[extension.lower()] = content.read() if content else b""
            if wanted(index) and members:
                yield index, _from_members(path, key, members, fields)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if wanted(max(index, 0)):
            where = f"{path}:{key}" if key else str(path)
            yield max(index, 0), RawPair(where, fault=f"the tar is not readable from here on ({error})")


def _parsed(where: str, read: Callable[[], tuple[str, bytes | Path]]) -> RawPair:
    try:
        return RawPair(where, *read())
    except BadPair as error:
        return RawPair(where, fault=str(error))


def _from_line(line: bytes, folder: Path, fields: Fields) -> tuple[str, Path]:
    data = _json(line)
    image = data.get(fields.image)
    if not isinstance(image, str) or not image:
        raise BadPair(f"field '{fields.image}' is missing or no path of a picture")
    return _caption(data.get(fields.caption), f"field '{fields.caption}'"), folder / Path(image).expanduser()


def _from_members(path: Path, key: str, members: dict[str, bytes], fields: Fields) -> RawPair:
    def read() -> tuple[str, bytes]:
        picture = next((members[kind] for kind in PICTURES if kind in members), None)
        if picture is None:
            raise BadPair(f"no picture among its members (.{', .'.join(PICTURES)})")
        if "txt" in members:
            return _caption(_text(members["txt"]), f"{key}.txt"), picture
        if "json" in members:
            return _caption(_json(members["json"]).get(fields.caption), f"field '{fields.caption}'"), picture
        raise BadPair("no caption among its members (.txt, or .json with the caption field)")

    return _parsed(f"{path}:{key}", read)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadPair(f"caption is not UTF-8 ({error.reason})") from error


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadPair(f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadPair(f"is {type(value).__name__}, not a JSON object")
    return value


def _caption(value: Any, name: str) -> str:
    if value is None:
        raise BadPair(f"{name} is missing")
    if not isinstance(value, str) or not value.strip():
        raise BadPair(f"{name} is empty or no text")
    return value.strip()


def open_picture(raw: RawPair) -> np.ndarray:
    """The picture of a pair: uint8 [H, W, 3], RGB.

    Raises:
        BadPair: the pair's own fault; no such file; not readable as a single picture.
    """
    if raw.fault:
        raise BadPair(raw.fault)
    try:
        return read_image(raw.picture, "picture" if isinstance(raw.picture, bytes) else f"picture {raw.picture}")
    except UserError as error:
        raise BadPair(str(error)) from error


def prepare(raw: RawPair, token_side: int, target_side: int, crop: str = "target") -> Pair:
    """Decodes and resizes a pair's picture for the two encoders.

    Args:
        token_side: side of the image tokenizer's input.
        target_side: side of the pictures the renderer draws.
        crop: `target`, as the original: only the autoencoder's input is cut to the centre square; or `both`.

    Raises:
        BadPair: there is no usable picture, or it is more than 16 times longer than wide.
    """
    picture = open_picture(raw)
    if crop == "both":
        height, width = picture.shape[:2]
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture[top : top + side, left : left + side]
    try:
        pixels = autoencoder_pixels(picture, target_side)
    except UserError as error:
        raise BadPair(str(error).removeprefix("reference ")) from error
    return Pair(raw.where, raw.caption, squashed(picture, token_side), pixels)
