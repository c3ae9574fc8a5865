"""Questions with dependencies, against a real HTTP server that answers in the OpenAI format."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.preference.questions import QuestionsReward
from blip3o_rl.scoring.api import RewardError, Sample, Score

ASKED = [
    {"question": "Is there a ball?", "category": "entity"},
    {"question": "Is the ball red?", "category": "attribute", "needs": [0]},
    {"question": "Is there grass?", "category": "entity"},
    {"question": "Is the red ball on the grass?", "needs": [1, 2]},
]


def asked(endpoint):
    return [request["messages"][0]["content"][1]["text"] for request in endpoint.requests]


def scored(endpoint, *answers, **options):
    known = {item["question"]: answer for item, answer in zip(ASKED, answers, strict=True)}
    endpoint.reply = lambda request: next(
        answer for question, answer in known.items() if question in request["messages"][0]["content"][1]["text"]
    )
    reward = QuestionsReward(model="m", url=endpoint.url, **options)
    sample = Sample("a", "a red ball on grass", np.zeros((8, 8, 3), np.uint8), {"questions": ASKED})
    return asyncio.run(reward.score([sample]))[0]


def test_a_question_counts_if_those_that_it_needs_do(endpoint):
    assert scored(endpoint, "Yes.", "yes", " **Yes**", "yes") == Score(
        1.0, {"exact": 1.0, "category_entity": 1.0, "category_attribute": 1.0}
    )
    assert len(asked(endpoint)) == 4 and not any("a red ball on grass" in text for text in asked(endpoint))
    no_ball = scored(endpoint, "no", "yes", "yes", "yes")
    assert no_ball.value == 0.25, "only the grass: what needs the ball, and what needs its color, does not count"
    assert no_ball.components == {"exact": 0.0, "category_entity": 0.5, "category_attribute": 1.0}
    assert no_ball.reason == "not so: Is there a ball? Is the ball red? Is the red ball on the grass?"


def test_an_answer_that_is_neither_is_an_error_and_never_a_no(endpoint):
    found = scored(endpoint, "yes", "perhaps", "yes", "no")
    assert isinstance(found, RewardError) and "'Is the ball red?' is neither yes nor no: perhaps" in str(found)
    assert isinstance(scored(endpoint, "yes", "nobody knows", "yes", "no"), RewardError)


@pytest.mark.parametrize(
    ("questions", "says"),
    [
        ([], "questions=[]"),
        ([{"question": "a?", "needs": [0]}], "questions.0.needs: [0] are not all earlier"),
        ([{"question": "a?"}, {"question": "b?", "need": [0]}], "questions.1.need: there is no such key; did you mean"),
        ([{"question": ""}], "questions.0.question"),
        ("Is there a ball?", "questions=Is there a ball?"),
    ],
)
def test_wrong_questions_are_refused_at_load(questions, says):
    assert says in QuestionsReward(model="m").check_metadata({"questions": questions})


def test_a_question_file_needs_a_place_for_the_question(tmp_path, endpoint):
    (tmp_path / "q.txt").write_text("Is it so? {prompt}")
    with pytest.raises(UserError, match="question_file: has no {question} in it"):
        QuestionsReward(model="m", question_file=tmp_path / "q.txt")
    (tmp_path / "q.txt").write_text("{question} Just yes or no.")
    assert scored(endpoint, *["yes"] * 4, question_file=tmp_path / "q.txt").value == 1
    assert asked(endpoint)[0].endswith("? Just yes or no.")
