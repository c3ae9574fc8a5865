"""Rows in files: webdataset tars and JSON lines, as an index that says where each row's images lie.

    photos-000.tar     key.jpg | key.png | key.webp next to key.txt (or key.json with the caption field)
    pairs.jsonl        {"image": "images/1.png", "caption": "a photo of a circle"}, paths relative to the file
    edits-000.tar      key.input.png (or key.input.0.png, ...) and key.output.png next to key.txt (or key.json)
    edits.jsonl        {"input_image": "1.png", "output_image": "2.png", "instruction": "..."}, see `data.edit_rows`

An image without a caption is a row of the task `keep`, where that is asked for. Each file is read once from front to
back, images skipped, into an Arrow table (`datasets`) that all processes map into memory. With it every pass can
shuffle all rows, and a run that resumes reads no data twice. A compressed tar is unpacked next to the index, because
its images have no offsets. What is wrong with a row is a column of it.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from blip3o_rl.data.edit_rows import OUTPUT, names_edit, read_edit, read_task
from blip3o_rl.data.text_files import decode, open_lines, parse_json
from blip3o_rl.errors import UserError
from blip3o_rl.io import replacing, user_path, whole_characters
from blip3o_rl.model.token_layout import KEEP_INSTRUCTION
from blip3o_rl.sft.files import LINES

IMAGES = ("jpg", "jpeg", "png", "webp")
FAULT = "fault"
PLACE: dict[str, Any] = {"file": "", "offset": 0, "size": -1}
"""Where an encoded image is: bytes of a file, all of it if `size` is -1."""
EMPTY: dict[str, Any] = {"where": "", "task": "", "caption": "", **PLACE, "inputs": [], FAULT: ""}
"""A row is named `where` ("file:line" or "file:key"). Its own image is what is learned, `inputs` are the places of the
images that are edited; a row to keep has none, since it is its own. The caption of an edit is its instruction."""
_UNREADABLE = (tarfile.TarError, EOFError, OSError, zlib.error)
_INPUT, _OUTPUT = "input", "output"
"""First part of a member's kind in a tar of edits: key.input.png, key.input.0.png, key.output.png."""


class BadPair(ValueError):
    """A row that cannot be used; its text is the reason."""


@dataclass(frozen=True)
class Fields:
    """How pairs are read: names of the fields of image and caption; whether an image alone is a row to keep."""

    image: str = "image"
    caption: str = "caption"
    keep: bool = False


def check_first(files: Sequence[Path], fields: Fields) -> dict[str, Any]:
    """Reads the first row, so that a misspelt field is one error and not a series of bad pairs.

    Raises:
        UserError: the first file has no pair, or its first one is bad.
    """
    row = next(read_rows([(str(files[0]), str(files[0]))], fields), None)
    if row is None:
        raise UserError(f"{files[0]}: has no pairs of image and caption; leave it out of data.files")
    if row[FAULT]:
        raise UserError(
            f"{row['where']}: {row[FAULT]}; fix the first pair, or see data.image_field and data.caption_field"
        )
    return row


def index(files: Sequence[Path], folder: Path, fields: Fields) -> datasets.Dataset:
    """The index of all rows, bad ones included, kept in `folder`; made again when a file has changed."""
    changes = tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    plain = [
        _unpacked(path, folder / f"{number:05d}-{path.stat().st_mtime_ns}.tar") for number, path in enumerate(files)
    ]
    datasets.disable_progress_bars()
    return datasets.Dataset.from_generator(
        read_rows,
        features=datasets.Features({name: _feature(value) for name, value in EMPTY.items()}),
        cache_dir=str(folder),
        gen_kwargs={
            "sources": tuple(zip(map(str, files), map(str, plain), strict=True)),  # a list would be shards
            "fields": fields,
            "changes": changes,
        },
    )


def _feature(value: Any) -> Any:
    if isinstance(value, list):
        return datasets.List({name: _feature(part) for name, part in PLACE.items()})
    return datasets.Value("string" if value == "" else "int64")


