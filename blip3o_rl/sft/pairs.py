"""Image-text pairs in files: webdataset tars and JSON lines, as an index that says where each pair lies.

    photos-000.tar     key.jpg | key.png | key.webp next to key.txt (or key.json with the caption field)
    pairs.jsonl        {"image": "images/1.png", "caption": "a photo of a circle"}, paths relative to the file

Each file is read once from front to back, images skipped, into an Arrow table (`datasets`) that all processes map into
memory. With it every pass can shuffle all pairs, and a run that resumes reads no data twice. A compressed tar has no
places to go to, so it is unpacked next to the index. What is wrong with a pair is a column of its row.
"""

from __future__ import annotations

import glob
import gzip
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import datasets

from blip3o_rl.data.text_files import decode, open_lines, parse_json
from blip3o_rl.errors import UserError
from blip3o_rl.io import replacing, whole_characters

IMAGES = ("jpg", "jpeg", "png", "webp")
TARS = (".tar",)
COMPRESSED = (".tar.gz", ".tgz")
LINES = (".jsonl", ".jsonl.gz")
KINDS = (*TARS, *COMPRESSED, *LINES)
FAULT = "fault"
COLUMNS = {
    "where": "string",
    "caption": "string",
    "file": "string",
    "offset": "int64",
    "size": "int64",
    FAULT: "string",
}
"""A pair is named `where` ("file:line" or "file:key"); its image is bytes of a file, all of it if `size` is -1."""
_UNREADABLE = (tarfile.TarError, EOFError, OSError, zlib.error)


class BadPair(Exception):
    """A pair that cannot be used; its text is the reason."""


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """The files that paths, shell patterns and webdataset's braces name, in their order; one named twice counts twice.

    Raises:
        UserError: nothing is named, a pattern finds nothing, a file is missing, empty or of an unknown kind.
    """
    named = [patterns] if isinstance(patterns, str) else list(patterns)
    if not named:
        raise UserError("data.files: empty, so there is no data; name .tar or .jsonl files, such as data.files=[a.tar]")
    found = []
    for pattern in (one for several in named for one in expand_braces(several)):
        literal = Path(pattern).expanduser()
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
    if Path(pattern).expanduser().exists():
        return [pattern]
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = []
    for number, part in enumerate(parts):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if number % 2 == 0:
            choices.append([part])
        elif span:
            first, last = (int(bound) for bound in span.groups())
            choices.append([str(n).zfill(len(span[1])) for n in range(first, last + 1)])
        else:
            choices.append(part.split(",") if "," in part else [f"{{{part}}}"])
    return ["".join(chosen) for chosen in product(*choices)]


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
    sources = []
    for number, path in enumerate(files):
        plain = path
        if path.name.endswith(COMPRESSED):
            plain = folder / f"{number:05d}-{path.stat().st_mtime_ns}.tar"
            if not plain.is_file():
                _unpack(path, plain)
        sources.append((str(path), str(plain)))
    changes = tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    datasets.disable_progress_bars()
    return datasets.Dataset.from_generator(
        read_rows,
        features=datasets.Features(
            {name: datasets.Value(kind) for name, kind in (COLUMNS | {FAULT: "string"}).items()}
        ),
        cache_dir=str(folder),
        gen_kwargs={
            "sources": tuple(sources),  # a list would be shards
            "changes": changes,
            "image_field": image_field,
            "caption_field": caption_field,
        },
    )


def _unpack(path: Path, plain: Path) -> None:
    with replacing(plain) as temporary, gzip.open(path) as source, temporary.open("wb") as target:
        try:
            shutil.copyfileobj(source, target)
        except _UNREADABLE:
            return  # what there is, is read; the end is missing and will be reported


def read_rows(
    sources: Sequence[tuple[str, str]], image_field: str, caption_field: str, changes: Any = None
) -> Iterator[dict[str, Any]]:
    """The rows of (file, unpacked file) pairs; `changes` only tells `datasets` whether it has them already."""
    for path, plain in sources:
        if path.endswith(LINES):
            yield from _read_lines(path, image_field, caption_field)
        else:
            yield from _read_tar(path, plain, caption_field)


def _row(where: str, **values: Any) -> dict[str, Any]:
    found = {"where": where, "caption": "", "file": "", "offset": 0, "size": -1, FAULT: ""} | values
    odd = {name: whole_characters(str(found[name])) for name in ("where", "caption", FAULT)}  # names in a tar are bytes
    return found | odd


def _read_lines(path: str, image_field: str, caption_field: str) -> Iterator[dict[str, Any]]:
    where = path
    try:
        for number, line in open_lines(Path(path)):
            where = f"{path}:{number}"
            try:
                data = _json(line)
                image = data.get(image_field)
                if not isinstance(image, str) or not image:
                    raise BadPair(f"field '{image_field}' is missing or no path of an image")
                caption = _caption(data.get(caption_field), f"field '{caption_field}'")
                yield _row(where, caption=caption, file=str(Path(path).parent / Path(image).expanduser()))
            except BadPair as error:
                yield _row(where, fault=str(error))
    except UserError as error:
        yield _row(f"{where} and what follows", fault=str(error))


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
                yield _from_members(f"{path}:{name}", tar, plain, name, members, caption_field)
    except _UNREADABLE as error:
        broken = broken or str(error)
    if broken:
        yield _row(f"{path}:{key}" if key else path, fault=f"the tar is not readable from here on ({broken})")


def _check_end(tar: tarfile.TarFile) -> None:
    """`tarfile` ends without a word at a header that is damaged or cut; a whole tar ends with a block of zeros."""
    tar.fileobj.seek(tar.offset)  # type: ignore[union-attr]
    block = tar.fileobj.read(tarfile.BLOCKSIZE)  # type: ignore[union-attr]
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("damaged header, or end missing")


def _from_members(
    where: str, tar: Any, plain: str, key: str, members: dict[str, list[Any]], caption_field: str
) -> dict[str, Any]:
    def text(kind: str) -> str:
        return _text(tar.extractfile(members[kind][0]).read(), f"{key}.{kind}")

    try:
        used = [kind for kind in (*IMAGES, "txt", "json") if kind in members]
        twice = next((kind for kind in used if len(members[kind]) > 1), None)
        if twice:
            raise BadPair(f"{len(members[twice])} members are named {key}.{twice}")
        image = next((members[kind][0] for kind in IMAGES if kind in members), None)
        if image is None:
            raise BadPair(f"no image among its members (.{', .'.join(IMAGES)})")
        if "txt" in members:
            caption = _caption(text("txt"), f"{key}.txt")
        elif "json" in members:
            caption = _caption(_json(text("json")).get(caption_field), f"field '{caption_field}'")
        else:
            raise BadPair("no caption among its members (.txt, or .json with the caption field)")
        return _row(where, caption=caption, file=plain, offset=image.offset_data, size=image.size)
    except BadPair as error:
        return _row(where, fault=str(error))


def _text(data: bytes, name: str) -> str:
    try:
        return decode(data, name)
    except UserError as error:
        raise BadPair(str(error)) from error


def _json(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise BadPair(str(error)) from error
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
    except OSError as error:
        raise BadPair(f"image {row['file']}: {error.strerror or error}") from error
