"""An endless stream of image-text pairs: shuffled by a seed, shared by processes, resumable, strict about bad pairs.

Order. In each pass over the data the files are permuted by the seed and dealt out to the processes; where there are
fewer files than processes, a file is divided by its pairs. A process reads its files in blocks of `shuffle` pairs,
undecoded, and hands out each block in random order. Blocks instead of a reservoir, because then the place in the
stream is four numbers: resuming reads again at most one block and what lies before it in one file.

Bad pairs (no caption, no picture, a damaged picture) are kept by name with the reason, left out, and counted; beyond
`max_bad` different ones the stream stops. Which pairs are bad follows from the data alone, so a resumed run leaves out
the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from blip3o_rl.errors import UserError
from blip3o_rl.sft.image_text import BadPair, Fields, RawPair, read_pairs

T = TypeVar("T")


@dataclass(frozen=True)
class Position:
    """A place in a process's stream: the pass, where in it the present block begins, and what was taken of the block.

    unit: index into the process's files of this pass.
    offset: pairs or lines of that file before the block.
    taken: pairs of the block that were handed out or left out.
    """

    epoch: int = 0
    unit: int = 0
    offset: int = 0
    taken: int = 0


class PairStream(Generic[T]):
    """One process's endless stream of prepared pairs; see the module's docstring for its order.

    Args:
        files: as `find_files` gives them, the same on every process.
        make: turns a raw pair into what the trainer wants; may raise `BadPair`, and is called from several threads.
        fields: names of the JSON fields.
        seed: of the order.
        shuffle: pairs of a block, held undecoded.
        max_bad: bad pairs of this process that are left out before the stream stops.
        rank, world: this process and the number of them.
        threads: pairs that are decoded at a time.
        position, bad: where to go on, and the bad pairs met before (where -> reason).
        on_bad: called with where and reason of each bad pair when it is met first.
    """

    def __init__(
        self,
        files: Sequence[Path],
        make: Callable[[RawPair], T],
        *,
        fields: Fields = Fields(),  # noqa: B008 - frozen
        seed: int = 0,
        shuffle: int = 1024,
        max_bad: int = 100,
        rank: int = 0,
        world: int = 1,
        threads: int = 4,
        position: Position | None = None,
        bad: dict[str, str] | None = None,
        on_bad: Callable[[str, str], None] | None = None,
    ):
        self.files, self.make, self.fields = list(files), make, fields
        self.seed, self.shuffle, self.max_bad, self.rank, self.world = seed, shuffle, max_bad, rank, world
        self.bad = dict(bad or {})
        self._on_bad = on_bad
        self._ends = 0  # ends of passes since the last usable pair
        self._pool = ThreadPoolExecutor(threads)
        self._at = position or Position()
        self._read_from(self._at)

    @property
    def position(self) -> Position:
        """Behind the last pair that `take` gave."""
        return self._at

    def take(self, count: int) -> list[T]:
        """The next `count` usable pairs.

        Raises:
            UserError: more than `max_bad` bad pairs, or a whole pass without a usable one.
        """
        found: list[T] = []
        while len(found) < count:
            raws = [self._next() for _ in range(count - len(found))]
            for raw, made in zip(raws, self._pool.map(self._attempt, raws), strict=True):
                if isinstance(made, BadPair):
                    self._leave_out(raw, made)
                else:
                    found.append(made)
                    self._ends = 0
            if self._ends > 1:
                raise self._barren()
        return found

    def close(self) -> None:
        """Ends the decoding threads."""
        self._pool.shutdown(cancel_futures=True)

    def _attempt(self, raw: RawPair) -> T | BadPair:
        try:
            if raw.fault:
                raise BadPair(raw.fault)
            return self.make(raw)
        except BadPair as error:
            return error

    def _leave_out(self, raw: RawPair, error: BadPair) -> None:
        if raw.where in self.bad:
            return
        self.bad[raw.where] = str(error)
        if self._on_bad is not None:
            self._on_bad(raw.where, str(error))
        if len(self.bad) > self.max_bad:
            raise UserError(
                f"{raw.where}: {error}; with it {len(self.bad)} pairs are bad and data.max_bad={self.max_bad} may be "
                "left out; mend the data or raise the limit"
            )

    def _next(self) -> RawPair:
        while self._at.taken >= len(self._block):
            self._advance()
        raw = self._block[self._order[self._at.taken]]
        self._at = replace(self._at, taken=self._at.taken + 1)
        return raw

    def _advance(self) -> None:
        """Goes to the block behind the present one, or to the next pass."""
        at = replace(self._at, unit=self._end[0], offset=self._end[1], taken=0)
        self._load(at)
        if not self._block:
            if (at.unit, at.offset) == (0, 0):
                raise self._barren()
            self._ends += 1
            self._read_from(Position(at.epoch + 1))

    def _barren(self) -> UserError:
        return UserError(
            f"data.files: a whole pass over {len(self.files)} files gave process {self.rank} of {self.world} no usable "
            f"pair ({len(self.bad)} bad ones); give more pairs, or use fewer processes"
        )

    def _read_from(self, at: Position) -> None:
        self._walk = self._pairs_from(at.epoch, at.unit, at.offset)
        self._load(at)

    def _load(self, at: Position) -> None:
        entries = list(islice(self._walk, self.shuffle))
        self._at = at
        self._block = [raw for raw, _, _ in entries]
        self._end = entries[-1][1:] if entries else (at.unit, at.offset)
        rng = np.random.default_rng((self.seed, at.epoch, self.rank, at.unit, at.offset))
        self._order = rng.permutation(len(entries))

    def _pairs_from(self, epoch: int, unit: int, offset: int) -> Iterator[tuple[RawPair, int, int]]:
        """The raw pairs of a pass from a place on, each with the place behind it."""
        for number, (path, part, parts) in enumerate(self._units(epoch)):
            if number < unit:
                continue
            first = offset if number == unit else 0

            def wanted(index: int, first: int = first, part: int = part, parts: int = parts) -> bool:
                return index >= first and index % parts == part

            for index, raw in read_pairs(path, self.fields, wanted):
                yield raw, number, index + 1

    def _units(self, epoch: int) -> list[tuple[Path, int, int]]:
        """This process's (file, part, parts) of a pass."""
        parts = -(-self.world // len(self.files))
        units = [(path, part, parts) for path in self.files for part in range(parts)]
        order = np.random.default_rng((self.seed, epoch)).permutation(len(units))
        return [units[i] for i in order[self.rank :: self.world]]
