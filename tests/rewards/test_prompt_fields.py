"""What the built-in rewards refuse in a prompt's metadata when prompts are loaded, before anything runs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.geneval.reward import GenEvalReward
from blip3o_rl.rewards.ocr.reward import OCRReward
from blip3o_rl.scoring.adapters import reward_from
from blip3o_rl.scoring.rubric import Rubric

TWO = {
    "tag": "position",
    "prompt": "a photo of a circle left of a square",
    "include": [
        {"class": "square", "count": 1},
        {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
    ],
}


class NoReader:
    def read(self, images: list[np.ndarray]) -> list:
        raise AssertionError("nothing is read when prompts are loaded")


def changed(**changes) -> dict:
    return {**TWO, "include": [TWO["include"][0], {**TWO["include"][1], **changes}]}


def test_a_right_line_passes_with_what_tables_add():
    reward = GenEvalReward()
    assert reward.check_metadata(TWO) == ""
    assert reward.check_metadata({**TWO, "exclude": [{"class": "cross", "count": 1}], "id": 7}) == ""
    empty = {"color": None, "position": None}
    assert reward.check_metadata({**TWO, "exclude": None, "include": [{"class": "cross", "count": 2, **empty}]}) == ""
    assert reward.check_metadata({**TWO, "tag": "shelves"}) == "", "a tag of one's own"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (changed(colour="red"), "include[1].colour: there is no such key; did you mean 'color'?"),
        (changed(positon=["above", 0]), "include[1].positon: there is no such key; did you mean 'position'?"),
        ({**TWO, "include": [{"class": "circle", "cuont": 2}]}, "did you mean 'count'?"),
        ({**TWO, "include": [{"class": "circle"}]}, "include[0].count: is missing"),
        ({**TWO, "exclude": [{"class": "circle", "count": 2, "color": "red"}]}, "exclude[0].color: there is no such"),
        ({**TWO, "tag": "colours"}, "unknown tag 'colours'; did you mean 'colors'?"),
        ({**TWO, "tag": 3}, "field 'tag' is 3"),
        (changed(count=0), "include[1].count=0"),
        (changed(count="2"), "include[1].count=2"),
        (changed(color="redd"), "include[1].color: 'redd' is not seen; did you mean 'red'?"),
        (changed(**{"class": "cirle"}), "include[1].class: 'cirle' is not known; did you mean 'circle'?"),
        (changed(position=["beside", 0]), "include[1].position"),
        (changed(position=["left of", 1]), "refers to clause 1"),
        ({**TWO, "include": {"class": "circle", "count": 1}}, "field 'include' is not a list of clauses"),
        ({**TWO, "include": ["circle"]}, "field 'include' is not a list of clauses"),
        (changed(**{"class": "square"}), "include[1].class: 'square' is there twice"),
        (changed(count=17), "include[1].count: is 17; at most 16 things of a class are counted"),
        ({**TWO, "exclude": [{"class": "square", "count": 1}]}, "exclude[0].count: excludes as many 'square'"),
    ],
)
def test_a_demand_that_nobody_would_read_is_refused(line, message):
    fault = GenEvalReward().check_metadata(line)
    assert message in fault and "\n" not in fault


@pytest.mark.parametrize("mode", ["strict", "original"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a sign"}, "double quotes"),
        ({"prompt": 'a sign that says "OPEN'}, ""),
        ({"prompt": 'a sign that says ""'}, "blank"),
    ],
)
def test_ocr_refuses_prompts_whose_text_is_not_clear(mode, line, message):
    fault = OCRReward(mode=mode, reader=NoReader()).check_metadata(line)
    assert fault and message in fault


@pytest.mark.parametrize(
    ("reward", "fields", "message"),
    [
        (GenEvalReward(), {**TWO, "exlude": []}, "'exlude'; did you mean 'exclude'?"),
        (OCRReward(reader=NoReader()), {"texts": ["OPEN"]}, "'texts'; did you mean 'text'?"),
        (OCRReward(reader=NoReader()), {"Text": "SALE"}, "'Text'; did you mean 'text'?"),
    ],
)
def test_a_misspelt_optional_field_is_refused(reward, fields, message):
    prompt = 'a sign that says "OPEN"'
    with pytest.raises(UserError, match="f:1: no reward reads the field " + re.escape(message)):
        Rubric.of(reward).check_prompts([PromptRow(prompt, {"prompt": prompt, **fields}, "f:1")])


def test_ocr_lets_other_fields_pass():
    line = {"prompt": 'a sign that says "OPEN"', "context": "street", "texture": "wood", "id": 3}
    Rubric.of(OCRReward(reader=NoReader())).check_prompts([PromptRow(line["prompt"], line, "f:1")])


def test_a_function_declares_its_optional_fields_too():
    def score(image, metadata):
        return 0.0

    score.optional_metadata = ("target",)
    rubric = Rubric.of(reward_from(score, "mine", {}, "key"))
    with pytest.raises(UserError, match="'traget'; did you mean 'target'"):
        rubric.check_prompts([PromptRow("a", {"prompt": "a", "traget": 1}, "f:1")])
