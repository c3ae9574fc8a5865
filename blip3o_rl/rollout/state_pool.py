"""Where captured hidden states live between the step that computes them and the caller that takes them.

A `StatePool` is one tensor of rows on the model's device: a slot of `n_states` rows for each request, and row 0 as a
sink for rows that nobody asked for, so that a step is one `index_copy_` of the whole batch whatever is in it. Beside
it, on the host, one flag a row says what was written: a request's states are complete when all its flags are set, and
never handed out before. Rows are addressed by position, so that writing one twice, late or out of order changes
nothing.

`StateStore` gives requests their slots and takes them back. Memory is bounded by the requests that are alive
(running, waiting after a preemption, or finished and not yet taken): a request that ends incomplete (aborted) is
forgotten at once, and of those that end complete and are never taken only the newest `max_untaken` are kept. Neither
class knows vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from blip3o_rl.errors import UserError

FIRST_SLOTS = 32


class StatePool:
    """Slots of `n_states` rows of `hidden` numbers; grows by doubling."""

    def __init__(self, n_states: int, hidden: int, dtype: torch.dtype, device: torch.device):
        self.n_states = n_states
        self.rows = torch.empty((1 + FIRST_SLOTS * n_states, hidden), dtype=dtype, device=device)
        self.written = np.zeros(len(self.rows), dtype=bool)
        self._free = list(range(FIRST_SLOTS))[::-1]

    @property
    def slots(self) -> int:
        """Slots allocated, used or not."""
        return (len(self.written) - 1) // self.n_states

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def acquire(self) -> int:
        """A slot with no row written; its rows are [first_row(slot), first_row(slot) + n_states)."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        first = self.first_row(slot)
        self.written[first : first + self.n_states] = False
        return slot

    def release(self, slot: int) -> None:
        self._free.append(slot)

    def first_row(self, slot: int) -> int:
        return 1 + slot * self.n_states

    def write(self, states: torch.Tensor, rows: np.ndarray) -> None:
        """Writes `states` [N, hidden] to `rows` (int64 [N]; 0 is the sink)."""
        self.written[rows] = True
        index = torch.from_numpy(rows)
        if self.rows.is_cuda:
            index = index.pin_memory().to(self.rows.device, non_blocking=True)
        self.rows.index_copy_(0, index, states)

    def missing(self, slot: int) -> int:
        """Rows of the slot that were not written."""
        first = self.first_row(slot)
        return self.n_states - int(np.count_nonzero(self.written[first : first + self.n_states]))

    def read(self, slot: int) -> torch.Tensor:
        """The slot's rows [n_states, hidden] on the host, in memory of their own."""
        first = self.first_row(slot)
        rows = self.rows[first : first + self.n_states]
        return rows.cpu() if rows.device.type != "cpu" else rows.clone()

    def _grow(self) -> None:
        old = self.slots
        rows = self.rows.new_empty((1 + 2 * old * self.n_states, self.rows.shape[1]))
        rows[: len(self.rows)] = self.rows
        written = np.zeros(len(rows), dtype=bool)
        written[: len(self.written)] = self.written
        self.rows, self.written = rows, written
        self._free = list(range(old, 2 * old))[::-1]


@dataclass
class Captured:
    """One request whose states are kept."""

    key: str
    """The caller's name for the request."""
    pool: StatePool
    slot: int
    clashes: bool = False
    """Another live request used the same key, so that neither can be told apart."""

    @property
    def first_row(self) -> int:
        return self.pool.first_row(self.slot)

    @property
    def missing(self) -> int:
        return self.pool.missing(self.slot)


class StateStore:
    """The requests whose states are kept, running ones by engine id, all by the caller's key."""

    def __init__(self, hidden: int, dtype: torch.dtype, device: torch.device, max_untaken: int):
        self.hidden, self.dtype, self.device = hidden, dtype, device
        self.max_untaken = max_untaken
        self.version = 0
        """Changes whenever a request enters or leaves, for callers that cache where its rows are."""
        self.pools: dict[int, StatePool] = {}
        self.running: dict[str, Captured] = {}
        self._by_key: dict[str, Captured] = {}
        self._untaken: dict[str, Captured] = {}

    def begin(self, engine_id: str, key: str, n_states: int) -> Captured:
        """Reserves room for a request that is about to run."""
        self.version += 1
        if n_states not in self.pools:
            self.pools[n_states] = StatePool(n_states, self.hidden, self.dtype, self.device)
        pool = self.pools[n_states]
        request = Captured(key, pool, pool.acquire())
        if key in self._by_key:
            request.clashes = self._by_key[key].clashes = True
        self.running[engine_id] = request
        self._by_key.setdefault(key, request)
        return request

    def finish(self, engine_ids: Iterable[str]) -> None:
        """The engine ended these requests (done or aborted); ids it does not know are ignored."""
        for engine_id in engine_ids:
            request = self.running.pop(engine_id, None)
            if request is None:
                continue
            self.version += 1
            if self._by_key.get(request.key) is not request or request.missing:
                self._forget(request)
                continue
            self._untaken[request.key] = request
            if len(self._untaken) > self.max_untaken:
                self._forget(next(iter(self._untaken.values())))

    def take(self, key: str) -> torch.Tensor:
        """Hands a request's states over, [n_states, hidden] on the host, and forgets the request.

        Raises:
            UserError: no such request, two requests of this name, or rows are missing (the request is then kept).
        """
        request = self._by_key.get(key)
        if request is None:
            raise UserError(
                f"request {key}: no hidden states are kept for it; it did not ask for them (sampling_params), "
                f"was aborted or taken before, or more than {self.max_untaken} finished requests were waiting"
            )
        if request.clashes:
            raise UserError(f"request {key}: two live requests carry this id; give every request its own")
        if request.missing:
            raise UserError(
                f"request {key}: {request.missing} of {request.pool.n_states} hidden states are missing; "
                "take them when the request has finished, sampled to its full length"
            )
        states = request.pool.read(request.slot)
        self.drop(key)
        return states

    def drop(self, key: str) -> bool:
        """Forgets a request, running or finished; says whether it was known."""
        request = self._by_key.get(key)
        if request is None:
            return False
        for engine_id in [i for i, other in self.running.items() if other is request]:
            del self.running[engine_id]
        self._forget(request)
        return True

    def keys(self) -> list[str]:
        """All requests whose states are kept, oldest first."""
        return list(self._by_key)

    def _forget(self, request: Captured) -> None:
        self.version += 1
        if self._by_key.get(request.key) is request:
            del self._by_key[request.key]
            self._untaken.pop(request.key, None)
        request.pool.release(request.slot)
