"""Image-text pairs in files: webdataset tars and JSON lines, as an index that says where each pair lies.

    photos-000.tar     key.jpg | key.png | key.webp next to key.txt (or key.json with the caption field)
    pairs.jsonl        {"image": "images/1.png", "caption": "a photo of a circle"}, paths relative to the file

Each file is read once from front to back, images skipped, into an Arrow table (`datasets`) that all processes map into
memory. With it every pass can shuffle all pairs, and a run that resumes reads no data twice. A compressed tar is
unpacked next to the index, because its images have no offsets. What is wrong with a pair is a column of its row.
"""

from __future__ import annotations

import glob
import gzip
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import datasets

from blip3o_rl.data.text_files import decode, open_lines, parse_json
from blip3o_rl.errors import UserError
from blip3o_rl.io import replacing, whole_characters

IMAGES = ("jpg", "jpeg", "png", "webp")
COMPRESSED = (".tar.gz", ".tgz")
LINES = (".jsonl", ".jsonl.gz")
KINDS = (".tar", *COMPRESSED, *LINES)
FAULT = "fault"
EMPTY: dict[str, Any] = {"where": "", "caption": "", "file": "", "offset": 0, "size": -1, FAULT: ""}
"""A pair is named `where` ("file:line" or "file:key"); its image is bytes of a file, all of it if `size` is -1."""
_UNREADABLE = (tarfile.TarError, EOFError, OSError, zlib.error)


