"""Fields of a prompt that nobody reads, and clauses that no reward could score, are refused when prompts are loaded."""

from __future__ import annotations

import pytest

from blip3o_rl.data.prompts import check_row
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.build import build_rubric

SQUARE = {"class": "square", "count": 1}
GOOD = {
    "tag": "position",
    "include": [SQUARE, {"class": "circle", "count": 1, "position": ["left of", 0]}],
    "prompt": "a photo of a circle left of a square",
}


def without(*fields):
    return {name: value for name, value in GOOD.items() if name not in fields}


def clause(**change):
    return {**GOOD, "include": [SQUARE, {**GOOD["include"][1], **change}]}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({**GOOD, "exclde": [{"class": "circle", "count": 2}]}, "reads the field 'exclde'; did you mean 'exclude'"),
        ({**without("include"), "inclde": GOOD["include"]}, "did you mean 'include'"),
        (clause(colour="red"), "'color'"),
        (clause(poistion=["left of", 0]), "'position'"),
        ({**GOOD, "exclude": [{**SQUARE, "cuont": 2}]}, "'count'"),
        ({**GOOD, "include": {}}, "field 'include' is missing|list of clauses"),
        ({**GOOD, "include": ["circle"]}, "list of clauses"),
        (clause(**{"class": None}), r"include\[1\]"),
        (clause(count=0), r"include\[1\].count"),
        (clause(count="2"), r"include\[1\].count"),
        (clause(count=True), r"include\[1\].count"),
        (clause(color=["red"]), r"include\[1\].color"),
        (clause(position="left of"), r"include\[1\].position"),
        (clause(position=["beside", 0]), "beside.*left of"),
        (clause(position=["above", 1]), "clause 1; it must be an earlier one"),
    ],
)
def test_a_prompt_that_would_be_scored_wrongly_is_refused(line, says):
    with pytest.raises(UserError, match=says) as caught:
        build_rubric({"geneval": {}}).check_prompts([check_row(line, "mine.jsonl:7")])
    assert str(caught.value).startswith("mine.jsonl:7: ")


@pytest.mark.parametrize("more", [{}, {"source": "me", "difficulty": 3, "id": "a"}, {"exclude": None}])
def test_fields_that_mean_nothing_else_are_welcome(more):
    build_rubric({"geneval": {}}).check_prompts([check_row({**GOOD, **more}, "mine.jsonl:1")])


def test_a_misspelt_field_of_the_ocr_reward_is_refused():
    row = check_row({"prompt": 'a sign "A B"', "txet": ["A", "B"]}, "mine.jsonl:1")
    build_rubric({"geneval": {}})
    with pytest.raises(UserError, match="did you mean 'text'"):
        build_rubric({"ocr": {}}).check_prompts([check_row({**row.metadata, "texts": ["A"]}, "mine.jsonl:1")])
