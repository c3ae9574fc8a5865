"""Follows verl's metrics file while it is being written.

verl's `file` logger appends {"step": n, "data": {...}} per step from its own process. A thread here reads what was
added, flattens each line, joins what the caller knows of the same step, appends it to the run folder's metrics.jsonl
and hands it to whoever shows it. A line is taken when its newline is there, so a half-written one waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blip3o_rl.io import parse_line
from blip3o_rl.report.run_folder import RunFolder, flat_numbers

SOURCE = "verl-metrics-{}.jsonl"
"""In the run's logs, verl's file of a launch, with the second in which it began."""


class MetricsFollower:
    """Tails the file of verl's `file` logger. Start it before verl: a file left by an earlier launch is removed.

    Args:
        source: verl's file (VERL_FILE_LOGGER_PATH); verl makes it when training starts.
        folder: gets each line appended to its metrics.jsonl; None for no copy.
        on_line: called with {"step": n, **numbers} in this thread.
        more: step and verl's numbers -> further numbers of that step, for example the recorder's statistics.
        interval_s: seconds between two looks.
    """

    def __init__(
        self,
        source: str | Path,
        folder: RunFolder | None = None,
        on_line: Callable[[dict[str, Any]], object] = lambda line: None,
        more: Callable[[int, Mapping[str, float | None]], Mapping[str, Any]] | None = None,
        interval_s: float = 0.5,
    ):
        self._source, self._folder, self._interval_s = Path(source), folder, interval_s
        self._on_line, self._more = on_line, more
        self._position, self._rest = 0, b""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-follower", daemon=True)
        self._error: Exception | None = None

    def start(self) -> MetricsFollower:
        self._source.unlink(missing_ok=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Reads what is left and ends the thread; raises what the callback or the writing raised in it."""
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> MetricsFollower:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):  # show the first error
            self.stop()

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._interval_s):
                self._read()
            self._read()
            self._take(self._rest)
        except Exception as error:  # raised again by stop(), in the caller's thread
            self._error = error

    def _read(self) -> None:
        if not self._source.is_file():
            return
        with self._source.open("rb") as file:
            file.seek(self._position)
            added = file.read()
        self._position += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        found = _numbers(line)
        if found is None:
            return
        step, values = found
        if self._more is not None:
            values |= flat_numbers(self._more(step, values))
        values.pop("step", None)
        if self._folder is not None:
            self._folder.append_metrics(step, values)
        self._on_line({"step": step, **values})


def new_source(folder: RunFolder) -> Path:
    """Where verl writes in this launch of a run; it makes the file before it trains."""
    return folder.logs / SOURCE.format(int(time.time()))


def recover(folder: RunFolder) -> None:
    """Appends what the last launch had not read of its file when it was killed.

    Files of earlier launches hold steps that were made again since.
    """
    source = max(folder.logs.glob(SOURCE.format("*")), default=None)
    known = {line["step"]: line for line in folder.read_metrics()}
    for line in source.read_bytes().split(b"\n") if source else ():
        if found := _numbers(line):
            step, values = found
            if missing := {name: value for name, value in values.items() if name not in known.get(step, {})}:
                folder.append_metrics(step, missing)


def _numbers(line: bytes) -> tuple[int, dict[str, Any]] | None:
    """Step and numbers of a line of verl's; None for half a line."""
    record = parse_line(line)
    if record is None or "step" not in record:
        return None
    return int(record["step"]), flat_numbers(record.get("data") or {})
