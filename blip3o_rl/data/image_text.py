"""Image-text pairs for supervised fine-tuning, streamed from webdataset tar files and JSON lines.

    photos-000.tar     key.jpg | key.png | key.webp beside key.txt (or key.json with the caption field)
    pairs.jsonl        {"image": "pictures/1.png", "caption": "a photo of a circle"}, paths relative to the file

Order. A file is read from front to back, so that a tar can be larger than memory and lie on a slow disk. In each pass
over the data the files are permuted by the seed and dealt out to the processes; where there are fewer files than
processes, a file is divided by its pairs. A process reads its files in blocks of `shuffle` pairs, undecoded, and hands
out each block in random order. Blocks instead of a reservoir, because then the place in the stream is four numbers:
resuming reads again at most one block and what lies before it in one file.

Bad pairs (no caption, no picture, a damaged picture) are kept by name with the reason, left out, and counted; beyond
`max_bad` different ones the stream stops. Which pairs are bad follows from the data alone, so a resumed run leaves out
the same ones.

Pictures are prepared as BLIP3o-NEXT does it: the image tokenizer sees the whole picture squashed to a square, the
autoencoder the centre square (shorter side resized, then cropped). For a picture that is not square the two differ;
`crop="both"` cuts out the centre square for both.
"""

from __future__ import annotations

import glob
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from blip3o_rl.errors import UserError
from blip3o_rl.model.image_tokenizer import to_rgb
from blip3o_rl.model.reference import autoencoder_pixels

PICTURES = ("jpg", "jpeg", "png", "webp")
TARS = (".tar", ".tar.gz", ".tgz")
LINES = (".jsonl",)
CROPS = ("target", "both")

T = TypeVar("T")


class BadPair(Exception):
    """A pair that cannot be used; its text is the reason."""


@dataclass(frozen=True)
class Fields:
    """Names of the fields in a JSON object."""

    image: str = "image"
    caption: str = "caption"


@dataclass(frozen=True)
class RawPair:
    """A pair as it lies in the file. `where` is "file:line" or "file:key"; `fault` says why it cannot be used."""

    where: str
    caption: str = ""
    picture: bytes | Path = b""
    fault: str = ""


@dataclass(frozen=True)
class Pair:
    """A pair, prepared.

    square: 8-bit RGB of the image tokenizer's side.
    pixels: the autoencoder's input, float32 [3, S, S] in [-1, 1].
    """

    where: str
    caption: str
    square: Image.Image
    pixels: torch.Tensor


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


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """The files that paths and shell patterns name, in their order; one named twice is read twice in a pass.

    Raises:
        UserError: nothing is named, a pattern finds nothing, a file is missing, empty or of an unknown kind.
    """
    named = [patterns] if isinstance(patterns, str) else list(patterns)
    if not named:
        raise UserError("data.files: empty, so there is no data; name .tar or .jsonl files, such as data.files=[a.tar]")
    found = []
    for pattern in named:
        paths = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        if not paths:
            raise UserError(f"data.files: {pattern}: there is no such file; give .tar or .jsonl files, or a pattern")
        found += [Path(path) for path in paths]
    for path in found:
        if not path.name.endswith((*TARS, *LINES)):
            raise UserError(f"{path}: of an unknown kind; give {', '.join((*TARS, *LINES))}")
        if not path.is_file() or not path.stat().st_size:
            raise UserError(f"{path}: no file with anything in it; leave it out of data.files")
    return found


def check_first(files: Sequence[Path], fields: Fields) -> None:
    """Reads the first pair, so that a misspelt field is one error and not a series of bad pairs.

    Raises:
        UserError: the first file has no pair, or its first one is bad.
    """
    first = next(read_pairs(files[0], fields, lambda index: True), None)
    if first is None:
        raise UserError(f"{files[0]}: has no pairs of picture and caption; leave it out of data.files")
    try:
        open_picture(first[1])
    except BadPair as error:
        raise UserError(
            f"{first[1].where}: {error}; mend the first pair, or see data.image_field and data.caption_field"
        ) from error


def read_pairs(path: Path, fields: Fields, wanted: Callable[[int], bool]) -> Iterator[tuple[int, RawPair]]:
    """(index, pair) of a file, front to back; only those whose index is wanted are read into memory."""
    return (read_lines if path.name.endswith(LINES) else read_tar)(path, fields, wanted)


