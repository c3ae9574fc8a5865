"""How large a request to a reward service may be, and how one that is not taken is refused."""

from __future__ import annotations

from dataclasses import dataclass

MEGA = 2**20


@dataclass(frozen=True)
class Limits:
    """How large a request may be. Decoded images take 3 bytes a pixel."""

    body_bytes: int = 64 * MEGA
    json_bytes: int = 4 * MEGA
    images: int = 64
    image_pixels: int = 16 * MEGA
    request_pixels: int = 32 * MEGA
    side: int = 16_384


class WireError(Exception):
    """A request that cannot be answered: the HTTP status and one line for whoever sent it."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status
