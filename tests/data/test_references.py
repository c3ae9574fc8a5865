"""References of prompt rows: what is taken, what an image is known by, and a hundred ways to get it wrong."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import edit_row, encoded, photo, write_rows
from PIL import Image

from blip3o_rl.data.images import read_image
from blip3o_rl.data.prompts import check_row, read_prompts
from blip3o_rl.data.references import MAX_PIXELS, prompt_key, read_reference
from blip3o_rl.data.table import read_row, write_table
from blip3o_rl.errors import UserError

GOOD = encoded(photo(0))


def uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def test_paths_are_relative_to_the_prompt_file_and_data_uris_stand_for_themselves(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(GOOD)
    (tmp_path / "b.jpg").write_bytes(encoded(photo(1), "JPEG"))
    given = ["sub/a.png", str(tmp_path / "b.jpg"), uri(GOOD), uri(encoded(photo(1), "JPEG"), "jpeg")]
    file = write_rows(tmp_path / "p.jsonl", {"prompt": "make it red", "references": given}, {"prompt": "a circle"})
    edit, text = read_prompts(file)
    assert [np.array_equal(one.load(), photo(0)) for one in edit.references] == [True, False, True, False]
    assert np.array_equal(edit.references[1].load(), edit.references[3].load())
    assert edit.references[0].source == str(tmp_path / "sub" / "a.png")
    digest = edit.references[0].sha256
    assert edit.metadata["references"] == ["sub/a.png", given[1], f"data:{digest[:16]}", edit.references[3].name]
    assert text.references == () and "references" not in text.metadata


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(photo(3)).convert("CMYK"),
        Image.fromarray(photo(3)).convert("RGBA"),
        Image.fromarray(photo(3)).convert("P"),
        Image.fromarray(photo(3)).convert("L"),
        Image.fromarray(photo(3)).convert("1"),
        Image.fromarray(photo(3)[..., 0].astype(np.uint16) * 257),
    ],
    ids=lambda image: image.mode,
)
def test_every_kind_of_pixels_goes_through_the_one_reader(image: Image.Image, tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    image.save(file)
    found = read_reference("a.tif", tmp_path, "p:1").load()
    assert found.shape == (64, 64, 3) and np.array_equal(found, read_image(file))


def test_an_image_is_known_by_its_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(GOOD)
    (tmp_path / "b.bmp").write_bytes(encoded(photo(0), "BMP"))
    names = ["a.png", "b.bmp", uri(GOOD)]
    rows = [check_row({"prompt": "x", "references": [name]}, "p:1", tmp_path) for name in names]
    assert len({row.key for row in rows}) == 1
    flat = Image.fromarray(photo(0).reshape(32, 128, 3))
    others = [edit_row(tmp_path, "x", 5), edit_row(tmp_path, "y", 0), edit_row(tmp_path, "x", 0, 5)]
    others.append(check_row({"prompt": "x", "references": [uri(encoded(flat))]}, "p:1"))
    assert len({row.key for row in [rows[0], *others]}) == 5
    assert prompt_key("x") == check_row({"prompt": "x"}, "p:1").key == "x"


def test_an_image_that_changed_after_the_check_is_noticed(tmp_path: Path) -> None:
    (reference,) = edit_row(tmp_path, "x", 1).references
    with pytest.raises(ValueError, match="read-only"):
        reference.load()[0, 0, 0] = 1
    Path(reference.source).write_bytes(GOOD)
    with pytest.raises(UserError, match=r"reference '1\.png': has changed since it was checked"):
        reference.load()
    Path(reference.source).unlink()
    with pytest.raises(UserError, match=r"reference '1\.png': no such file"):
        reference.load()


def test_the_table_gives_references_back(tmp_path: Path) -> None:
    rows = [
        check_row({"prompt": "a circle"}, "p:1"),
        edit_row(tmp_path, "x", 1),
        check_row({"prompt": "x", "references": [uri(GOOD)]}, "p:3"),
    ]
    write_table(rows, tmp_path / "t.parquet", "mine")
    import pyarrow.parquet as pq

    found = [read_row(row["extra_info"]) for row in pq.read_table(tmp_path / "t.parquet").to_pylist()]
    assert [row.references for row in found] == [row.references for row in rows]
    assert [row.key for row in found] == [row.key for row in rows]
    assert np.array_equal(found[2].references[0].load(), photo(0))


def test_the_task_of_an_instruction_is_one_of_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(GOOD)
    row = {"prompt": "x", "references": ["a.png"]}
    assert [check_row({**row, **more}, "p:1", tmp_path).task for more in ({}, {"task": "subject"})] == [None, "subject"]
    with pytest.raises(UserError, match=r"p:1: field 'task' is 'subjekt'.*did you mean 'subject'"):
        check_row({**row, "task": "subjekt"}, "p:1", tmp_path)
    assert check_row({"prompt": "x", "task": "subjekt"}, "p:1").task is None, "another field of text-to-image"


# A hundred bad rows

Make = Callable[[Path], Any]
"""Writes what is needed to a folder and gives the field's value."""


def value(given: Any) -> Make:
    return lambda _: given


def content(data: bytes, name: str = "x.png") -> Make:
    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(data)
        return [name]

    return make


def saved(image: Image.Image, name: str, **options: Any) -> Make:
    def make(folder: Path) -> list[str]:
        image.save(folder / name, **options)
        return [name]

    return make


def blank(width: int, height: int, mode: str = "L") -> Image.Image:
    return Image.new(mode, (width, height))


def huge_header(width: int, height: int) -> bytes:
    """A PNG that says it is that large, with hardly a pixel."""
    head = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks
    )


def link(folder: Path) -> list[str]:
    (folder / "x.png").symlink_to(folder / "gone.png")
    return ["x.png"]