class BadPair(ValueError):
    """A pair that cannot be used; its text is the reason."""


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """The files that paths, shell patterns and webdataset's braces name, in their order; one named twice counts twice.

    Raises:
        UserError: nothing is named, a pattern finds nothing, a file is missing, empty or of an unknown kind.
    """
    named = [patterns] if isinstance(patterns, str) else patterns
    if not named:
        raise UserError("data.files: empty, so there is no data; name .tar or .jsonl files, such as data.files=[a.tar]")
    found = []
    for pattern in (one for several in named for one in expand_braces(several)):
        literal = Path(os.path.expanduser(pattern))
        paths = [str(literal)] if literal.exists() else sorted(glob.glob(str(literal), recursive=True))
        if not paths:
            raise UserError(
                f"data.files: {pattern}: there is no such file; give .tar or .jsonl files, or patterns such as "
                "pairs-*.tar or pairs-{000..009}.tar"
            )
        found += [Path(path).resolve() for path in paths]
    for path in found:
        if not path.name.endswith(KINDS):
            raise UserError(f"{path}: of an unknown kind; give {', '.join(KINDS)}")
        if whole_characters(str(path)) != str(path):
            raise UserError(f"{whole_characters(str(path))}: the name is not UTF-8; rename the file or its folder")
        if not path.is_file() or not path.stat().st_size:
            raise UserError(f"{path}: no file with anything in it; leave it out of data.files")
    return found


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` as bash and webdataset expand them; an existing file is meant as it is."""
    if os.path.exists(os.path.expanduser(pattern)):
        return [pattern]
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = (_choices(part) if number % 2 else [part] for number, part in enumerate(parts))
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        return [str(n).zfill(len(span[1])) for n in range(int(span[1]), int(span[2]) + 1)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def check_first(files: Sequence[Path], image_field: str, caption_field: str) -> dict[str, Any]:
    """Reads the first pair, so that a misspelt field is one error and not a series of bad pairs.

    Raises:
        UserError: the first file has no pair, or its first one is bad.
    """
    row = next(read_rows([(str(files[0]), str(files[0]))], image_field, caption_field), None)
    if row is None:
        raise UserError(f"{files[0]}: has no pairs of image and caption; leave it out of data.files")
    if row[FAULT]:
        raise UserError(
            f"{row['where']}: {row[FAULT]}; fix the first pair, or see data.image_field and data.caption_field"
        )
    return row


def index(files: Sequence[Path], folder: Path, image_field: str, caption_field: str) -> datasets.Dataset:
    """The index of all pairs, bad ones included, kept in `folder`; made again when a file has changed."""
    changes = tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    plain = [
        _unpacked(path, folder / f"{number:05d}-{path.stat().st_mtime_ns}.tar") for number, path in enumerate(files)
    ]
    datasets.disable_progress_bars()
    return datasets.Dataset.from_generator(
        read_rows,
        features=datasets.Features(
            {name: datasets.Value("string" if value == "" else "int64") for name, value in EMPTY.items()}
        ),
        cache_dir=str(folder),
        gen_kwargs={
            "sources": tuple(zip(map(str, files), map(str, plain), strict=True)),  # a list would be shards
            "image_field": image_field,
            "caption_field": caption_field,
            "changes": changes,
        },
    )


def _unpacked(path: Path, plain: Path) -> Path:
    if not path.name.endswith(COMPRESSED):
        return path
    if plain.is_file():
        return plain
    # What there is, is read; the end is missing and will be reported.
    with replacing(plain) as new, gzip.open(path) as source, new.open("wb") as target, suppress(*_UNREADABLE):
        shutil.copyfileobj(source, target)
    return plain


def read_rows(
    sources: Sequence[tuple[str, str]], image_field: str, caption_field: str, changes: Any = None
) -> Iterator[dict[str, Any]]:
    """The rows of (file, unpacked file) pairs; `changes` only tells `datasets` whether it has them already."""
    for path, plain in sources:
        if path.endswith(LINES):
            yield from _read_lines(path, image_field, caption_field)
        else:
            yield from _read_tar(path, plain, caption_field)


def _row(where: str, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of what `read` returns, or of the fault that it raises."""
    try:
        found = EMPTY | read() | {"where": where}
    except (ValueError, UserError) as error:
        found = EMPTY | {"where": where, FAULT: str(error)}
    # Names in a tar are bytes.
    return found | {name: whole_characters(found[name]) for name in ("where", "caption", FAULT)}


def _fault(where: str, reason: str) -> dict[str, Any]:
    return _row(where, lambda: {FAULT: reason})


def _read_lines(path: str, image_field: str, caption_field: str) -> Iterator[dict[str, Any]]:
    def read(line: str) -> dict[str, Any]:
        data = _fields(line)
        image = data.get(image_field)
        if not isinstance(image, str) or not image:
            raise BadPair(f"field '{image_field}' is missing or no path of an image")
        caption = _caption(data.get(caption_field), f"field '{caption_field}'")
        return {"caption": caption, "file": str(Path(path).parent / os.path.expanduser(image))}

    where = path
    try:
        for number, line in open_lines(Path(path)):
            where = f"{path}:{number}"
            yield _row(where, partial(read, line))
    except UserError as error:
        yield _fault(f"{where} and what follows", str(error))


def _read_tar(path: str, plain: str, caption_field: str) -> Iterator[dict[str, Any]]:
    """A pair is the members whose names agree up to the first dot after the last slash, in any order."""
    groups: dict[str, dict[str, list[tarfile.TarInfo]]] = {}
    key, broken = "", ""
    try:
        with tarfile.open(plain, "r:*") as tar:
            try:
                for member in tar:
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, kind = name.partition(".")
                    if member.isfile() and stem and kind:  # names that begin with a dot are a system's own
                        key = folder + slash + stem
                        groups.setdefault(key, {}).setdefault(kind.lower(), []).append(member)
                _check_end(tar)
            except _UNREADABLE as error:
                broken = str(error)
                groups.pop(key, None)
            for name, members in groups.items():
                yield _row(f"{path}:{name}", partial(_from_members, tar, plain, name, members, caption_field))
    except _UNREADABLE as error:
        broken = broken or str(error)
    if broken:
        yield _fault(f"{path}:{key}" if key else path, f"the tar is not readable from here on ({broken})")


def _check_end(tar: Any) -> None:
    """`tarfile` ends without a word at a header that is damaged or cut; a whole tar ends with a block of zeros."""
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("damaged header, or end missing")


def _from_members(
    tar: Any, plain: str, key: str, members: dict[str, list[tarfile.TarInfo]], caption_field: str
) -> dict[str, Any]:
    used = [kind for kind in (*IMAGES, "txt", "json") if kind in members]
    if twice := next((kind for kind in used if len(members[kind]) > 1), None):
        raise BadPair(f"{len(members[twice])} members are named {key}.{twice}")
    if not used or used[0] not in IMAGES:
        raise BadPair(f"no image among its members (.{', .'.join(IMAGES)})")
    kind = next((kind for kind in ("txt", "json") if kind in used), None)
    if kind is None:
        raise BadPair("no caption among its members (.txt, or .json with the caption field)")
    text = decode(tar.extractfile(members[kind][0]).read(), f"{key}.{kind}")
    if kind == "txt":
        caption = _caption(text, f"{key}.txt")
    else:
        caption = _caption(_fields(text).get(caption_field), f"field '{caption_field}'")
    image = members[used[0]][0]
    return {"caption": caption, "file": plain, "offset": image.offset_data, "size": image.size}


def _fields(text: str) -> dict[str, Any]:
    value = parse_json(text)
    if not isinstance(value, dict):
        raise BadPair(f"is {type(value).__name__}, not a JSON object")
    return value


def _caption(value: Any, name: str) -> str:
    if value is None:
        raise BadPair(f"{name} is missing")
    if not isinstance(value, str) or not value.strip():
        raise BadPair(f"{name} is empty or no text")
    return value.strip()


def read_bytes(row: dict[str, Any]) -> bytes:
    """The encoded image of a row.

    Raises:
        BadPair: the row's own fault, or its file cannot be read.
    """
    if row[FAULT]:
        raise BadPair(row[FAULT])
    try:
        with open(row["file"], "rb") as file:
            file.seek(row["offset"])
            return file.read(row["size"])
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise BadPair(f"image {row['file']}: {getattr(error, 'strerror', None) or error}") from error
