"""The one reader of text: prompt files, captions, lists of paths.

All ways in which people save text are read here, and what cannot be read is refused by what it is. Encodings are UTF-8
(with or without byte order mark) and UTF-16/32 with one; gzip, bzip2 and xz are unpacked. A line ends at LF, CRLF or CR
and nowhere else: separators such as U+2028 are legal inside JSON strings. A byte order mark at the start of a line, as
joined files have it, is no part of the text. `read_records` reads a whole file of objects or a plain list; `open_lines`
streams files that may be larger than memory.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.data.columns import prompt_columns, read_parquet
from blip3o_rl.errors import UserError
from blip3o_rl.io import whole_characters
from blip3o_rl.stores import local

_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_PARQUET = b"PAR1"
_REFUSED = {
    b"PK\x03\x04": "a zip archive or an Office document",
    b"%PDF": "a PDF document",
    b"{\\rtf": "an RTF document",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"version https://git-lfs": "a Git LFS pointer and not the file itself",
    b"<!doctype": "a web page",
    b"<html": "a web page",
}
_LISTS = (".txt", ".list", ".lst", ".prompts", "")
_GAP = re.compile(r"[ \t\n,]*")
"""Between two elements of a JSON array."""
_TABLES = (".csv", ".tsv")
SUFFIXES = (".json", ".jsonl", ".parquet", *_TABLES, *filter(None, _LISTS), ".gz", ".bz2", ".xz")
"""Of files, and of no name on a hub."""
_ABOVE_HEADER = re.compile(r'(?:[ \t,;]*\n)*(?:"?sep=(.)"?[ \t,;]*\n)?', re.IGNORECASE)
"""Rows without text, and Excel's line that names the separator."""
_NO_UTF8 = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of a byte that is no UTF-8."""
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Record:
    """One value of a file and where it stands ("file:line")."""

    where: str
    value: Any


def decode(data: bytes, where: str) -> str:
    """The text of some bytes by their byte order mark, with LF as line ends. Raises UserError for other bytes."""
    return "".join(line for _, line in _lines(io.BytesIO(data), where))


def read_text(path: Path, fallback: str | None = None) -> str:
    """The whole text of a file. Arguments and errors are those of `open_lines`."""
    with _opened(path) as file:
        return "".join(line for _, line in _lines(file, str(path), fallback))


def open_lines(path: Path, fallback: str | None = None) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a text file, blank lines left out, read as it is consumed.

    Args:
        fallback: the encoding of a line that is not UTF-8; without it such a line raises.

    Raises:
        UserError: the file is missing, damaged or no text.
    """
    with _opened(path) as file:
        for number, line in _lines(file, str(path), fallback):
            if line.strip():
                yield number, line.removesuffix("\n")


def parse_json(text: str, finite: bool = False) -> Any:
    """A JSON value. Half a surrogate pair, which no encoding can hold, becomes U+FFFD.

    Args:
        finite: refuse a number that is none (NaN) or too large, which Python's own reader takes.

    Raises:
        ValueError: what is wrong and at which column; also for an object with two fields of one name.
    """
    number = _finite if finite else None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=number, parse_constant=number)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno}); fix the line") from error
    except RecursionError as error:
        raise ValueError("is JSON that is nested too deeply; fix the line") from error
    return json.loads(whole_characters(json.dumps(value, ensure_ascii=False))) if "\\ud" in text.lower() else value