def sub_folder(folder: Path) -> list[str]:
    (folder / "x.png").mkdir()
    return ["x.png"]


FRAMES = [Image.fromarray(photo(seed)) for seed in range(3)]
ANIMATED = {"save_all": True, "append_images": FRAMES[1:]}
A_LIST = "write a list of 1 to 4 images"
A_PATH = "write the path of an image"
NOT_AN_IMAGE = "not readable as an image"
FORMATS = {name: encoded(photo(0), name) for name in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "PPM")}
BAD: list[tuple[Make, str]] = [
    *((value(given), A_LIST) for given in (None, 3, 1.5, True, "", "a.png", {}, {"a.png": 1}, [], ["a.png"] * 5)),
    *((value([given]), A_PATH) for given in (None, 3, True, "", "  ", {}, ["a.png"], {"path": "a.png"})),
    (value(["ok.png", None]), A_PATH),
    (value(["ok.png", "gone.png"]), "gone.png': no such file"),
    *(
        (value([name]), "no such file")
        for name in (
            *("gone.png", "a/b/c.png", "../gone.png", "/gone/a.png", "~/gone.png"),
            *(".", "ok.png/x", "ok.png ", "a\nb.png", "a\0b.png"),
        )
    ),
    (value(["x" * 5000]), "is too long for the name of a file"),
    (link, "no such file"),
    (sub_folder, "no such file"),
    *(
        (value([f"{kind}://host/a.png"]), "is an address; download the image")
        for kind in ("http", "https", "s3", "gs", "hf", "file", "ftp")
    ),
    *(
        (value([f"data:{rest}"]), "is no data URI of an image")
        for rest in (
            *("", ",", "image/png,x", "image/png;base64", "image/gif;base64,R0lGODlh", "image/svg+xml;utf8,<svg/>"),
            *("image/webp;base64,AAAA", "text/plain;base64,AAAA", "video/mp4;base64,AAAA", ";base64,AAAA"),
        )
    ),
    (value(["data:image/png;base64,%%%"]), "is not base64"),
    (value([uri(GOOD)[:-1]]), "is not base64"),
    (value([uri(GOOD)[:40] + "\n" + uri(GOOD)[40:]]), "is not base64"),
    (value(["data:image/png;base64,"]), NOT_AN_IMAGE),
    (value([uri(b"hello")]), NOT_AN_IMAGE),
    (value([uri(GOOD[: len(GOOD) // 2])]), NOT_AN_IMAGE),
    (value([uri(encoded(FRAMES[0], "GIF", **ANIMATED))]), "3 images in one file"),
    *((content(data[:12]), NOT_AN_IMAGE) for data in FORMATS.values()),
    *((content(data[: len(data) // 2]), NOT_AN_IMAGE) for data in FORMATS.values()),
    (content(b""), NOT_AN_IMAGE),
    (content(b"hello"), NOT_AN_IMAGE),
    (content(b"<!doctype html><html></html>"), NOT_AN_IMAGE),
    (content(b"PK\x03\x04" + bytes(60)), NOT_AN_IMAGE),
    (content(b"%PDF-1.7\n%%EOF"), NOT_AN_IMAGE),
    (content(b"version https://git-lfs.github.com/spec/v1\n"), NOT_AN_IMAGE),
    (content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), NOT_AN_IMAGE),
    (content(b"\x93NUMPY" + bytes(60)), NOT_AN_IMAGE),
    (content(np.random.default_rng(0).bytes(500)), NOT_AN_IMAGE),
    (content(GOOD[:8]), NOT_AN_IMAGE),
    (content(GOOD[:20] + b"\xff" + GOOD[21:]), NOT_AN_IMAGE),
    (content(GOOD[:200] + bytes(40) + GOOD[240:]), NOT_AN_IMAGE),
    (saved(FRAMES[0], "x.gif", **ANIMATED), "3 images in one file"),
    (saved(FRAMES[0], "x.png", **ANIMATED), "3 images in one file"),
    (saved(FRAMES[0], "x.webp", **ANIMATED), "3 images in one file"),
    (saved(FRAMES[0], "x.tif", **ANIMATED), "3 images in one file"),
    (content(huge_header(60000, 60000)), NOT_AN_IMAGE),
    (content(huge_header(2**31 - 1, 2**31 - 1)), NOT_AN_IMAGE),
    (saved(blank(4097, 4096), "x.png"), "more than 16 megapixels"),
    (saved(blank(16000, 1100), "x.png"), "more than 16 megapixels"),
    *(
        (saved(blank(*size), "x.png"), "shorter than 16 px")
        for size in ((1, 1), (15, 15), (15, 64), (64, 15), (1, 900))
    ),
    *((saved(blank(*size), "x.png"), "crop the image") for size in ((16, 257), (257, 16), (20, 400), (3000, 17))),
    (saved(blank(64, 64, "F"), "x.tif"), NOT_AN_IMAGE),
    (saved(blank(64, 64, "I"), "x.tif"), NOT_AN_IMAGE),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_row_is_one_line_with_file_and_line(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make, expected = BAD[number]
    (tmp_path / "ok.png").write_bytes(GOOD)
    good = {"prompt": "make it red", "references": ["ok.png"]}
    file = write_rows(tmp_path / "p.jsonl", good, {"prompt": "make it blue", "references": make(tmp_path)})
    with pytest.raises(UserError) as caught:
        read_prompts(file)
    text = str(caught.value)
    assert text.startswith(f"{file}:2: ") and "\n" not in text, text
    assert expected in text, text


def test_there_are_a_hundred_of_them() -> None:
    assert len(BAD) >= 100
    assert MAX_PIXELS == 16 * 2**20
