"""Images on the wire: lossless PNG or raw pixels; a file's size is known and checked before memory is taken for it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from blip3o_rl.scoring.remote.limits import Limits, WireError

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_KIND = (8, 2, 0)
"""Bits a channel, colour type (RGB) and interlacing (none) of the PNGs taken."""
PIECE = 2**16


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageSpec(Strict):
    """How a sample's image part is to be read."""

    encoding: Literal["png", "raw"] = "png"
    height: Annotated[int, Field(ge=1)] | None = None
    width: Annotated[int, Field(ge=1)] | None = None


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG, compressed quickly rather than well."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def image_size(spec: ImageSpec, data: bytes, row: int, limits: Limits) -> tuple[int, int]:
    """Height and width of an image, whose pixels stay undecoded.

    Raises:
        WireError: it is no whole PNG, not RGB, larger than the limits, or raw pixels of another number.
    """
    if spec.encoding == "raw":
        if spec.height is None or spec.width is None:
            raise WireError(422, f"image {row}: raw pixels need height and width")
        height, width = spec.height, spec.width
    else:
        height, width = _png_size(data, row)
    if max(height, width) > limits.side or height * width > limits.image_pixels:
        raise WireError(413, f"image {row}: is {width} x {height}; the limit is {limits.image_pixels} pixels")
    if spec.encoding == "raw" and len(data) != height * width * 3:
        raise WireError(400, f"image {row}: has {len(data)} bytes, not {height} x {width} x 3")
    return height, width


def _png_size(data: bytes, row: int) -> tuple[int, int]:
    """Height and width of a PNG whose every chunk is whole."""
    size = None
    for kind, content in _png_chunks(data, row):
        if size is None:
            if kind != b"IHDR" or len(content) != 13:
                raise WireError(400, f"image {row}: the PNG does not begin with its header")
            width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content)
            if (bits, colour, interlaced) != PNG_KIND:
                raise WireError(422, f"image {row}: the PNG is not RGB with 8 bits a channel, row by row; convert it")
            size = (height, width)
    if size is None or not all(size):
        raise WireError(400, f"image {row}: the PNG has no pixels")
    return size


def _png_chunks(data: bytes, row: int) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, content) of each chunk of a PNG, its checksum compared; IEND must be the last and end the file."""
    if not data.startswith(PNG_START):
        raise WireError(400, f"image {row}: is no PNG")
    view, position, kind = memoryview(data), len(PNG_START), b""
    while position + 12 <= len(data) and kind != b"IEND":
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        kind = data[position + 4 : position + 8]
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != checksum:
            raise WireError(400, f"image {row}: the PNG is damaged")
        yield kind, view[position + 8 : end - 4]
        position = end
    if kind != b"IEND" or position != len(data):
        raise WireError(400, f"image {row}: the PNG is cut short, or something follows its end")


def _check_png_data(data: bytes, row: int, size: tuple[int, int]) -> None:
    """Unpacks a PNG's pixel data in small pieces and counts them: PIL would fill up what is missing with black."""
    expected, found = size[0] * (1 + 3 * size[1]), 0
    unpack = zlib.decompressobj()
    try:
        for kind, content in _png_chunks(data, row):
            piece: bytes | memoryview = content if kind == b"IDAT" else b""
            while piece and found <= expected:
                found += len(unpack.decompress(piece, PIECE))
                piece = unpack.unconsumed_tail
    except zlib.error as error:
        raise WireError(400, f"image {row}: the PNG's pixels cannot be unpacked ({error})") from error
    if found != expected or not unpack.eof or unpack.unused_data:
        raise WireError(400, f"image {row}: the PNG has more or fewer pixels than its header says")


def decode_pixels(spec: ImageSpec, data: bytes, row: int, size: tuple[int, int]) -> np.ndarray:
    """The image as uint8 [H, W, 3].

    Args:
        size: what `image_size` found.

    Raises:
        WireError: the file's pixels cannot be decoded.
    """
    if spec.encoding == "raw":
        return np.frombuffer(data, np.uint8).reshape(*size, 3).copy()
    _check_png_data(data, row, size)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            pixels = np.array(image)
    except Exception as error:  # PIL raises whatever its decoder met: OSError, SyntaxError, ValueError, zlib.error ...
        raise WireError(400, f"image {row}: the PNG cannot be decoded ({str(error)[:100]})") from error
    if pixels.dtype != np.uint8 or pixels.shape != (*size, 3):
        raise WireError(400, f"image {row}: the PNG's pixels are not what its header says")
    return pixels
