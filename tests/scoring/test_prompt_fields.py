"""Fields of a prompt that nobody reads are refused when prompts are loaded, if they are nearly one that is read."""

from __future__ import annotations

import pytest

from blip3o_rl.data.prompts import check_row
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.build import build_rubric

GOOD = {"tag": "counting", "include": [{"class": "square", "count": 1}], "prompt": "a photo of a square"}
NESTED = [{"class": "square", "count": 2}]


def without(field):
    return {name: value for name, value in GOOD.items() if name != field}


@pytest.mark.parametrize(
    ("reward", "line", "says"),
    [
        ("geneval", {**GOOD, "exclde": NESTED}, "no reward reads the field 'exclde'; did you mean 'exclude'"),
        ("geneval", {**without("include"), "inclde": NESTED}, "did you mean 'include'"),
        ("ocr", {"prompt": 'a sign "A B"', "texts": ["A", "B"]}, "did you mean 'text'"),
        ("geneval", {**GOOD, "include": {}}, "field 'include' is missing"),
        ("geneval", {**GOOD, "exclude": [{"class": "square", "cuont": 2}]}, "did you mean 'count'"),
    ],
)
def test_a_demand_that_nobody_would_read_is_refused_with_its_line(reward, line, says):
    with pytest.raises(UserError, match=says) as caught:
        build_rubric({reward: {}}).check_prompts([check_row(line, "mine.jsonl:7")])
    assert str(caught.value).startswith("mine.jsonl:7: ")


@pytest.mark.parametrize("more", [{}, {"source": "me", "difficulty": 3, "id": "a"}, {"exclude": None}])
def test_fields_that_are_like_none_that_is_read_are_welcome(more):
    build_rubric({"geneval": {}}).check_prompts([check_row({**GOOD, **more}, "mine.jsonl:1")])
