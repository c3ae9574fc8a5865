"""Image-text pairs: what is read from which file, in which order a run sees them, and what is reported as bad."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip3o_rl.config.sft import DataSettings
from blip3o_rl.data.images import read_image
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.sft.batches import PairBatches, prepare
from blip3o_rl.sft.files import find_files
from blip3o_rl.sft.launch import compose_settings
from blip3o_rl.sft.pairs import FAULT, BadPair, Fields, check_first, index, read_bytes
from blip3o_rl.sft.run import BadPairs

Row = dict[str, Any]


def png(gray: int = 0, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (gray, gray, gray)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_of(path: Path, numbers: Iterable[int], mode: str = "w") -> Path:
    """A pair per number: the number as its caption, an image of that gray."""
    members = [(f"a/{n:03d}.{kind}", data) for n in numbers for kind, data in (("png", png(n)), ("txt", b"%d" % n))]
    return write_tar(path, members, mode)


def lines_of(path: Path, numbers: Iterable[int]) -> Path:
    (path.parent / "images").mkdir(exist_ok=True)
    lines = []
    for n in numbers:
        (path.parent / "images" / f"{n}.png").write_bytes(png(n))
        lines.append(json.dumps({"image": f"images/{n}.png", "caption": f"{n}"}) + "\n")
    path.write_text("".join(lines))
    return path


def number(row: Row) -> int:
    """Caption and image, which must belong together."""
    assert read_image(read_bytes(row))[0, 0, 0] == int(row["caption"])
    return int(row["caption"])


def rows_of(files: list[Path], cache: Path, image: str = "image", caption: str = "caption") -> tuple[list[Row], Row]:
    """The good rows, and the faults of the others by name."""
    rows = list(index(files, cache / "index", Fields(image, caption)))
    return [row for row in rows if not row[FAULT]], {row["where"]: row[FAULT] for row in rows if row[FAULT]}


def batches(rows: list[Row], **changes: Any) -> PairBatches:
    base = ModelFolder("mini")
    data = DataSettings(**{key: changes.pop(key) for key in list(changes) if key in DataSettings.model_fields})
    fields = {"scales": [2], "seed": 3, "batch_size": 5, "per_step": 1, "token_side": 8, "target_side": 8} | changes
    tokenizer, layout = base.load_tokenizer(), base.layout
    fields |= {"rows": {"text_to_image": rows}, "shares": {"text_to_image": 1.0}, "references": 1}
    return PairBatches(data=data, tokenizer=tokenizer, layout=layout, **fields)


def grays(batch: Row) -> list[int]:
    return [int(example.square[0, 0, 0]) for example in batch["examples"]]


@pytest.fixture(scope="module")
def three_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """15 pairs, numbered, of all three kinds of file."""
    folder = tmp_path_factory.mktemp("pairs")
    tars = [tar_of(folder / "a.tar", range(6)), tar_of(folder / "b.tar.gz", range(6, 11), "w:gz")]
    return [*tars, lines_of(folder / "c.jsonl", range(11, 15))]


@pytest.fixture(scope="module")
def fifteen(three_files: list[Path]) -> list[Row]:
    return rows_of(three_files, three_files[0].parent)[0]


def test_all_kinds_of_files_give_their_pairs_and_an_index_is_kept_until_a_file_changes(tmp_path: Path) -> None:
    files = [tar_of(tmp_path / "a.tar", range(6)), tar_of(tmp_path / "b.tgz", [6, 7], "w:gz")]
    files.append(lines_of(tmp_path / "c.jsonl", [8, 9]))
    assert [number(row) for row in rows_of(files, tmp_path)[0]] == list(range(10))
    lines_of(files[2], [8, 9, 10])
    tar_of(files[1], [16, 17], "w:gz")
    files[0] = files[1].rename(tmp_path / "compressed.tar")
    files[1] = tar_of(tmp_path / "bzip2.tar", [18], "w:bz2")
    rows, faults = rows_of(files, tmp_path)
    assert [number(row) for row in rows] == [16, 17, 8, 9, 10]
    assert len(faults) == 1 and "the tar is not readable" in faults[str(files[1])]


def test_a_pass_gives_every_pair_once_in_another_order_each_time(fifteen: list[Row]) -> None:
    make = batches(fifteen)
    seen = [gray for batch in range(6) for gray in grays(make(batch))]
    assert sorted(seen[:15]) == sorted(seen[15:]) == list(range(15))
    assert seen[:15] != seen[15:] != sorted(seen[15:])
    assert grays(batches(fifteen, seed=4)(0)) != seen[:5]


@settings(max_examples=15)
@given(numbers=st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_a_batch_follows_from_its_number_alone(fifteen: list[Row], numbers: list[int]) -> None:
    one, other = batches(fifteen, batch_size=2), batches(fifteen, batch_size=2)
    for number in numbers:
        one(number)
    last = numbers[-1]
    assert grays(one(last)) == grays(other(last))
    pairs = zip(one(last)["examples"], other(last)["examples"], strict=True)
    assert all(torch.equal(first.pixels, second.pixels) for first, second in pairs)


def test_the_scale_is_of_the_step(fifteen: list[Row]) -> None:
    make = batches(fifteen, scales=[0, 1, 2], per_step=4, batch_size=1)
    scales = [make(number)["scale"] for number in range(48)]
    assert all(len(set(scales[step * 4 : step * 4 + 4])) == 1 for step in range(12)) and set(scales) == {0, 1, 2}


def test_fields_of_ones_own_and_captions_in_json_members(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(7))
    lines = tmp_path / "own.jsonl"
    lines.write_text(json.dumps({"file": str(tmp_path / "x.png"), "text": " 7 "}) + "\n\n")
    members = [("1.a.json", b"{}"), ("1.JPG", png(8, kind="JPEG")), ("1.json", b'{"text": "8"}')]
    rows, faults = rows_of([lines, write_tar(tmp_path / "own.tar", members)], tmp_path, "file", "text")
    assert [number(row) for row in rows] == [7, 8] and not faults


BAD_LINES: list[tuple[Any, list[str]]] = [
    ({"image": "images/0.png", "caption": "  "}, ["'caption'", "empty"]),
    ({"image": "images/0.png"}, ["'caption' is missing"]),
    ({"caption": "1"}, ["'image' is missing"]),
    ({"image": 3, "caption": "1"}, ["'image'"]),
    ([1], ["list, not a JSON object"]),
    ("{", ["not JSON"]),
]
BAD_IMAGES: list[tuple[Any, list[str]]] = [
    ({"image": "images/none.png", "caption": "1"}, ["none.png", "No such file"]),
    ({"image": "~nobody-here/0.png", "caption": "1"}, ["~nobody-here/0.png", "No such file"]),
    ({"image": "images/\0.png", "caption": "1"}, ["null byte"]),
    ({"image": "pairs.jsonl", "caption": "1"}, ["not readable as an image"]),
    ({"image": "cut.png", "caption": "1"}, ["not readable as an image"]),
    ({"image": "moving.png", "caption": "1"}, ["2 images in one file"]),
    ({"image": "images/0.png", "caption": "1 " * 2000}, ["data.max_tokens leaves room for"]),
]


@pytest.mark.parametrize(("line", "words"), BAD_LINES + BAD_IMAGES)
def test_a_bad_line_is_named_and_another_pair_takes_its_place(tmp_path: Path, line: Any, words: list[str]) -> None:
    path = lines_of(tmp_path / "pairs.jsonl", range(4))
    (tmp_path / "cut.png").write_bytes(png(1, (64, 64))[:60])
    Image.new("RGB", (8, 8)).save(
        tmp_path / "moving.png", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    )
    good = path.read_text().splitlines()
    path.write_text("\n".join([*good[:2], line if isinstance(line, str) else json.dumps(line), *good[2:]]) + "\n")
    rows, bad = rows_of([path], tmp_path)
    make = batches(rows, batch_size=len(rows))
    for pass_ in range(2):
        batch = make(pass_)
        assert set(grays(batch)) == set(range(4)) and len(batch["examples"]) == len(rows)
        bad |= batch["bad"]
    assert list(bad) == [f"{path}:3"]
    assert all(word in bad[f"{path}:3"] for word in words)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("x.png", png())], ["no caption"]),
        ([("x.txt", b"text")], ["no image", ".webp"]),
        ([("x.png", png()), ("x.txt", b" \n")], ["x.txt", "empty"]),
        ([("x.png", png()), ("x.txt", b"\xe9t\xe9")], ["x.txt", "UTF-8"]),
        ([("x.png", png()), ("x.json", b"{}")], ["'caption' is missing"]),
        ([("x.png", png()), ("x.png", png()), ("x.txt", b"text")], ["2 members are named x.png"]),
    ],
)
def test_a_bad_group_of_members_is_named(tmp_path: Path, members: Any, words: list[str]) -> None:
    good = [("1.png", png(1)), ("1.txt", b"1"), *members, ("y.png", png(2)), ("y.txt", b"2")]
    path = write_tar(tmp_path / "a.tar", good)
    rows, bad = rows_of([path], tmp_path)
    assert [number(row) for row in rows] == [1, 2] and list(bad) == [f"{path}:x"]
    assert all(word in bad[f"{path}:x"] for word in words)


def test_members_of_a_pair_need_not_be_neighbors(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("2.txt", b"2"), ("1.txt", b"1"), ("2.png", png(2))])
    rows, bad = rows_of([path], tmp_path)
    assert [number(row) for row in rows] == [1, 2] and not bad


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_truncated_tar_gives_what_it_has_and_is_named(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "a.tar", range(5))
    cut = path.read_bytes()[: 512 * 13 + 30]  # within the fourth pair; a pair takes 4 blocks
    if name.endswith("gz"):
        path = tar_of(tmp_path / name, range(400), "w:gz")
        cut = path.read_bytes()[:-4000]
    path.write_bytes(cut)
    rows, bad = rows_of([path], tmp_path)
    assert [number(row) for row in rows] == list(range(len(rows))) and 2 < len(rows) < 400
    assert [where.rpartition(":")[0] for where in bad] == [str(path)]
    assert "not readable from here on" in "".join(bad.values())


def test_bad_pairs_are_reported_once_and_beyond_the_limit_the_last_is_the_error(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    bad = BadPairs(file, limit=2)
    bad.add({"a:1": "damaged", "a:2": "no caption"})
    BadPairs(file, limit=2).add({"a:2": "no caption"})
    assert [json.loads(line)["where"] for line in file.read_text().splitlines()] == ["a:1", "a:2"]
    with pytest.raises(UserError, match=r"^a:3: cut; with it 3 pairs are bad and data\.max_bad=2 may .*the limit$"):
        BadPairs(file, limit=2).add({"a:3": "cut"})


def test_rows_without_a_usable_image_end_and_do_not_loop(tmp_path: Path) -> None:
    rows, _ = rows_of([lines_of(tmp_path / "pairs.jsonl", range(3))], tmp_path)
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    assert batches(rows)(0)["examples"] == [] and len(batches(rows)(0)["bad"]) == 3
    assert len(batches(rows, max_bad=1)(0)["bad"]) == 2


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "data.files: empty"),
        (["none-*.tar"], "there is no such file"),
        (["empty.tar"], "no file with anything in it"),
        (["notes.csv"], "unknown kind"),
    ],
)
def test_files_that_are_none(tmp_path: Path, files: list[str], words: str) -> None:
    (tmp_path / "empty.tar").touch()
    (tmp_path / "notes.csv").write_text("a")
    with pytest.raises(UserError, match=words):
        find_files([str(tmp_path / name) for name in files])


def test_a_home_of_nobody_is_no_file() -> None:
    with pytest.raises(UserError, match="~nobody-here/a.tar: there is no such file"):
        find_files(["~nobody-here/a.tar"])


def test_patterns_are_expanded_in_order(three_files: list[Path]) -> None:
    folder = three_files[0].parent
    assert find_files(f"{folder}/*.tar*") == three_files[:2]
    assert find_files([str(three_files[2]), str(three_files[2])]) == [three_files[2]] * 2


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{000..001}.tar", ["a-000.tar", "a-001.tar"]),
        ("a-{000,001}.tar", ["a-000.tar", "a-001.tar"]),
        ("a-{001..000}.tar", ["a-001.tar", "a-000.tar"]),
        ("{a,b}-{000..000}.tar", ["a-000.tar", "b-000.tar"]),
        ("{b-*,a-001}.tar", ["b-000.tar", "a-001.tar"]),
        ("{odd}[1].tar", ["{odd}[1].tar"]),
    ],
)
def test_braces_name_shards_as_in_webdataset_quoted_or_not(tmp_path: Path, pattern: str, names: list[str]) -> None:
    for name in ("a-000.tar", "a-001.tar", "b-000.tar", "{odd}[1].tar"):
        tar_of(tmp_path / name, [1])
    found = [find_files(f"{tmp_path}/{pattern}")]
    for form in ("{}", "[{}]", "['{}']", '["{}"]'):
        override = f"data.files={form.format(f'{tmp_path}/{pattern}')}"
        found.append(find_files(compose_settings("recipes/sft", [override]).data.files))
    assert all([path.name for path in paths] == names for paths in found)


def test_a_missing_shard_of_a_range_is_named(tmp_path: Path) -> None:
    tar_of(tmp_path / "a-0.tar", [1])
    with pytest.raises(UserError, match=r"a-1\.tar: there is no such file"):
        find_files(f"{tmp_path}/a-{{0..1}}.tar")


def test_tars_of_a_mac_and_captions_as_people_save_them(tmp_path: Path) -> None:
    """AppleDouble members and folders, byte order marks, Windows' line ends, names of odd bytes."""
    members = [("._1.png", b"mac"), ("1.png", png(1)), ("__MACOSX/._1.txt", b"mac"), ("1.txt", b"\xef\xbb\xbf1\r\n")]
    members += [("2.png", png(2)), ("2.txt", "2".encode("utf-16")), (".DS_Store", b"x"), ("a/._2.png", b"mac")]
    members += [("na\udce9ve.png", png(3)), ("na\udce9ve.json", b'\xef\xbb\xbf{"caption": "3"}')]
    path = write_tar(tmp_path / "mac.tar", members)
    lines = tmp_path / "pairs.jsonl"
    lines_of(lines, [4, 5])
    text = lines.read_text().replace('"caption": "5"', '"caption": "5", "note": "a\u2028b"')
    lines.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    rows, bad = rows_of([path, lines, packed], tmp_path)
    assert [number(row) for row in rows] == [1, 2, 3, 4, 5, 4, 5] and not bad


