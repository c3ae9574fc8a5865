"""A command and its terminal: what libraries print goes to a file, and SIGTERM ends a command as Ctrl-C does.

Weight-loading bars, Serve's INFO lines and C++ warnings do not all go through `sys.stdout`, so the file descriptors
themselves are redirected. SIGTERM comes from `ray job stop` and from a batch system's time limit; everything that was
started has to be taken down then, too.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after SIGINT and SIGTERM, as shells have them."""


_SIGTERM = threading.Event()
"""Whether it has come."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. What it meets in a call of Ray is a plain `KeyboardInterrupt` after it: `is_sigterm` knows."""


def catch_sigterm() -> None:
    """Raises `Terminated` in the main thread on SIGTERM.

    To be called again after Ray has connected: it installs a handler that prints a C++ stack.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)


def is_sigterm(error: KeyboardInterrupt) -> bool:
    """Whether a command was interrupted by SIGTERM, and not by Ctrl-C."""
    return isinstance(error, Terminated) or _SIGTERM.is_set()


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of a command that was ended so."""
    code = TERMINATED if is_sigterm(error) else INTERRUPTED
    _SIGTERM.clear()
    return code


@contextlib.contextmanager
def goes_on_with(*command: str) -> Iterator[None]:
    """Lets an interruption of the block carry the command that goes on with it."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = (shlex.join(command),)
        raise


def _terminated(number: int, frame: Any) -> NoReturn:
    _SIGTERM.set()
    raise Terminated


class Redirected:
    """Standard output and standard error, going to a file.

    Attributes:
        terminal: the standard output from before, for what the user is meant to read.
    """

    def __init__(self, terminal: TextIO, file: IO[bytes]):
        self.terminal, self._file = terminal, file
        self._point()

    def to(self, file: Path) -> None:
        """Goes on in `file`, with what has been printed so far."""
        _flush()
        with file.open("ab") as log:
            self._file.seek(0)
            shutil.copyfileobj(self._file, log)
            log.flush()
            os.dup2(log.fileno(), self._file.fileno())
        self._point()

    def _point(self) -> None:
        for descriptor in (1, 2):
            os.dup2(self._file.fileno(), descriptor)


@contextlib.contextmanager
def redirected() -> Iterator[Redirected]:
    """Redirects both streams until the block ends."""
    _flush()
    saved = [os.dup(1), os.dup(2)]
    with _terminal() as terminal, tempfile.TemporaryFile() as file:
        try:
            yield Redirected(terminal, file)
        finally:
            _flush()
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


@contextlib.contextmanager
def _terminal() -> Iterator[TextIO]:
    """A file of its own on the standard output; `sys.stdout` itself where that is replaced, as in tests."""
    if sys.stdout is not sys.__stdout__:
        yield sys.stdout
        return
    with os.fdopen(os.dup(1), "w", buffering=1, encoding=getattr(sys.stdout, "encoding", None)) as terminal:
        yield terminal
