"""Layout briefs: what is held out stays held out, and prompts say what the brief asks for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o_rl.data.synthetic import layouts
from blip3o_rl.data.synthetic.scenes import BACKGROUND


def asked(line):
    parts = {element["id"]: element for element in line["layout"]["elements"]}
    title, logo = parts["title"], parts["logo"]
    found = {"words": title["text"], "logos": (logo["color"], logo["class"])}
    match title["region"].split():
        case [row, column]:
            found["cells"] = (layouts.ROWS.index(row), column, logo["region"].split()[1])
    return found


def test_held_out_words_cells_and_logos_are_never_trained_on_together_or_alone():
    for line in layouts.train_prompts(600, seed=1):
        found = asked(line)
        assert ("cells" in found) == (line["tag"] == "logo")
        for name in found:
            assert found[name] in layouts.SIDES[name][0] and found[name] not in layouts.SIDES[name][1]


def test_each_held_out_prompt_has_one_new_thing():
    lines = layouts.held_out_prompts()
    assert len({line["prompt"] for line in lines}) == len(lines) == 72
    assert [line["tag"] for line in lines[:6]] == ["words", "cells", "logos"] * 2
    for line in lines:
        assert line["tag"] in asked(line)
        for name, value in asked(line).items():
            assert value in layouts.SIDES[name][name == line["tag"]]
        assert line["prompt"].startswith("a photo of a design with ")


@pytest.mark.parametrize(
    ("region", "box"),
    [("top left", (0, 0, 1 / 3, 1 / 3)), ("bottom", (0, 2 / 3, 1, 1)), ("center", (1 / 3, 0, 2 / 3, 1)),
     ("middle right", (2 / 3, 1 / 3, 1, 2 / 3))],
)  # fmt: skip
def test_regions(region, box):
    assert layouts.region_box(region) == pytest.approx(box)


def test_prompts_name_the_elements_in_order_in_three_templates():
    layout = {
        "elements": [
            {"id": "t", "class": "text", "text": "HE", "region": "top left"},
            {"id": "l", "class": "circle", "color": "orange", "region": "middle center"},
            {"id": "b", "class": "panel", "color": "yellow", "box": [0, 0.78, 1, 1]},
        ]
    }
    assert [layouts.prompt(layout, number) for number in range(3)] == [
        'a photo of a design with the text "HE" at the top left, an orange circle in the center and '
        "a yellow band along the bottom",
        'a poster: top left the text "HE"; center an orange circle; a yellow band along the bottom',
        '"HE" at the top left, an orange circle in the center, a yellow band along the bottom, '
        "on a light gray background",
    ]
    panel = {"id": "p", "class": "panel", "color": "blue", "box": [0.1, 0, 0.9, 0.5]}
    on = {"elements": [panel, layout["elements"][0]], "under": [["t", "p"]]}
    assert layouts.prompt(on) == 'a photo of a design with the text "HE" on a blue panel at the top left'


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), tag=st.sampled_from(["logo", "row", "band", "panel"]))
def test_what_is_drawn_lies_in_its_region_and_apart(seed, tag):
    rng = np.random.default_rng(seed)
    line = layouts.brief(rng, tag)
    for element in line["layout"]["elements"]:
        if element["class"] == "panel":
            continue
        alone = {**line["layout"], "elements": [{**element, "color": "black"}], "under": []}
        ys, xs = np.nonzero(np.abs(layouts.draw(alone, 72).astype(int) - BACKGROUND).sum(2) > 60)
        left, top, right, bottom = (72 * edge for edge in layouts.region_box(element["region"]))
        assert left - 0.6 <= (xs.min() + xs.max() + 1) / 2 <= right + 0.6
        assert top - 0.6 <= (ys.min() + ys.max() + 1) / 2 <= bottom + 0.6


@pytest.mark.parametrize("kind", ["cup", "circle", "cross", "panel", "text"])
@pytest.mark.parametrize("text", ["SALE", "FACE"])
@pytest.mark.parametrize("box", [[0.1, 0.1, 0.1004, 0.5], [0.1, 0.1, 0.5, 0.1004]])
def test_an_element_may_be_smaller_than_a_pixel(kind, text, box):
    element = {"id": "a", "class": kind, "text": text, "box": box, "size": [0.0001, 0.0002]}
    assert layouts.draw({"elements": [element]}).shape == (64, 64, 3)


def test_other_words_and_classes_are_drawn_for_the_preview():
    layout = {
        "background": "white",
        "elements": [
            {"id": "t", "class": "text", "text": "Summer sale", "region": "top"},
            {"id": "o", "class": "bottle", "color": "orange", "region": "bottom left", "size": [0.2, 0.3]},
            {"id": "x", "class": "circle", "color": "#123456", "box": [0.6, 0.6, 0.9, 0.9]},
        ],
    }
    image = layouts.draw(layout, 256)
    assert image.shape == (256, 256, 3) and tuple(image[128, 2]) == (255, 255, 255)
    assert tuple(image[192, 192]) == (0x12, 0x34, 0x56)
    assert (image[:85] < 100).any()
    hairline = {"id": "p", "class": "panel", "color": "black", "box": [0, 0.5, 0.0001, 0.5001]}
    assert (layouts.draw({"elements": [hairline]}, 64) < 238).sum() == 3
