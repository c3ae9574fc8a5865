"""Where captured hidden states live between the step that computes them and the caller that takes them.

`RowPool` is one tensor on the model's device: a block of rows for each request, and row 0 as a sink for rows that no
request asked for, so that a step is one `index_copy_` of the whole batch. `StateStore` gives requests their blocks and
takes them back. A request that ends incomplete (aborted) is forgotten at once, and of those that are never taken only
the newest `max_untaken` are kept. When none is left, the memory is freed for the update between two rollouts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from blip3o_rl.errors import UserError

FIRST_ROWS = 1024


class RowPool:
    """Blocks of rows of `hidden` numbers, with a flag per row that was written; grows by doubling."""

    def __init__(self, hidden: int, dtype: torch.dtype, device: torch.device):
        self.rows = torch.empty((1, hidden), dtype=dtype, device=device)
        self.clear()

    def clear(self) -> None:
        self.rows = self.rows.new_empty((1, self.rows.shape[1]))
        self.written = np.zeros(1, dtype=bool)
        self._end = 1
        self._free: dict[int, list[int]] = defaultdict(list)

    def acquire(self, count: int) -> int:
        """The first row of a block of `count` rows, none of them written."""
        if self._free[count]:
            first = self._free[count].pop()
        else:
            first, self._end = self._end, self._end + count
            if self._end > len(self.rows):
                self._grow(max(self._end, 2 * len(self.rows), FIRST_ROWS))
        self.written[first : first + count] = False
        return first

    def release(self, first: int, count: int) -> None:
        self._free[count].append(first)

    def write(self, states: torch.Tensor, rows: np.ndarray) -> None:
        """Writes `states` [N, hidden] to `rows` (int64 [N]; 0 is the sink)."""
        self.written[rows] = True
        index = torch.from_numpy(rows)
        if self.rows.is_cuda:
            index = index.pin_memory().to(self.rows.device, non_blocking=True)
        self.rows.index_copy_(0, index, states)

    def _grow(self, size: int) -> None:
        rows, written = self.rows.new_empty((size, self.rows.shape[1])), np.zeros(size, dtype=bool)
        rows[: len(self.rows)], written[: len(self.written)] = self.rows, self.written
        self.rows, self.written = rows, written


@dataclass
class Captured:
    """A request whose states are kept under the caller's `key` in `count` rows from `first` on."""

    key: str
    first: int
    count: int
    clashes: bool = False
    """Another live request used the same key, so that neither can be told apart."""


NOT_KEPT = Captured("", 0, 0)


class StateStore:
    """The requests whose states are kept, running ones by engine id, all by the caller's key."""

    def __init__(self, hidden: int, dtype: torch.dtype, device: torch.device, max_untaken: int):
        self.pool = RowPool(hidden, dtype, device)
        self.max_untaken = max_untaken
        self.running: dict[str, Captured] = {}
        self.by_key: dict[str, Captured] = {}
        self._untaken: dict[str, Captured] = {}

    def begin(self, engine_id: str, key: str, count: int) -> Captured:
        """Reserves `count` rows for a request that is about to run."""
        request = Captured(key, self.pool.acquire(count), count)
        if key in self.by_key:
            request.clashes = self.by_key[key].clashes = True
        self.running[engine_id] = request
        self.by_key.setdefault(key, request)
        return request

    def finish(self, engine_ids: Iterable[str]) -> None:
        """The engine ended these requests (done or aborted); ids it does not know are ignored."""
        for engine_id in engine_ids:
            request = self.running.pop(engine_id, None)
            if request is None:
                continue
            if self.by_key.get(request.key) is not request or self.missing(request):
                self._forget(request)
            else:
                self._untaken[request.key] = request
        while len(self._untaken) > self.max_untaken:
            self._forget(next(iter(self._untaken.values())))

    def missing(self, request: Captured) -> int:
        """Rows of the request that were not written."""
        return request.count - int(self.pool.written[request.first : request.first + request.count].sum())

    def take(self, key: str) -> torch.Tensor:
        """Hands a request's states over, [count, hidden] on the host, and forgets it, unless rows are missing."""
        request = self.by_key.get(key)
        if request is None:
            raise UserError(
                f"request {key}: no hidden states are kept for it; it did not ask for them (sampling_params), "
                f"was aborted or taken before, or more than {self.max_untaken} finished requests were waiting"
            )
        if request.clashes:
            raise UserError(f"request {key}: two live requests carry this id; give every request its own")
        if missing := self.missing(request):
            raise UserError(
                f"request {key}: {missing} of {request.count} hidden states are missing; "
                "take them when the request has finished, sampled to its full length"
            )
        states = self.pool.rows[request.first : request.first + request.count].to("cpu", copy=True)
        self.drop(key)
        return states

    def drop(self, key: str) -> bool:
        """Forgets a request, running or finished; says whether it was known."""
        request = self.by_key.get(key)
        if request is None:
            return False
        self.running = {engine_id: other for engine_id, other in self.running.items() if other is not request}
        self._forget(request)
        return True

    def clear(self) -> None:
        """Forgets all requests; running ones are no longer kept."""
        self.running, self.by_key, self._untaken = {}, {}, {}
        self.pool.clear()

    def _forget(self, request: Captured) -> None:
        if self.by_key.get(request.key) is request:
            del self.by_key[request.key]
            self._untaken.pop(request.key, None)
        self.pool.release(request.first, request.count)
        if not self.by_key and not self.running:
            self.pool.clear()
