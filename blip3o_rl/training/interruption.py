"""SIGTERM (`ray job stop`, a batch system's time limit) ends a command as Ctrl-C does: everything is taken down."""

from __future__ import annotations

import signal
import threading
from typing import Any, NoReturn

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after SIGINT and SIGTERM, as shells have them."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


def catch_sigterm() -> None:
    """Raises `Terminated` in the main thread on SIGTERM; to be called again after Ray has replaced the handler."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of a command that was ended so."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def _terminated(number: int, frame: Any) -> NoReturn:
    raise Terminated
