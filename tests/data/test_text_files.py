"""The text reader: every way in which people save a list is read alike, or refused by what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import os
from datetime import date
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip3o_rl.data.text_files import decode, open_lines, parse_json, read_records
from blip3o_rl.errors import UserError

LINES = [{"prompt": "eine Straße", "id": "a"}, {"prompt": "赤い丸\u2028の\x85写真", "id": "b"}]
JSONL = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES)


def as_parquet(columns=None, **options) -> bytes:
    rows = [{**LINES[0], "include": [{"class": "circle", "color": "red"}]}, {**LINES[1], "include": [{"class": "x"}]}]
    out = io.BytesIO()
    pq.write_table(pa.table(columns, **options) if columns else pa.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", JSONL.encode()),
        ("a.jsonl", JSONL.encode("utf-8-sig")),
        ("a.jsonl", JSONL.encode("utf-16")),
        ("a.jsonl", b"\xfe\xff" + JSONL.encode("utf-16-be")),
        ("a.jsonl", JSONL.encode("utf-32")),
        ("a.jsonl", JSONL.replace("\n", "\r\n").encode()),
        ("a.jsonl", JSONL.replace("\n", "\r").encode()),
        ("a.jsonl", ("\n \n" + JSONL.replace("\n", "\n\n")).rstrip().encode()),
        ("a.txt", JSONL.encode()),
        ("a.json", json.dumps(LINES).encode()),
        ("a.json", json.dumps(LINES, indent=2, ensure_ascii=False).encode("utf-8-sig")),
        ("a.jsonl", json.dumps(LINES).encode()),
        ("a.jsonl.gz", gzip.compress(JSONL.encode("utf-8-sig"), mtime=0)),
        ("a.jsonl.bz2", bz2.compress(JSONL.encode())),
        ("a.xz", lzma.compress(JSONL.encode())),
        ("a.csv", f"id,prompt\na,eine Straße\nb,{LINES[1]['prompt']}\n".encode("utf-8-sig")),
        ("a.csv", f"id;prompt\r\na;eine Straße\r\nb;{LINES[1]['prompt']}\r\n".encode("utf-8-sig")),
        ("a.csv", f" \n;;\nsep=;\nid;prompt\na;eine Straße\nb;{LINES[1]['prompt']}\n".encode()),
        ("a.jsonl", "".join(f"\ufeff{line}\n" for line in JSONL.split("\n")).encode()),
        ("a.tsv", f"Prompt\tid\neine Straße\ta\n{LINES[1]['prompt']}\tb\n".encode()),
    ],
)
def test_every_way_to_save_a_list_reads_alike(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    found = read_records(tmp_path / name)
    assert [record.value for record in found] == LINES
    assert all(record.where.startswith(f"{tmp_path / name}:") for record in found)


def test_parquet_rows_hold_no_nulls(tmp_path):
    (tmp_path / "a.parquet").write_bytes(as_parquet())
    first, second = read_records(tmp_path / "a.parquet")
    assert first.value["include"] == [{"class": "circle", "color": "red"}]
    assert second.value["include"] == [{"class": "x"}] and second.where.endswith("a.parquet:row 2")


def test_parquet_columns_are_read_as_json_has_them_and_those_with_bytes_left_out(tmp_path):
    image = pa.array([{"bytes": b"\x89PNG", "path": "a.png"}])
    columns = {"prompt": ["a"], "day": [date(2026, 1, 2)], "price": [Decimal("1.50")], "image": image, "raw": [b"a"]}
    (tmp_path / "a.parquet").write_bytes(as_parquet(columns))
    assert read_records(tmp_path / "a.parquet")[0].value == {"prompt": "a", "day": "2026-01-02", "price": 1.5}


@pytest.mark.parametrize("name", ["references", "input_image", "output_image", "target"])
def test_parquet_columns_with_the_images_of_edits_are_not_left_out(tmp_path, name):
    (tmp_path / "a.parquet").write_bytes(as_parquet({"prompt": ["a"], name: [b"\x89PNG"]}))
    with pytest.raises(UserError, match=f"a.parquet: column '{name}' holds images; .* prompts import-edits"):
        read_records(tmp_path / "a.parquet")
    assert read_records(tmp_path / "a.parquet", images=True)[0].value[name] == b"\x89PNG"


def test_a_missing_number_of_a_table_is_absent(tmp_path):
    (tmp_path / "a.parquet").write_bytes(as_parquet({"prompt": ["a", "b"], "level": [1.5, float("nan")]}))
    found = read_records(tmp_path / "a.parquet")
    assert [record.value for record in found] == [{"prompt": "a", "level": 1.5}, {"prompt": "b"}]


def test_a_line_that_is_not_utf_8_may_be_of_another_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("Caf\u00e9\n".encode("cp1252") + "Gr\u00fcn\n".encode())
    found = read_records(tmp_path / "a.txt", fallback="cp1252")
    assert [record.value["prompt"] for record in found] == ["Caf\u00e9", "Gr\u00fcn"]


def test_a_plain_list_has_one_prompt_per_line(tmp_path):
    (tmp_path / "a.txt").write_bytes('[red] circle\r\n\r\n  5 squares, "blue"  \r\n'.encode("utf-16"))
    assert [(r.where, r.value) for r in read_records(tmp_path / "a.txt")] == [
        (f"{tmp_path / 'a.txt'}:1", {"prompt": "[red] circle"}),
        (f"{tmp_path / 'a.txt'}:3", {"prompt": '5 squares, "blue"'}),
    ]


def test_where_is_the_line_also_in_an_array_and_a_table(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"prompt": "a"},\n\n {"prompt":\n "b"}, 3]')
    assert [r.where.rsplit(":")[-1] for r in read_records(tmp_path / "a.json")] == ["2", "4", "5"]
    (tmp_path / "a.csv").write_text('prompt,include\n"two\nlines","[{""class"": ""x""}]"\nb,\n')
    found = read_records(tmp_path / "a.csv")
    assert [r.where.rsplit(":")[-1] for r in found] == ["2", "4"]
    assert found[0].value == {"prompt": "two\nlines", "include": [{"class": "x"}]} and found[1].value == {"prompt": "b"}


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b"a photo of a red circle\n", [":1: is plain text", '{"prompt"', ".txt"]),
        ("a.jsonl", b'{"prompt": "a"}\nb\n', [":2: is not JSON", "column 1"]),
        ("a.jsonl", b'{\n "prompt": "a"\n}\n', ["over several lines", "one object per line"]),
        ("a.jsonl", b'{"prompt": "a", "prompt": "b"}\n', [":1: field 'prompt' stands twice"]),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n' * 50 + b'{"prompt": "caf\xe9"}\n',
            [":51: is not UTF-8 text (0xe9 is character 16)"],
        ),
        ("a.jsonl", b'{"prompt": "a", "x": NaN}\n', [":1: holds NaN, which is no number of JSON"]),
        ("a.jsonl", b'{"prompt": "a", "x": -1e999}\n', [":1: holds -1e999, which is no number of JSON"]),
        ("a.json", b'[{"prompt": "a"},\n\n{"prompt": "b"},\n]\n', [":4: is not JSON", "fix the array"]),
        ("a.json", b'[\n{"prompt": "a"},\n{"prompt": "b", "x": NaN}\n]\n', [":3: holds NaN"]),
        ("a.json", b'[\n{"prompt": "a"},\n{"id": 1, "id": 2}\n]\n', [":3: field 'id' stands twice"]),
        ("a.json", b'[\n{"prompt": "a"},\n{"prompt": "b"', [":3: is not JSON", "fix the array"]),
        ("a.txt", "red circle\n".encode("utf-16-le"), [":1: holds NUL", "UTF-8"]),
        ("a.xlsx", b"PK\x03\x04\x14\0", ["zip archive or an Office document"]),
        ("a.pdf", b"%PDF-1.7", ["PDF"]),
        ("a.txt", b"<!DOCTYPE html>\n<html>", ["web page"]),
        ("a.txt", b"\xef\xbb\xbf\r\n<html>", ["web page"]),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer"]),
        ("a.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)[:-9], ["damaged"]),
        ("a.jsonl.gz", gzip.compress(b"a", mtime=0)[:-9], ["cannot be read"]),
        ("a.jsonl", b"[" * 5000 + b"]" * 5000, [":1: is JSON that is nested too deeply"]),
        ("a.parquet", as_parquet()[:-20], ["not readable as parquet"]),
        ("a.parquet", as_parquet({"image": [b"\x89PNG"], "prompt": [b"a"]}), ["columns (none)", "'prompt'"]),
        ("a.parquet", as_parquet([pa.array(["a"]), pa.array(["b"])], names=["x", "x"]), ["two columns named 'x'"]),
        ("a.csv", b"text,id\na,1\n", ["columns text, id", "'prompt'"]),
        ("a.csv", b"prompt,id,prompt\na,1,b\n", ["two columns named 'prompt'"]),
        (
            "a.csv",
            b'prompt,id\nb,2\n"a red circle,1\nc,3\n',
            [":3: is not CSV (unexpected end of data)", "quotation marks"],
        ),
        ("a.csv", b'\n\nprompt,id\n"FRESH BREAD" on a sign,1\n', [":4: is not CSV (',' expected after"]),
        ("a.csv", b"prompt,id\nred, round circle,1\n", [":2: has 3 cells under 2 columns"]),
    ],
)
def test_what_cannot_be_read_is_refused_by_what_it_is(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_records(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name)) and "\n" not in message
    for words in says:
        assert words in message


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "nothing", "no such file"), (tmp_path, "a folder"), (tmp_path / "pipe", "a pipe")):
        with pytest.raises(UserError, match=says):
            read_records(path)


def test_half_an_emoji_becomes_the_replacement_character_and_a_whole_one_stays(tmp_path):
    assert parse_json(r'{"prompt": "a \ud83d b \ud83d\ude00"}') == {"prompt": "a \ufffd b 😀"}
    assert math.isnan(parse_json('{"x": NaN}')["x"]), "a row may have what nobody reads"
    (tmp_path / "a.json").write_text(r'[{"prompt": "\ud83d"}]')
    assert read_records(tmp_path / "a.json")[0].value == {"prompt": "\ufffd"}


def test_lines_are_streamed_with_their_numbers(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\r\nthr\xc2\x85ee")
    assert list(open_lines(tmp_path / "a.txt")) == [(1, "one"), (3, "two"), (4, "thr\x85ee")]


def test_captions_are_decoded_by_their_mark():
    assert decode("Straße\n".encode("utf-16"), "x") == "Straße\n"
    assert decode(b"\xef\xbb\xbfa\r\nb", "x") == "a\nb"
    with pytest.raises(UserError, match="x:1: is not UTF-8"):
        decode(b"caf\xe9", "x")