def _is_packed(path: Path) -> bool:
    """Whether a tar is compressed, whatever its name says."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _unpacked(path: Path, plain: Path) -> Path:
    if path.name.endswith(LINES) or not _is_packed(path):
        return path
    if plain.is_file():
        return plain
    # Of a damaged file what there is, is read; the end is missing and will be reported.
    damaged = suppress(EOFError, zlib.error, gzip.BadGzipFile)
    try:
        with replacing(plain) as new, gzip.open(path) as source, new.open("wb") as target, damaged:
            shutil.copyfileobj(source, target)
    except OSError as error:
        why = "is the disk full or not writable?"
        raise UserError(f"{path}: not unpacked to {plain.parent} ({error}); {why}") from error
    return plain


def read_rows(sources: Sequence[tuple[str, str]], fields: Fields, changes: Any = None) -> Iterator[dict[str, Any]]:
    """The rows of (file, unpacked file) pairs; `changes` only tells `datasets` whether it has them already."""
    for path, plain in sources:
        if path.endswith(LINES):
            yield from _read_lines(path, fields)
        else:
            yield from _read_tar(path, plain, fields)


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


def _read_lines(path: str, fields: Fields) -> Iterator[dict[str, Any]]:
    def place(image: Any, name: str) -> dict[str, Any]:
        if not isinstance(image, str) or not image:
            raise BadPair(f"field '{name}' is missing or no path of an image")
        return PLACE | {"file": str(Path(path).parent / user_path(image))}

    def read(line: str) -> dict[str, Any]:
        data = _object(line)
        if names_edit(data):
            edit = read_edit(data)
            inputs = [place(reference, "references") for reference in edit.references]
            output = place(edit.output, " or ".join(OUTPUT))
            return {"task": edit.task, "caption": edit.instruction, "inputs": inputs} | output
        return place(data.get(fields.image), fields.image) | _captioned(data.get(fields.caption), fields)

    where = path
    try:
        for number, line in open_lines(Path(path)):
            where = f"{path}:{number}"
            yield _row(where, partial(read, line))
    except UserError as error:
        yield _fault(f"{where} and what follows", str(error))


def _read_tar(path: str, plain: str, fields: Fields) -> Iterator[dict[str, Any]]:
    """A pair is the members whose names agree up to the first dot after the last slash, in any order."""
    groups: dict[str, dict[str, list[tarfile.TarInfo]]] = {}
    key, broken = "", ""
    try:
        with tarfile.open(plain, "r:gz" if _is_packed(Path(plain)) else "r:") as tar:
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
                yield _row(f"{path}:{name}", partial(_from_members, tar, plain, name, members, fields))
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
    tar: Any, plain: str, key: str, members: dict[str, list[tarfile.TarInfo]], fields: Fields
) -> dict[str, Any]:
    def place(kind: str) -> dict[str, Any]:
        return {"file": plain, "offset": members[kind][0].offset_data, "size": members[kind][0].size}

    images = [kind for suffix in IMAGES for kind in sorted(members) if kind.rpartition(".")[2] == suffix]
    texts = [kind for kind in ("txt", "json") if kind in members]
    if twice := next((kind for kind in (*images, *texts) if len(members[kind]) > 1), None):
        raise BadPair(f"{len(members[twice])} members are named {key}.{twice}")
    data: Any = None
    if texts:
        text = decode(tar.extractfile(members[texts[0]][0]).read(), f"{key}.{texts[0]}")
        data = {fields.caption: text} if texts[0] == "txt" else _object(text)
    name = f"{key}.txt" if texts[:1] == ["txt"] else f"field '{fields.caption}'"
    inputs = sorted(kind for kind in images if kind.partition(".")[0] == _INPUT)
    outputs = [kind for kind in images if kind.partition(".")[0] == _OUTPUT]
    if inputs or outputs:
        if not inputs or len(outputs) != 1:
            found = f"{len(inputs)} input and {len(outputs)} output images"
            raise BadPair(f"{found}; an edit has {key}.{_INPUT}.* and one {key}.{_OUTPUT}.*")
        if data is None:
            raise BadPair(f"no instruction among its members (.txt, or .json with the field '{fields.caption}')")
        instruction = _caption(data.get(fields.caption, data.get("instruction")), name)
        task = {"task": read_task(data, instruction), "caption": instruction}
        return task | {"inputs": [place(kind) for kind in inputs]} | place(outputs[0])
    plain_images = [kind for kind in images if kind in IMAGES]
    if not plain_images:
        raise BadPair(f"no image among its members (.{', .'.join(IMAGES)})")
    if data is None and not fields.keep:
        raise BadPair("no caption among its members (.txt, or .json with the caption field)")
    return place(plain_images[0]) | _captioned((data or {}).get(fields.caption), fields, name)


def _object(text: str) -> dict[str, Any]:
    value = parse_json(text)
    if not isinstance(value, dict):
        raise BadPair(f"is {type(value).__name__}, not a JSON object")
    return value


def _captioned(value: Any, fields: Fields, name: str = "") -> dict[str, Any]:
    """The task of a single image, and its caption."""
    if value is None and fields.keep:
        return {"task": "keep", "caption": KEEP_INSTRUCTION}
    return {"task": "text_to_image", "caption": _caption(value, name or f"field '{fields.caption}'")}


def _caption(value: Any, name: str) -> str:
    if value is None:
        raise BadPair(f"{name} is missing")
    if not isinstance(value, str) or not value.strip():
        raise BadPair(f"{name} is empty or no text")
    return value.strip()


def read_bytes(place: Mapping[str, Any]) -> bytes:
    """The encoded image at a place: a row, or one of its inputs.

    Raises:
        BadPair: the row's own fault, or the file cannot be read.
    """
    if place.get(FAULT):
        raise BadPair(place[FAULT])
    try:
        with open(place["file"], "rb") as file:
            file.seek(place["offset"])
            return file.read(place["size"])
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise BadPair(f"image {place['file']}: {getattr(error, 'strerror', None) or error}") from error
