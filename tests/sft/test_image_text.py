"""Image-text pairs: what is read, in which order, how a stream goes on, and what is said about bad pairs."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip3o_rl.errors import UserError
from blip3o_rl.sft.image_text import (
    BadPair,
    Fields,
    RawPair,
    check_first,
    find_files,
    open_picture,
    prepare,
)
from blip3o_rl.sft.pair_stream import PairStream, Position


def png(grey: int = 0, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_of(path: Path, numbers: Iterable[int], mode: str = "w") -> Path:
    members = [
        (f"a/{n:03d}.{kind}", data) for n in numbers for kind, data in (("png", png(n)), ("txt", f"{n}".encode()))
    ]
    return write_tar(path, members, mode)


def lines_of(path: Path, numbers: Iterable[int]) -> Path:
    (path.parent / "pictures").mkdir(exist_ok=True)
    lines = []
    for n in numbers:
        (path.parent / "pictures" / f"{n}.png").write_bytes(png(n))
        lines.append(json.dumps({"image": f"pictures/{n}.png", "caption": f"{n}"}) + "\n")
    path.write_text("".join(lines))
    return path


def number(raw: RawPair) -> int:
    """Caption and picture, which must belong together."""
    assert open_picture(raw)[0, 0, 0] == int(raw.caption)
    return int(raw.caption)


def stream(files: list[Path], **options: Any) -> PairStream[int]:
    return PairStream(files, options.pop("make", number), **({"shuffle": 4} | options))


@pytest.fixture(scope="module")
def three_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """15 pairs, numbered, of all three kinds of file."""
    folder = tmp_path_factory.mktemp("pairs")
    tars = [tar_of(folder / "a.tar", range(6)), tar_of(folder / "b.tar.gz", range(6, 11), "w:gz")]
    return [*tars, lines_of(folder / "c.jsonl", range(11, 15))]


def test_a_pass_gives_every_pair_once_in_another_order_each_time(three_files: list[Path]) -> None:
    pairs = stream(three_files, seed=3)
    first, second = pairs.take(15), pairs.take(15)
    assert sorted(first) == sorted(second) == list(range(15))
    assert first != second != sorted(second)
    assert stream(three_files, seed=3).take(30) == first + second
    assert stream(three_files, seed=4).take(15) != first


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_a_pass(three_files: list[Path], world: int) -> None:
    seen: list[int] = []
    for rank in range(world):
        pairs = stream(three_files, rank=rank, world=world)
        while True:
            found = pairs.take(1)
            if pairs.position.epoch:
                break
            seen += found
    assert sorted(seen) == list(range(15))


@settings(max_examples=40, deadline=None)
@given(
    before=st.lists(st.integers(1, 9), max_size=6),
    shuffle=st.integers(1, 20),
    world=st.sampled_from([1, 2, 5]),
)
def test_a_stream_goes_on_where_it_was(three_files: list[Path], before: list[int], shuffle: int, world: int) -> None:
    options = {"shuffle": shuffle, "world": world, "rank": world - 1, "seed": 1}
    whole = stream(three_files, **options)
    for count in before:
        whole.take(count)
    resumed = stream(three_files, position=whole.position, **options)
    assert resumed.take(20) == whole.take(20)
    assert resumed.position == whole.position


def test_fields_of_ones_own_and_captions_in_json_members(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(7))
    lines = tmp_path / "own.jsonl"
    lines.write_text(json.dumps({"file": str(tmp_path / "x.png"), "text": " 7 "}) + "\n\n")
    tar = write_tar(
        tmp_path / "own.tar", [("1.a.json", b"{}"), ("1.JPG", png(8, kind="JPEG")), ("1.json", b'{"text": "8"}')]
    )
    pairs = stream([lines, tar], fields=Fields("file", "text"))
    assert sorted(pairs.take(2)) == [7, 8]


BAD_LINES = [
    ({"image": "pictures/none.png", "caption": "1"}, ["none.png", "no such file"]),
    ({"image": "pairs.jsonl", "caption": "1"}, ["not readable as an image"]),
    ({"image": "cut.png", "caption": "1"}, ["not readable as an image"]),
    ({"image": "moving.png", "caption": "1"}, ["2 images in one file"]),
    ({"image": "pictures/0.png", "caption": "  "}, ["'caption'", "empty"]),
    ({"image": "pictures/0.png"}, ["'caption' is missing"]),
    ({"caption": "1"}, ["'image' is missing"]),
    ({"image": 3, "caption": "1"}, ["'image'"]),
    ([1], ["list, not a JSON object"]),
    ("{", ["not JSON"]),
]


@pytest.mark.parametrize(("line", "words"), BAD_LINES)
def test_a_bad_line_is_named_and_left_out(tmp_path: Path, line: Any, words: list[str]) -> None:
    path = lines_of(tmp_path / "pairs.jsonl", range(4))
    (tmp_path / "cut.png").write_bytes(png(1, (64, 64))[:60])
    Image.new("RGB", (8, 8)).save(
        tmp_path / "moving.png", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    )
    good = path.read_text().splitlines()
    path.write_text("\n".join([*good[:2], line if isinstance(line, str) else json.dumps(line), *good[2:]]) + "\n")
    told: list[tuple[str, str]] = []
    pairs = stream([path], max_bad=1, on_bad=lambda where, reason: told.append((where, reason)))
    assert sorted(pairs.take(8)) == sorted([*range(4), *range(4)])
    assert list(pairs.bad) == [f"{path}:3"]
    assert told == list(pairs.bad.items())
    assert all(word in told[0][1] for word in words)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("x.png", png())], ["no caption"]),
        ([("x.txt", b"text")], ["no picture", ".webp"]),
        ([("x.png", png()), ("x.txt", b" \n")], ["x.txt", "empty"]),
        ([("x.png", png()), ("x.txt", b"\xff\xfe")], ["not UTF-8"]),
        ([("x.png", png()), ("x.json", b"{}")], ["'caption' is missing"]),
        ([("x.png", b"no picture"), ("x.txt", b"text")], ["not readable as an image"]),
    ],
)
def test_a_bad_group_of_members_is_named_and_left_out(tmp_path: Path, members: Any, words: list[str]) -> None:
    path = write_tar(
        tmp_path / "a.tar", [("1.png", png(1)), ("1.txt", b"1"), *members, ("y.png", png(2)), ("y.txt", b"2")]
    )
    pairs = stream([path])
    assert sorted(pairs.take(4)) == [1, 1, 2, 2]
    assert list(pairs.bad) == [f"{path}:x"]
    assert all(word in pairs.bad[f"{path}:x"] for word in words)


def test_a_truncated_tar_gives_what_it_has_and_is_named(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", range(5))
    path.write_bytes(path.read_bytes()[: 512 * 13 + 30])  # within the fourth pair; a pair takes 4 blocks
    pairs = stream([path], max_bad=1)
    assert sorted(pairs.take(6)) == [0, 0, 1, 1, 2, 2]
    assert [where.rpartition(":")[0] for where in pairs.bad] == [str(path)]
    assert "not readable from here on" in "".join(pairs.bad.values())


def test_beyond_the_limit_the_last_bad_pair_is_the_error(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "pairs.jsonl", range(3))
    path.write_text(path.read_text() + '{"image": "a.png"}\n' * 3)
    with pytest.raises(
        UserError, match=r"pairs\.jsonl:\d: field 'caption' is missing; with it 3 pairs .*max_bad=2"
    ) as error:
        stream([path], max_bad=2).take(20)
    assert "\n" not in str(error.value)


def test_a_pair_is_bad_once_also_in_a_resumed_stream(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "pairs.jsonl", range(3))
    path.write_text(path.read_text() + "{}\n")
    pairs = stream([path], max_bad=1)
    pairs.take(9)
    told: list[str] = []
    resumed = stream(
        [path], max_bad=1, position=pairs.position, bad=pairs.bad, on_bad=lambda where, _: told.append(where)
    )
    assert len(resumed.take(9)) == 9 and not told


def test_data_without_a_usable_pair_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("{}\n{}\n")
    with pytest.raises(UserError, match=r"no usable pair \(2 bad ones\)"):
        stream([path]).take(1)
    path.write_text("\n\n")
    with pytest.raises(UserError, match="no usable pair"):
        stream([path]).take(1)
    with pytest.raises(UserError, match="fewer processes"):
        stream([lines_of(path, [1])], rank=1, world=2, seed=1).take(3)


def test_what_a_bad_maker_says_counts_as_a_bad_pair(tmp_path: Path) -> None:
    def odd(raw: RawPair) -> int:
        if int(raw.caption) % 2:
            raise BadPair("is odd")
        return int(raw.caption)

    path = lines_of(tmp_path / "pairs.jsonl", range(4))
    pairs = stream([path], make=odd)
    assert sorted(pairs.take(4)) == [0, 0, 2, 2]
    assert set(pairs.bad.values()) == {"is odd"}


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


def test_patterns_are_expanded_in_order(three_files: list[Path]) -> None:
    folder = three_files[0].parent
    assert find_files(f"{folder}/*.tar*") == three_files[:2]
    assert find_files([str(three_files[2]), str(three_files[2])]) == [three_files[2]] * 2


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


def test_tokens_see_the_whole_picture_and_the_autoencoder_its_centre() -> None:
    """A white square between two black margins: squashed, the margins stay; cropped, they are gone."""
    picture = Image.new("RGB", (120, 60), "black")
    picture.paste("white", (30, 0, 90, 60))
    file = io.BytesIO()
    picture.save(file, "PNG")
    raw = RawPair("x", "text", file.getvalue())
    pair = prepare(raw, token_side=24, target_side=20)
    assert pair.square.shape == (24, 24, 3)
    assert pair.pixels.shape == (3, 20, 20)
    assert pair.square[12, [0, 12, 23], 0].tolist() == [0, 255, 0]
    inside = pair.pixels[:, :, 1:-1]  # the filter mixes the margin into the outermost columns
    assert torch.equal(inside, torch.ones(3, 20, 18))
    both = prepare(raw, token_side=24, target_side=20, crop="both")
    assert both.square.min() == 255
    assert torch.equal(both.pixels, torch.ones(3, 20, 20))


def test_a_picture_too_long_to_crop_is_a_bad_pair() -> None:
    with pytest.raises(BadPair, match=r"image of 400 x 10 px"):
        prepare(RawPair("x", "text", png(0, (400, 10))), 24, 20)


def test_positions_are_plain_numbers() -> None:
    assert Position(**json.loads(json.dumps(vars(Position(1, 2, 3, 4))))) == Position(1, 2, 3, 4)
