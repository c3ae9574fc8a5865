"""The one image reader: any file or bytes to uint8 RGB [H, W, 3], the right way up.

Every command and reward reads through `read_image`, so that all of them see the same pixels. A camera's rotation (EXIF)
is applied. Transparency is composited on white, because the colors below it are arbitrary. 16-bit gray is divided by
257, so that white stays white; of 16-bit color Pillow keeps the upper 8 bits.
"""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jfif")
"""Of files that are taken for images when a folder is listed."""


def read_image(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads an image: uint8 [H, W, 3], RGB, in memory of its own.

    A camera's MPO file (a JPEG with previews behind it) gives its first image.

    Args:
        source: a file, or a file's content.
        name: how error messages call it; by default the file's path.

    Raises:
        UserError: there is no such file, or it is not an image, damaged, larger than Pillow's limit, animated, or of a
            kind whose white is not defined (32-bit or floating-point gray).
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    with _one_line_errors(name):
        file = io.BytesIO(source) if isinstance(source, bytes) else user_path(source)
        if isinstance(file, Path) and not file.is_file():
            raise UserError(f"{name}: no such file; give an image (PNG, JPEG, WebP, ...)")
        with Image.open(file) as image:
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if frames != 1:
                raise UserError(f"{name}: {frames} images in one file (an animation?); give one image per file")
            return np.array(to_rgb(image))


def is_transparent(source: str | bytes) -> bool:
    """Whether anything shows through an image that `read_image` reads."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else user_path(source)) as image:
        if not image.has_transparency_data or image.mode.startswith("I"):
            return image.has_transparency_data
        return _with_alpha(image).getchannel("A").getextrema() != (255, 255)


def read_cutouts(folder: Path) -> dict[str, Image.Image]:
    """The PNG files of a folder with their transparency, by name: an underscore stands for a space.

    Raises:
        UserError: there is none, or one is not readable.
    """
    found = {}
    for file in sorted(folder.glob("*.png")):
        with _one_line_errors(str(file)), Image.open(file) as image:
            found[file.stem.replace("_", " ")] = image.convert("RGBA")
    if not found:
        raise UserError(f"{folder}: has no .png file; name one per class, such as bottle.png")
    return found


def read_text_chunks(file: Path) -> dict[str, str]:
    """The text chunks of a PNG, such as the prompt that `blip3o-rl generate` writes; empty for other formats.

    Raises:
        UserError: the file is not readable as an image.
    """
    with _one_line_errors(str(file)), Image.open(file) as image:
        image.load()  # text may follow the pixels
        return {key: str(value) for key, value in getattr(image, "text", {}).items()}


def png_uri(image: np.ndarray | bytes) -> str:
    """uint8 [H, W, 3], or the content of a PNG file, as a data URI without loss."""
    if not isinstance(image, bytes):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        image = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode()


def pixels_sha256(image: np.ndarray) -> str:
    """Hexadecimal SHA-256 of an image's size and pixels: what makes it the same image, whatever its file."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an opened image. Raises ValueError for 32-bit or floating-point gray."""
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        levels = np.asarray(upright)
        gray = (levels.astype(np.float64) / 257).round().astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            gray[levels == transparent] = 255
        return Image.fromarray(gray).convert("RGB")
    if upright.mode in ("I", "F") or ";" in upright.mode:
        raise ValueError(f"pixels of mode {upright.mode}, whose white is not defined")
    if upright.has_transparency_data:
        colored = _with_alpha(upright)
        return Image.alpha_composite(Image.new("RGBA", colored.size, "white"), colored).convert("RGB")
    return upright.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    return (image.convert(premultiplied) if premultiplied else image).convert("RGBA")


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        # Pillow warns about large files before it refuses larger ones, and about damaged EXIF, which is ignored.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # Pillow's plug-ins raise many kinds on damaged files
        reason = " ".join(str(error).split(" <_io")[0].split())
        raise UserError(f"{name}: not readable as an image ({reason}); give a whole PNG, JPEG, WebP, ...") from error
