"""Reference images of a prompt: what an instruction edits.

A prompt row names them in its field `references`: paths relative to the prompt file, or PNG and JPEG data URIs. Each is
opened when the row is read, so that a bad one is one line with file and line number before a model is loaded, and
opened again where its pixels are used: a large set does not fit into memory. What an image is follows from its pixels
(`sha256`), so that a copy under another name is the same reference, and one that changed after the check is noticed.
The same holds for the images that go with a reference: the edited one (`target`), and where it may change (`mask`).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_rl.data.images import is_transparent, pixels_sha256, read_image
from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path
from blip3o_rl.model.pixels import MAX_ASPECT
from blip3o_rl.stores import is_address

MIN_SIDE = 16
MAX_PIXELS = 16 * 2**20
"""Of a reference. Rewards get the whole image, and a request to a reward service has room for 64 MiB of pixels."""
_DATA_URI = re.compile(r"data:image/(?:png|jpeg);base64,", re.IGNORECASE)


@dataclass(frozen=True)
class ReferenceImage:
    """A checked reference image."""

    source: str
    """An absolute path, or a data URI."""
    name: str
    """What messages and records call it: the path as the row has it, `data:` and a part of the hash for a data URI."""
    sha256: str
    """Of its size and pixels."""

    def load(self) -> np.ndarray:
        """The image, uint8 [H, W, 3], read-only, since rewards and rollouts share it.

        Raises:
            UserError: it is not readable any more, or another image than the one that was checked.
        """
        image = _read(self.source, f"reference {self.name!r}")
        if pixels_sha256(image) != self.sha256:
            raise UserError(f"reference {self.name!r}: has changed since it was checked; start again")
        image.flags.writeable = False
        return image


def read_reference(text: str, folder: Path, where: str, what: str = "reference") -> ReferenceImage:
    """Opens and checks one entry of the field `references`, or another image of the row.

    Args:
        text: a path relative to `folder`, or a data URI.
        where: the beginning of error messages, "file:line".
        what: what messages call it.

    Raises:
        UserError: it is not readable as one image, or too small, too large or too narrow.
    """
    uri = is_uri(text)
    if not uri and is_address(text):
        raise UserError(f"{where}: {what} {text[:80]!r} is an address; download the image and give its path")
    try:
        source = text if uri else os.path.abspath(folder / user_path(text))
    except UserError as error:
        raise UserError(f"{where}: {what} {error}") from error
    name = f"{where}: {what} {text[:40] + '...' if uri else source!r}"
    image = _read(source, name)
    check_size(image, name)
    digest = pixels_sha256(image)
    return ReferenceImage(source, f"data:{digest[:16]}" if uri else text, digest)


def check_size(image: np.ndarray, name: str) -> None:
    """Raises `UserError`, which begins with `name`, for an image that is too small, too large or too narrow."""
    height, width, _ = image.shape
    if min(height, width) < MIN_SIDE:
        raise UserError(f"{name}: {width} x {height} px, a side is shorter than {MIN_SIDE} px; give a larger image")
    if max(height, width) > MAX_ASPECT * min(height, width):
        what = f"the longer side is more than {MAX_ASPECT} times the shorter one"
        raise UserError(f"{name}: {width} x {height} px, {what}; crop the image")
    if height * width > MAX_PIXELS:
        limit = f"more than {MAX_PIXELS / 2**20:g} megapixels"
        raise UserError(f"{name}: {width} x {height} px, {limit}; reduce it, the model takes 1024 px at most")


def with_images(
    data: Mapping[str, Any], reference: ReferenceImage, kept: bool, folder: Path, where: str
) -> dict[str, Any]:
    """A row with its target and its mask (`mask` in the field `edit`) as absolute paths or data URIs, both checked.

    Args:
        reference: the row's first.
        kept: whether the row asks for the reference itself.

    Raises:
        UserError: one is not readable, the target is the reference, or the mask does not fit it or leaves nothing.
    """
    row, edit = dict(data), data.get("edit")
    if isinstance(row.get("target"), str):
        target = read_reference(row["target"], folder, where, "target")
        if target.sha256 == reference.sha256 and not kept:
            raise UserError(f"{where}: target {target.name!r} is the reference itself; give the edited image")
        row["target"] = target.source
    if isinstance(edit, Mapping) and isinstance(edit.get("mask"), str):
        mask = read_reference(edit["mask"], folder, where, "edit.mask")
        if is_transparent(_content(mask.source, mask.name)):
            text = "is transparent in places; make it white where the image may change, and black elsewhere"
            raise UserError(f"{where}: edit.mask {mask.name!r} {text}")
        pixels, shape = mask.load(), reference.load().shape
        if pixels.shape != shape:
            sizes = " and ".join(f"{width} x {height} px" for height, width, _ in (pixels.shape, shape))
            raise UserError(f"{where}: edit.mask {mask.name!r} and the reference are {sizes}; give it the same size")
        if (pixels > 127).all():
            raise UserError(f"{where}: edit.mask {mask.name!r} is all white; leave black what is to stay")
        row["edit"] = {**edit, "mask": mask.source}
    return row


def load_image(source: str) -> np.ndarray:
    """The image of an absolute path or a data URI that `with_images` gave."""
    return _read(source, "image" if is_uri(source) else source)


def prompt_key(prompt: str, references: Iterable[str] = ()) -> str:
    """What tells prompts apart, in noise seeds, in the held-out split and in reports: the text of a text-to-image
    prompt, and an instruction together with its references, each by its hash or by its name in a record."""
    return "\n".join([prompt, *references])


def is_uri(text: str) -> bool:
    """Whether it is a data URI and no path."""
    return text.lstrip().lower().startswith("data:")


def _read(source: str, name: str) -> np.ndarray:
    return read_image(_content(source, name), name)


def _content(source: str, name: str) -> str | bytes:
    """What `data.images` reads: the path itself, or the bytes of a data URI."""
    if not is_uri(source):
        return source
    head = _DATA_URI.match(source)
    if head is None:
        raise UserError(f"{name}: is no data URI of an image; begin it with data:image/png;base64, (or image/jpeg)")
    try:
        return base64.b64decode(source[head.end() :], validate=True)
    except ValueError as error:
        raise UserError(f"{name}: is not base64 ({error}); encode the file again") from error
