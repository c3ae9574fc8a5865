"""Fonts of the image grids: Pillow's own, or an installed one that has the letters of a prompt."""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache

from PIL import ImageFont

from blip3o_rl.data.synthetic.scenes import load_font
from blip3o_rl.io import user_path, whole_characters

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
_WIDE = re.compile(
    r"cjk|noto(sans|serif)(sc|tc|jp|kr|hk)?-regular|sourcehan|wqy|droidsansfallback|unifont|arial ?unicode|pingfang"
    r"|hiragino|applesdgothic|msyh|simsun|simhei|malgun|msgothic|nanum|ipag|takao|dejavusans\.",
    re.IGNORECASE,
)
"""Names of fonts that cover many scripts."""
PROMPT_LINES = 3


def font_for(text: str, size: int) -> Font:
    """A font that has all letters of the text; Pillow's own if none does."""
    letters = _letters(text)
    if all(char.isascii() for char in letters):
        return _load("", size)
    return _load(next((file for file in ("", *_installed()) if _has(file, letters)), ""), size)


def has_letters(text: str) -> bool:
    """Whether some font has all letters of the text."""
    return any(_has(file, _letters(text)) for file in ("", *_installed()))


def wrapped(text: str, font: Font, width: int, lines: int = PROMPT_LINES) -> list[str]:
    """Text in at most `lines` lines of `width` px, broken between words, or within one that is too long (Chinese has
    no spaces); what does not fit ends in an ellipsis."""
    found = [""]
    for word in whole_characters(text).split():
        joined = f"{found[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            found[-1] = joined
            continue
        if found[-1]:
            found.append("")
        for char in word:
            if font.getlength(found[-1] + char) > width:
                found.append("")
            found[-1] += char
    if len(found) <= lines:
        return found
    last = found[lines - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*found[: lines - 1], last.rstrip() + "…"]


def _letters(text: str) -> frozenset[str]:
    return frozenset(char for char in whole_characters(text) if not char.isspace())


_load = lru_cache(load_font)


@lru_cache(maxsize=4096)
def _has(file: str, letters: frozenset[str]) -> bool:
    """Whether a font has glyphs of its own for all letters: a missing one looks like that of a code no font has."""
    font = _load(file, 16)
    missing = bytes(font.getmask("\U0010fffe"))
    return all(bytes(font.getmask(letter)) != missing for letter in letters)


@lru_cache
def _installed() -> tuple[str, ...]:
    found = []
    for file in (file for folder in FOLDERS for file in sorted(user_path(folder).rglob("*.[to]t[fc]"))):
        if _WIDE.search(file.name):
            with contextlib.suppress(OSError):
                _load(str(file), 16)
                found.append(str(file))
    return tuple(found)
