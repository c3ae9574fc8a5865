"""Fills the templates of the HTML pages: all values are escaped, nothing is loaded from outside."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader

from blip3o_rl.io import whole_characters


@lru_cache
def _environment() -> Environment:
    loader = PackageLoader("blip3o_rl.report", "templates")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def render(name: str, **values: Any) -> str:
    """The page of `templates/<name>.jinja`."""
    return whole_characters(_environment().get_template(f"{name}.jinja").render(**values))