def read_lines(path: Path, fields: Fields, wanted: Callable[[int], bool]) -> Iterator[tuple[int, RawPair]]:
    """Pairs of a file of JSON lines; the index counts lines from 0, blank ones are left out."""
    with path.open("rb") as file:
        for index, line in enumerate(file):
            if wanted(index) and line.strip():
                yield index, _parsed(f"{path}:{index + 1}", lambda line=line: _from_line(line, path.parent, fields))


def read_tar(path: Path, fields: Fields, wanted: Callable[[int], bool]) -> Iterator[tuple[int, RawPair]]:
    """Pairs of a tar: consecutive members whose names agree up to the first dot. The index counts such groups."""
    index, key, members = -1, "", {}
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not extension:
                    continue
                if folder + slash + stem != key or index < 0:
                    if wanted(index) and members:
                        yield index, _from_members(path, key, members, fields)
                    index, key, members = index + 1, folder + slash + stem, {}
                if wanted(index):
                    content = tar.extractfile(member)
                    members[extension.lower()] = content.read() if content else b""
            if wanted(index) and members:
                yield index, _from_members(path, key, members, fields)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if wanted(max(index, 0)):
            where = f"{path}:{key}" if key else str(path)
            yield max(index, 0), RawPair(where, fault=f"the tar is not readable from here on ({error})")


def _parsed(where: str, read: Callable[[], tuple[str, bytes | Path]]) -> RawPair:
    try:
        return RawPair(where, *read())
    except BadPair as error:
        return RawPair(where, fault=str(error))


def _from_line(line: bytes, folder: Path, fields: Fields) -> tuple[str, Path]:
    data = _json(line)
    image = data.get(fields.image)
    if not isinstance(image, str) or not image:
        raise BadPair(f"field '{fields.image}' is missing or no path of a picture")
    return _caption(data.get(fields.caption), f"field '{fields.caption}'"), folder / Path(image).expanduser()


def _from_members(path: Path, key: str, members: dict[str, bytes], fields: Fields) -> RawPair:
    def read() -> tuple[str, bytes]:
        picture = next((members[kind] for kind in PICTURES if kind in members), None)
        if picture is None:
            raise BadPair(f"no picture among its members (.{', .'.join(PICTURES)})")
        if "txt" in members:
            return _caption(_text(members["txt"]), f"{key}.txt"), picture
        if "json" in members:
            return _caption(_json(members["json"]).get(fields.caption), f"field '{fields.caption}'"), picture
        raise BadPair("no caption among its members (.txt, or .json with the caption field)")

    return _parsed(f"{path}:{key}", read)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadPair(f"caption is not UTF-8 ({error.reason})") from error


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadPair(f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadPair(f"is {type(value).__name__}, not a JSON object")
    return value


def _caption(value: Any, name: str) -> str:
    if value is None:
        raise BadPair(f"{name} is missing")
    if not isinstance(value, str) or not value.strip():
        raise BadPair(f"{name} is empty or no text")
    return value.strip()


def open_picture(raw: RawPair) -> Image.Image:
    """The picture of a pair, as `to_rgb` gives it.

    Raises:
        BadPair: the pair's own fault; no such file; not readable as a single picture.
    """
    if raw.fault:
        raise BadPair(raw.fault)
    try:
        data = raw.picture if isinstance(raw.picture, bytes) else raw.picture.read_bytes()
    except OSError as error:
        raise BadPair(f"picture {raw.picture}: {error.strerror or error}") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            picture = to_rgb(image) if frames == 1 else None
    except Exception as error:  # Pillow's plug-ins raise many kinds on damaged files
        reason = str(error).split(" <_io")[0]
        raise BadPair(f"picture is not readable ({reason})") from error
    if picture is None:
        raise BadPair(f"picture has {frames} frames (an animation?)")
    return picture


def prepare(raw: RawPair, token_side: int, target_side: int, crop: str = "target") -> Pair:
    """Decodes and resizes a pair's picture for the two encoders.

    Args:
        token_side: side of the image tokenizer's input.
        target_side: side of the pictures the renderer draws.
        crop: `target`, as the original: only the autoencoder's input is cut to the centre square; or `both`.

    Raises:
        BadPair: there is no usable picture, or it is more than 16 times longer than wide.
    """
    picture = open_picture(raw)
    if crop == "both":
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    try:
        pixels = autoencoder_pixels(picture, target_side)
    except UserError as error:
        raise BadPair(str(error).removeprefix("reference ")) from error
    square = picture.resize((token_side, token_side), Image.Resampling.BICUBIC)
    return Pair(raw.where, raw.caption, square, pixels)


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
