"""Target and mask of a row with references: resolved, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import encoded, photo, write_rows
from PIL import Image

from blip3o_rl.data.images import png_uri
from blip3o_rl.data.prompts import PromptRow, prompt_line, read_prompts
from blip3o_rl.data.references import load_image
from blip3o_rl.errors import UserError

HALF = np.zeros((64, 64, 3), np.uint8)
HALF[:, 32:] = 255


def read(folder: Path, **fields: Any) -> PromptRow:
    images = {"a": photo(0), "b": photo(1), "half": HALF, "white": HALF | 255, "small": HALF[:32]}
    images["alpha"] = np.concatenate([HALF, HALF[..., :1]], axis=2)
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(encoded(image))
    (folder / "cut.png").write_bytes(encoded(photo(2))[:900])
    (row,) = read_prompts(write_rows(folder / "p.jsonl", {"prompt": "make it red", "references": ["a.png"], **fields}))
    return row


def test_paths_become_absolute_and_data_uris_stay(tmp_path: Path) -> None:
    edit = {"operation": "style", "mask": "half.png"}
    row = read(tmp_path, target="b.png", edit=edit)
    assert row.metadata["target"] == str(tmp_path / "b.png")
    assert row.metadata["edit"] == {"operation": "style", "mask": str(tmp_path / "half.png")}
    uri = png_uri(photo(1))
    assert read(tmp_path, target=uri).metadata["target"] == uri
    for source in (row.metadata["target"], uri):
        assert np.array_equal(load_image(source), photo(1))


def test_a_mask_may_have_an_alpha_channel_through_which_nothing_shows(tmp_path: Path) -> None:
    (tmp_path / "opaque.png").write_bytes(encoded(np.concatenate([HALF, HALF[..., :1] | 255], axis=2)))
    assert read(tmp_path, edit={"mask": "opaque.png"}).metadata["edit"]["mask"] == str(tmp_path / "opaque.png")


def test_the_line_of_a_row_finds_its_images_from_another_folder(tmp_path: Path) -> None:
    row = read(tmp_path, target="b.png", edit={"mask": png_uri(HALF)}, tag="x")
    line = prompt_line(row, tmp_path / "out" / "q.jsonl")
    expected = {"prompt": row.prompt, "references": ["../a.png"], "target": "../b.png", "tag": "x"}
    assert line == {**expected, "edit": {"mask": png_uri(HALF)}}
    (tmp_path / "out").mkdir()
    (again,) = read_prompts(write_rows(tmp_path / "out" / "q.jsonl", line))
    assert again.key == row.key and again.metadata["target"] == row.metadata["target"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "gone.png"}, "target .*gone.png.: no such file"),
        ({"target": "cut.png"}, "target .*cut.png.: not readable as an image"),
        ({"target": "https://host/a.png"}, "target .* is an address"),
        ({"target": "a.png"}, "target 'a.png' is the reference itself; give the edited image"),
        ({"target": png_uri(photo(0))}, "target 'data:.*' is the reference itself"),
        ({"edit": {"mask": "gone.png"}}, "edit.mask .*gone.png.: no such file"),
        ({"edit": {"mask": "data:image/png;base64,%"}}, "edit.mask .* is not base64"),
        ({"edit": {"mask": "small.png"}}, "edit.mask 'small.png' and the reference are 64 x 32 px and 64 x 64 px"),
        ({"edit": {"mask": "alpha.png"}}, "edit.mask 'alpha.png' is transparent in places; make it white where"),
        ({"edit": {"mask": "white.png"}}, "edit.mask 'white.png' is all white; leave black what is to stay"),
    ],
)
def test_what_does_not_fit_is_one_line(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"p.jsonl:1: {message}") as found:
        read(tmp_path, **fields)
    assert "\n" not in str(found.value)


def test_a_row_that_keeps_the_image_has_itself_as_target(tmp_path: Path) -> None:
    assert read(tmp_path, task="keep", target="a.png").metadata["target"] == str(tmp_path / "a.png")


def test_a_mask_may_be_gray_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(HALF[..., 0]).convert("LA").save(tmp_path / "gray.png")
    assert read(tmp_path, edit={"mask": "gray.png"}).metadata["edit"]["mask"].endswith("gray.png")
