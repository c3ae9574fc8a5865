"""The one image reader: any file or bytes to uint8 RGB [H, W, 3], the right way up.

Every command and every reward reads through `read_image`, so that all of them see the same pixels:
- The rotation that a camera wrote into EXIF is carried out.
- Transparency (alpha, or a transparent palette entry) is composited on white. Colours under full transparency are
  arbitrary, so dropping alpha would show whatever the program that wrote the file left there.
- 16-bit grey is divided by 257, so that white stays white. Of 16-bit colour Pillow keeps the upper 8 bits.
- Palettes, grey and CMYK are converted by Pillow.
- Animations, damaged files and files larger than Pillow's limit are refused with one line that names the file.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from blip3o_rl.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Of files that are taken for images when a folder is listed."""
UNREADABLE = "not readable as an image ({}); give a whole PNG, JPEG, WebP, ..."


def read_image(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads an image: uint8 [H, W, 3], RGB, in memory of its own.

    A camera's MPO file (a JPEG with previews behind it) gives its first image.

    Args:
        source: a file, or a file's content.
        name: how error messages call it; by default the file's path.

    Raises:
        UserError: there is no such file, or it is not an image, damaged, too large, animated, or of a kind whose
            white is not defined (32-bit or floating-point grey).
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    with warnings.catch_warnings():
        # Pillow warns about large files before it refuses larger ones, and about damaged EXIF, which is ignored.
        warnings.simplefilter("ignore")
        try:
            with Image.open(_opened(source, name)) as image:
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                pixels = np.array(to_rgb(image)) if frames == 1 else None
        except UserError:
            raise
        except Exception as error:  # Pillow's plug-ins raise many kinds on damaged files
            reason = " ".join(str(error).split(" <_io")[0].split())
            raise UserError(f"{name}: {UNREADABLE.format(reason)}") from error
    if pixels is None:
        raise UserError(f"{name}: {frames} images in one file (an animation?); give one image per file")
    return pixels


def read_text_chunks(file: Path) -> dict[str, str]:
    """The text chunks of a PNG, such as the prompt that `blip3o-rl generate` writes; empty for other formats.

    Raises:
        UserError: the file is not readable as an image.
    """
    try:
        with Image.open(file) as image:
            image.load()  # text may follow the pixels
            return {key: str(value) for key, value in getattr(image, "text", {}).items()}
    except Exception as error:
        raise UserError(f"{file}: {UNREADABLE.format(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an opened image; see the module's docstring.

    Raises:
        ValueError: 32-bit or floating-point grey.
    """
    sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))
    upright = ImageOps.exif_transpose(image)
    if sixteen_bit:
        levels = np.asarray(upright)
        grey = (levels.astype(np.float64) / 257).round().astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[levels == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if upright.mode in ("I", "F") or ";" in upright.mode:
        raise ValueError(f"pixels of mode {upright.mode}, whose white is not defined")
    if upright.has_transparency_data:
        premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(upright.mode)
        coloured = (upright.convert(premultiplied) if premultiplied else upright).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return upright.convert("RGB")


def _opened(source: str | Path | bytes, name: str) -> io.BytesIO | Path:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    file = Path(source).expanduser()
    if not file.is_file():
        raise UserError(f"{name}: no such file; give an image (PNG, JPEG, WebP, ...)")
    return file