def read_records(
    path: str | Path,
    field: str = "prompt",
    images: bool = False,
    problems: list[str] | None = None,
    fallback: str | None = None,
) -> list[Record]:
    """All values of a file: objects, or whatever else a line of JSON holds.

    Args:
        path: JSON lines, a JSON array, CSV, TSV, parquet or a plain list.
        field: the column that a table must have, and the field that a line of a plain list becomes.
        images: keep what JSON cannot hold: a parquet file's columns with bytes, and its dates.
        problems: gets a message for each line that cannot be read, which is then left out; without it the first raises.
        fallback: see `open_lines`.

    Raises:
        UserError: naming file and line, what is there and what is wanted.
    """
    path = local(path)
    with _opened(path) as file:
        if file.read(len(_PARQUET)) == _PARQUET:
            rows = read_parquet(path, field, images)
            return [Record(f"{path}:row {number}", row) for number, row in enumerate(rows, start=1)]
    suffix = next((s.lower() for s in reversed(path.suffixes) if s.lower() not in (".gz", ".bz2", ".xz")), "")
    if suffix in _TABLES:
        return _table(path, field, problems, fallback)
    lines = list(open_lines(path, fallback))
    first = lines[0][1].lstrip() if lines else ""
    if first.startswith("[") and (found := _array(path, lines, suffix not in _LISTS, problems)) is not None:
        return found
    if first.startswith("{") or (suffix not in _LISTS and first.startswith(("[", '"'))):
        return _json_lines(path, lines, problems)
    if suffix not in _LISTS and lines:
        raise UserError(
            f'{path}:{lines[0][0]}: is plain text; write one JSON object per line, such as {{"{field}": '
            f'"a photo of a red circle"}}, or name a list with one {field} per line .txt'
        )
    return [Record(f"{path}:{number}", {field: line.strip()}) for number, line in lines]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, unpacked, for reading bytes."""
    if not path.is_file():
        if path.exists():
            raise UserError(f"{path}: is a folder or a pipe; save the text in a file")
        raise UserError(f"{path}: there is no such file; fix the path")
    try:
        with path.open("rb") as file:
            start = file.read(64)
        for mark, kind in _REFUSED.items():
            if start.removeprefix(codecs.BOM_UTF8).lstrip()[: len(mark)].lower() == mark.lower():
                raise UserError(f"{path}: is {kind}; save it as UTF-8 text")
        unpack = next((opener for mark, opener in _PACKED.items() if start.startswith(mark)), open)
        with unpack(path, "rb") as file:
            yield file
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _lines(file: Any, where: str, fallback: str | None = None) -> Iterator[tuple[int, str]]:
    """Numbered lines of a binary file, each with its LF; see `open_lines`."""
    number = 0
    try:
        start = file.read(4)
        file.seek(0)
        encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
        for number, line in enumerate(io.TextIOWrapper(file, encoding, "surrogateescape", newline=None), start=1):
            if "\0" in line:
                raise UserError(f"{where}:{number}: holds NUL characters, so it is no text; save it as UTF-8")
            if wrong := _NO_UTF8.search(line):
                if fallback is None:
                    byte = f"0x{ord(wrong[0]) - 0xDC00:x} is character {wrong.start() + 1}"
                    raise UserError(f"{where}:{number}: is not UTF-8 text ({byte}); save it as UTF-8")
                line = line.encode("utf-8", "surrogateescape").decode(fallback, "replace")
            yield number, line.removeprefix("\ufeff")
    except UnicodeError as error:
        raise UserError(f"{where}: is not UTF-8 text after line {number} ({error}); save it as UTF-8") from error
    except _UNREADABLE as error:
        raise UserError(f"{where}: is damaged after line {number} ({error}); make the file again") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"field '{name}' stands twice in one object; keep one")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"holds {text}, which is no number of JSON; write a finite number or null")
    return value


def _report(text: str, problems: list[str] | None, cause: Exception | None = None) -> None:
    if problems is None:
        raise UserError(text) from cause
    problems.append(text)


def _json_lines(path: Path, lines: list[tuple[int, str]], problems: list[str] | None) -> list[Record]:
    found = []
    for number, line in lines:
        try:
            found.append(Record(f"{path}:{number}", parse_json(line, finite=True)))
        except ValueError as error:
            spread = len(lines) > 1 and lines[0][1].strip() in ("{", "[")
            says = "is JSON over several lines; write one object per line or one array" if spread else error
            _report(f"{path}:{number}: {says}", None if spread else problems, error)
    return found


def _array(path: Path, lines: list[tuple[int, str]], is_json: bool, problems: list[str] | None) -> list[Record] | None:
    """The elements of a JSON array with the lines they begin at; None if the file is no single array.

    Raises:
        UserError: it is one over several lines of a file that `is_json`, and is broken.
    """
    text = "\n".join(line for _, line in lines)
    try:
        json.loads(text)
    except RecursionError:
        return None
    except json.JSONDecodeError as error:
        first = lines[0][1].strip()
        if is_json and (first == "[" or first.endswith(",")):
            where = f"{path}:{lines[error.lineno - 1][0]}"
            raise UserError(f"{where}: is not JSON ({error.msg} at column {error.colno}); fix the array") from error
        return None
    found: list[Record] = []
    end, line = text.index("[") + 1, 0
    while text[at := _GAP.match(text, end).end()] != "]":  # type: ignore[union-attr]
        line += text.count("\n", end, at)
        _, end = json.JSONDecoder().raw_decode(text, at)
        where = f"{path}:{lines[line][0]}"
        try:
            found.append(Record(where, parse_json(text[at:end], finite=True)))
        except ValueError as error:
            _report(f"{where}: {error}", problems, error)
        line += text.count("\n", at, end)
    return found


def _table(path: Path, field: str, problems: list[str] | None, fallback: str | None) -> list[Record]:
    """Rows of a CSV or TSV file by its header. Empty cells are absent; a cell may hold a JSON object or list."""
    rows = csv_rows(read_text(path, fallback), str(path))
    names = prompt_columns(path, [name.strip() for name in next(rows, ("", []))[1]], field)
    found = []
    for where, row in rows:
        if len(row) > len(names):
            _report(f"{where}: has {len(row)} cells under {len(names)} columns; quote the commas", problems)
        elif cells := {name: _cell(cell) for name, cell in zip(names, row, strict=False) if cell.strip()}:
            found.append(Record(where, cells))
    return found


def csv_rows(text: str, where: str) -> Iterator[tuple[str, list[str]]]:
    """("file:line", cells) of each row, with the separator that the first has most of (Excel's may be `;`).

    Raises:
        UserError: the text is not CSV; starts with `where`, the file.
    """
    top: Any = _ABOVE_HEADER.match(text)
    above, text = text.count("\n", 0, top.end()), text[top.end() :]
    separator = top[1] or max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    number = above + 1
    try:
        while (row := next(reader, None)) is not None:
            yield f"{where}:{number}", row
            number = above + reader.line_num + 1
    except csv.Error as error:
        remedy = "put a cell with quotation marks into quotation marks, and double those in it"
        raise UserError(f"{where}:{number}: is not CSV ({error}); {remedy}") from error


def _cell(text: str) -> Any:
    with suppress(ValueError):
        return parse_json(text, finite=True) if text.lstrip().startswith(("{", "[")) else text
    return text
