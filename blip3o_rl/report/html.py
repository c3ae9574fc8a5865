"""Fills the templates of the HTML pages: all values are escaped, images are part of the page, nothing is loaded."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from blip3o_rl.data.images import png_uri
from blip3o_rl.io import whole_characters


@lru_cache
def _environment() -> Environment:
    loader = PackageLoader("blip3o_rl.report", "templates")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def render(name: str, **values: Any) -> str:
    """The page of `templates/<name>.jinja`."""
    return whole_characters(_environment().get_template(f"{name}.jinja").render(**values))


def png_url(image: np.ndarray, longest: int | None = None) -> str:
    """An image, reduced to `longest` px per side if it is larger, as a data URL."""
    shown = Image.fromarray(image)
    if longest is not None:
        shown.thumbnail((longest, longest))
    return png_uri(np.asarray(shown))
