"""Prompt files: what is accepted, what is refused and how."""

from __future__ import annotations

import json

import pytest
from editing import encoded, photo

from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.errors import UserError

GOOD = {
    "tag": "position",
    "include": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}],
    "prompt": "a photo of a circle left of a square",
}


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_rows_know_where_they_come_from(tmp_path):
    path = write(tmp_path, GOOD, "", {"prompt": "free text", "target": "abc", "id": "mine"})
    rows = read_prompts(path)
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:3"]
    assert rows[1].metadata["target"] == "abc"
    assert [row.id for row in rows] == ["prompts.jsonl:1", "mine"]


def test_an_id_names_one_prompt(tmp_path):
    named = {"prompt": "a", "id": "x"}
    rows = read_prompts(write(tmp_path, {"prompt": "a", "id": None}, named, named))
    assert [row.id for row in rows] == ["prompts.jsonl:1", "x", "x"]
    path = write(tmp_path, named, {"prompt": "b", "id": "x"})
    with pytest.raises(UserError, match=f"{path}:2: has the id 'x' of {path}:1; give each prompt its own"):
        read_prompts(path)


def test_references_are_found_next_to_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(encoded(photo(0)))
    write(tmp_path, {"prompt": "make it red", "references": ["a.png"]})
    (row,) = read_prompts("~/prompts.jsonl")
    assert row.references[0].source == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "x"', ["not JSON"]),
        ("[1]", ["list", "'prompt'"]),
        ({"tag": "colors", "promt": "x"}, ["'prompt' is missing", "tag, promt"]),
        ({"prompt": 3}, ["'prompt'", "int"]),
        ({"prompt": "  "}, ["'prompt'", "non-empty"]),
        ({**GOOD, "tag": 1}, ["'tag'"]),
    ],
)
def test_mistakes_name_line_and_field(tmp_path, line, words):
    path = write(tmp_path, GOOD, line)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ") and "\n" not in message
    for word in words:
        assert word in message


def test_missing_empty_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="no prompts"):
        read_prompts(write(tmp_path, "", "  "))
    binary = tmp_path / "x.jsonl"
    binary.write_bytes(b"\x80\x01")
    with pytest.raises(UserError, match="UTF-8"):
        read_prompts(binary)
