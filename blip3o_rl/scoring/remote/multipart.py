"""Reads a multipart/form-data body that is already in memory, within limits; python-multipart does the parsing."""

from __future__ import annotations

from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from blip3o_rl.scoring.remote.limits import Limits, WireError

MULTIPART = "multipart/form-data"


def read_parts(content_type: str, body: bytes, limits: Limits) -> list[tuple[str, bytes]]:
    """(name, content) of each part of a multipart body.

    Raises:
        WireError: it is not multipart, not well formed, cut short, or has too many parts.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != MULTIPART.encode():
        raise WireError(415, f"the content type is {content_type[:80]!r}; send {MULTIPART}")
    if not boundary:
        raise WireError(400, "the content type names no boundary")
    reader = _Reader(limits.images + 1)
    try:
        parser = MultipartParser(boundary, reader.callbacks(), max_size=limits.body_bytes)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise WireError(400, f"not readable as multipart: {str(error)[:100]}") from error
    if not reader.ended:
        raise WireError(400, "the multipart body ends too early")
    return [(name, bytes(data)) for name, data in reader.parts]


class _Reader:
    """Collects the parts while python_multipart reads; a name is taken from Content-Disposition."""

    def __init__(self, most: int):
        self.most = most
        self.parts: list[tuple[str, bytearray]] = []
        self.ended = False
        self._field, self._value = bytearray(), bytearray()
        self._name: str | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._headers,
            "on_part_data": lambda data, start, end: self.parts[-1][1].extend(data[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._name = None
        if len(self.parts) == self.most:
            raise WireError(413, f"more than {self.most - 1} images; send fewer at a time")

    def _header(self) -> None:
        if self._field.lower() == b"content-disposition":
            name = parse_options_header(bytes(self._value))[1].get(b"name")
            self._name = None if name is None else name.decode("latin-1")
        self._field, self._value = bytearray(), bytearray()

    def _headers(self) -> None:
        if self._name is None:
            raise WireError(400, "a part has no name in its Content-Disposition")
        self.parts.append((self._name, bytearray()))

    def _end(self) -> None:
        self.ended = True
