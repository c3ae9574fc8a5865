"""Image grids: geometry, honest enlargement, captions that stay in their cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o_rl.report import fonts, gallery
from blip3o_rl.report.evaluations import Pair
from blip3o_rl.report.fonts import font_for, has_letters, wrapped
from blip3o_rl.report.gallery import CELL, Tile, grid, save_grid, save_pairs, step_header


def _noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def _width(columns: int) -> int:
    return 2 * gallery.MARGIN + columns * CELL + (columns - 1) * gallery.GAP


def test_width_follows_the_columns_and_height_the_rows():
    tiles = [Tile(_noise(64), "a photo of a circle", 0.5)] * 7
    one, two = grid(tiles, columns=7), grid(tiles, columns=4)
    assert one.width == _width(7) and two.width == _width(4)
    assert two.height > 2 * CELL > one.height > CELL
    assert grid(tiles, header="step 1", columns=7).height > one.height


def test_small_images_are_enlarged_by_a_whole_factor_without_smoothing():
    image = _noise(64)
    sheet = np.asarray(grid([Tile(image, "x", 1.0)]))
    inner = sheet[gallery.MARGIN : gallery.MARGIN + CELL, gallery.MARGIN : gallery.MARGIN + CELL]
    expected = image.repeat(3, axis=0).repeat(3, axis=1)
    # the frame is drawn over the last row and column at most
    assert np.array_equal(inner[:-1, :-1], expected[:-1, :-1])


def test_large_images_are_reduced_into_the_cell():
    sheet = grid([Tile(_noise(512), "x", 1.0), Tile(np.zeros((300, 600, 3), np.uint8), "wide", 0.0)], columns=2)
    assert sheet.width == _width(2)


def test_long_prompts_are_cut_to_three_lines_that_fit():
    font = font_for("x", 13)
    lines = wrapped("a photo of " + "very " * 40 + "unbreakable" * 10, font, CELL)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(font.getlength(line) <= CELL for line in lines)
    assert wrapped("", font, CELL) == [""]


def test_a_failed_sample_looks_different_from_a_zero():
    image = _noise(64)
    assert grid([Tile(image, "x", None)]).tobytes() != grid([Tile(image, "x", 0.0)]).tobytes()


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)])
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        grid([Tile(image, "x", 1.0)])


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        grid([])


def test_header_counts_failures_apart_from_the_mean():
    assert step_header(10, [1.0, 0.0, None]) == "step 10   ·   mean score 0.50 of 2 images   ·   1 failed"
    assert "mean" not in step_header(1, [None])


def test_saved_grid_is_a_readable_png_and_nothing_else(tmp_path):
    file = save_grid(tmp_path / "images" / "step_000001.png", [Tile(_noise(64), "x", 1.0)], "step 1")
    assert Image.open(file).format == "PNG"
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_text_without_spaces_is_broken_and_keeps_its_letters():
    font = font_for("x", 13)
    text = "unbroken" * 8
    lines = wrapped(f"a {text}", font, CELL, lines=9)
    assert len(lines) > 2 and "".join(lines) == "a" + text
    assert all(font.getlength(line) <= CELL for line in lines)


@pytest.mark.parametrize("prompt", ["一张红色圆形的照片", "赤い丸の写真", "빨간 원의 사진"])
def test_prompts_no_font_has_are_readable_on_a_page_next_to_the_grid(tmp_path, monkeypatch, prompt):
    monkeypatch.setattr(fonts, "FOLDERS", ())
    fonts._installed.cache_clear()
    file = save_grid(tmp_path / "grid.png", [Tile(_noise(8), prompt, 1.0), Tile(_noise(8), "<b>x", 0.5)], "two")
    page = (tmp_path / "grid.html").read_text(encoding="utf-8")
    fonts._installed.cache_clear()
    assert file.exists() and prompt in page and "&lt;b&gt;x" in page and page.count("data:image/png") == 2


def test_prompts_in_the_letters_of_pillows_own_font_need_no_page(tmp_path):
    save_grid(tmp_path / "grid.png", [Tile(_noise(8), "a cafe, “open”…", 1.0)])
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


def test_a_font_that_has_the_letters_is_used(monkeypatch):
    installed = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"
    if not Path(installed).is_file():
        pytest.skip("no DejaVu fonts here")
    text = "ⴰⵣⵓⵍ"
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    assert not has_letters(text)
    monkeypatch.setattr(fonts, "_installed", lambda: (installed,))
    assert has_letters(text) and font_for(text, 13).path == installed


def test_half_an_emoji_in_a_prompt_does_not_break_the_grid(tmp_path):
    save_grid(tmp_path / "grid.png", [Tile(_noise(8), "a \ud83d cat", 1.0)], "a \ud83d header")


def test_captions_say_score_note_and_change():
    image = _noise(8)
    assert Tile(image, "x", 0.5, "worst").caption == "0.50  worst"
    assert Tile(image, "x", 1.0, before=0.25).caption == "0.25 -> 1.00"
    assert (
        Tile(image, "x", None).caption == "failed" and Tile(image, "x", note="seed 3", scored=False).caption == "seed 3"
    )


def test_pairs_show_before_and_after_of_the_same_prompt(tmp_path):
    before, after = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 200, np.uint8)
    sheet = np.asarray(Image.open(save_pairs(tmp_path / "x.png", [Pair("a circle", before, after, 0.25, 1.0)])))
    row = sheet[gallery.MARGIN + 34 + CELL // 2]
    assert (row[gallery.MARGIN + CELL // 2] == 0).all() and (row[gallery.MARGIN + CELL + 12 + CELL // 2] == 200).all()


def test_an_edit_is_shown_next_to_its_reference_and_the_difference(tmp_path):
    reference, result = np.zeros((48, 96, 3), np.uint8), np.full((64, 64, 3), 200, np.uint8)
    reference[:, 24:72] = 200
    reference[:24, 24:48] = (200, 80, 200)
    sheet = np.asarray(grid([Tile(result, "make it gray", 0.5, reference=reference)]))
    row = sheet[gallery.MARGIN + CELL // 4 + 8]
    seen = [tuple(row[gallery.MARGIN + panel * (CELL + 12) + CELL // 2 - 20]) for panel in range(3)]
    assert seen == [(200, 80, 200), (200, 200, 200), (135, 135, 135)]
    white = sheet[gallery.MARGIN + 3 * CELL // 4, gallery.MARGIN + 2 * (CELL + 12) + 3 * CELL // 4]
    assert tuple(white) == (255, 255, 255), "nothing changed there"
    mixed = grid([Tile(result, "a circle", 0.5), Tile(result, "make it gray", 0.5, reference=reference)])
    assert mixed.width == 2 * gallery.MARGIN + 2 * (3 * CELL + 24) + gallery.GAP
    pair = Pair("make it gray", result, result, 0.25, 1.0, reference)
    assert Image.open(save_pairs(tmp_path / "x.png", [pair])).width == 2 * gallery.MARGIN + 3 * CELL + 24
