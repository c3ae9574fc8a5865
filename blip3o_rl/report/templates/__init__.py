"""The HTML pages' templates, and how they are filled: everything is escaped, nothing is loaded from outside."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader


@lru_cache
def _environment() -> Environment:
    def read(name: str) -> str:
        return (resources.files(__name__) / f"{name}.jinja").read_text(encoding="utf-8")

    return Environment(loader=FunctionLoader(read), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def render(name: str, **values: Any) -> str:
    """The page of a template ("page.html")."""
    return _environment().get_template(name).render(**values)
