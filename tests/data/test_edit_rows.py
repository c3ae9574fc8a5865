"""Editing rows of published data sets, read in one form and imported as prompts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip3o_rl.cli.main import run
from blip3o_rl.data.edit_import import import_edits
from blip3o_rl.data.edit_rows import EditRow, read_edit
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_lines


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


FORMS: dict[str, tuple[dict[str, Any], EditRow]] = {
    "own": (
        {"prompt": "a", "references": ["1.png"], "target": "2.png", "task": "subject", "mask": "m.png"},
        EditRow("a", ("1.png",), "2.png", "subject", {"mask": "m.png"}),
    ),
    "blip3o": (
        {"input_image": "1.png", "output_image": "2.png", "instruction": " a "},
        EditRow("a", ("1.png",), "2.png", "edit", {}),
    ),
    "blip3o, several": (
        {"input_images": ["1.png", "2.png"], "output_image": "3.png", "input_prompt": "Keep the image unchanged."},
        EditRow("Keep the image unchanged.", ("1.png", "2.png"), "3.png", "keep", {}),
    ),
    "edit-r1": (
        {"prompt": "a", "image": "1.png", "requirement": "r"},
        EditRow("a", ("1.png",), None, "edit", {"requirement": "r"}),
    ),
    "unirl": (
        {"prompt": "a", "metadata": {"id": 3}, "media": [
            {"modality": "image", "role": "condition", "uri": "1.png"}, {"role": "target", "uri": "9.png"}]},
        EditRow("a", ("1.png",), None, "edit", {"id": 3}),
    ),
    "unirl, metadata as a table has them": (
        {"prompt": "a", "metadata": '{"id": 3}', "image": "1.png"},
        EditRow("a", ("1.png",), None, "edit", {"id": 3}),
    ),
    "verl-omni": (
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "<image>a"}],
         "images": [{"bytes": b"x", "path": None}], "data_source": "d"},
        EditRow("a", (b"x",), None, "edit", {"data_source": "d"}),
    ),
    "verl-omni, parts": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}], "images": [b"x"]},
        EditRow("a", (b"x",), None, "edit", {}),
    ),
    "own, a data uri": (
        {"references": ["data:image/png;base64,eA=="], "prompt": "a"},
        EditRow("a", (b"x",), None, "edit", {}),
    ),
    "promptrl": ({"image": {"bytes": b"x"}, "prompt": "a"}, EditRow("a", (b"x",), None, "edit", {})),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_published_forms(form: str) -> None:
    data, expected = FORMS[form]
    assert read_edit(data) == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"image": "1.png"}, "no field for the instruction .*; there is image"),
    ({"prompt": "a"}, r"no field for the reference images \(references, input_images, .*\); there is prompt"),
    ({"prompt": [{"role": "assistant", "content": "a"}], "image": "1.png"}, "'prompt' is empty or no text"),
    ({"prompt": "a", "media": [{"role": "target", "uri": "1.png"}]}, "'media' has 0 images, the model takes 1 to 4"),
    ({"prompt": "a", "images": [{"bytes": None}]}, "'images' holds no path or bytes"),
    ({"prompt": "a", "image": "1.png", "task": "subejct"}, "'task' is 'subejct'.*did you mean 'subject'"),
    ({"prompt": "a", "image": "data:image/png;base64,?"}, "'image' holds a damaged data URI"),
    *(
        ({"prompt": "a", "image": "1.png", "metadata": wrong}, f"'metadata' is {kind} and no JSON object")
        for wrong, kind in ((5, "int"), (["ab"], "list"), ("ab", "str"), ('["ab"]', "list"))
    ),
    ({"prompt": "a", "image": "1.png", "target": 5}, "'target' holds no path"),
]


@pytest.mark.parametrize(("data", "words"), BAD)
def test_a_bad_row_names_its_field(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_edit(data)


def test_images_in_a_table_become_files_once_and_bad_rows_are_reported(tmp_path: Path) -> None:
    images = [png(1), png(2), png(1), png(3)[:40]]
    rows = [{"image": {"bytes": data, "path": "x"}, "prompt": f"edit {n}"} for n, data in enumerate(images)]
    pq.write_table(pa.Table.from_pylist([*rows, {"image": None, "prompt": "none"}]), tmp_path / "rl.parquet")
    found = import_edits(tmp_path / "rl.parquet", tmp_path / "out" / "edits.jsonl", 2)
    assert [row["prompt"] for row in found.rows] == ["edit 0", "edit 1", "edit 2"]
    paths = [row["references"][0] for row in found.rows]
    assert paths[0] == paths[2] != paths[1]
    assert [(tmp_path / "out" / path).read_bytes() for path in paths] == images[:3]
    assert len(found.report) == 2 and all("\n" not in line for line in found.report)
    assert found.report[0].startswith(f"{tmp_path / 'rl.parquet'}:row 4: reference image: not readable as an image")
    assert found.report[1].startswith(f"{tmp_path / 'rl.parquet'}:row 5: no field for the reference images")
    with pytest.raises(UserError, match=r"row 5: .*2 rows are bad and --max-bad=1 may"):
        import_edits(tmp_path / "rl.parquet", tmp_path / "out" / "edits.jsonl", 1)


def test_a_row_that_would_be_refused_later_is_reported_now(tmp_path: Path) -> None:
    for name, size in (("ok", (64, 64)), ("tiny", (8, 8)), ("long", (4000, 40))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    Image.new("L", (64, 64)).save(tmp_path / "mask.png")
    images = ["ok.png", "tiny.png", "long.png", "https://x.org/a.png"]
    lines: list[dict[str, Any]] = [{"prompt": "a", "image": image, "edit": {"mask": "mask.png"}} for image in images]
    lines.append({"prompt": "a", "image": "ok.png", "tag": 5})
    source = tmp_path / "train.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = import_edits(source, tmp_path / "out" / "edits.jsonl", 5)
    assert found.rows == [{"prompt": "a", "references": ["../ok.png"], "edit": {"mask": "../mask.png"}}]
    says = ["8 x 8 px, a side is shorter", "4000 x 40 px, the longer", "'https://x.org/a.png' is an address", "'tag'"]
    for number, (line, words) in enumerate(zip(found.report, says, strict=True), start=2):
        assert line.startswith(f"{source}:{number}: ") and line.count(str(source)) == 1 and words in line


def test_paths_are_relative_to_the_prompt_file_and_other_fields_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.png").write_bytes(png(1))
    lines = [{"prompt": "a", "image": "1.png", "requirement": "r"}, {"prompt": "b", "image": "2.png"}, "{"]
    source = tmp_path / "data" / "train.jsonl"
    source.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    found = import_edits(source, tmp_path / "out" / "edits.jsonl", 5)
    assert found.rows == [{"prompt": "a", "references": ["../data/1.png"], "requirement": "r"}]
    assert [line.split(": ")[0] for line in found.report] == [f"{source}:2", f"{source}:3"]
    assert "no such file" in found.report[0] and "not JSON" in found.report[1]
    assert run(["prompts", "import-edits", str(source), "-o", str(tmp_path / "out" / "edits.jsonl")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        *found.report,
        "1 prompts with references, 2 rows left out",
        str(tmp_path / "out" / "edits.jsonl"),
    ]
    assert read_lines(Path(printed[-1])) == found.rows