def test_damage_within_a_tar_is_named_and_not_taken_for_its_end(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", range(5))
    data = bytearray(path.read_bytes())
    data[512 * 8 : 512 * 8 + 200] = b"x" * 200  # the header of the third image
    path.write_bytes(data)
    rows, bad = rows_of([path], tmp_path)
    assert [number(row) for row in rows] == [0] and list(bad) == [f"{path}:a/001"]


def test_the_first_pair_is_checked_before_anything_starts(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "pairs.jsonl", [1])
    check_first([path], Fields())
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: field 'text' is missing; .*data\.caption_field"):
        check_first([path], Fields(caption="text"))
    (tmp_path / "a.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(UserError, match=r"a\.tar: the tar is not readable"):
        check_first([tmp_path / "a.tar"], Fields())
    path.write_text("\n")
    with pytest.raises(UserError, match="has no pairs"):
        check_first([path], Fields())


def test_tokens_see_the_whole_image_and_the_autoencoder_its_center() -> None:
    """A white square between two black margins: squashed, the margins stay; cropped, they are gone."""
    image = Image.new("RGB", (120, 60), "black")
    image.paste("white", (30, 0, 90, 60))
    file = io.BytesIO()
    image.save(file, "PNG")
    square, pixels = prepare(file.getvalue(), token_side=24, target_side=20)
    assert square.shape == (24, 24, 3) and pixels.shape == (3, 20, 20)
    assert square[12, [0, 12, 23], 0].tolist() == [0, 255, 0]
    inside = pixels[:, :, 1:-1]  # the filter mixes the margin into the outermost columns
    assert torch.equal(inside, torch.ones(3, 20, 18))
    square, pixels = prepare(file.getvalue(), token_side=24, target_side=20, crop="both")
    assert np.min(square) == 255 and torch.equal(pixels, torch.ones(3, 20, 20))


def test_an_image_too_long_to_crop_is_bad() -> None:
    with pytest.raises(BadPair, match=r"image of 400 x 10 px"):
        prepare(png(0, (400, 10)), 24, 20)
