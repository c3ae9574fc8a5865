"""GenEval's summary: hand-computed, as the published script prints it, and equal to its formulas on any verdicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o_rl.data.synthetic.scenes import TAGS
from blip3o_rl.rewards.geneval import rules
from blip3o_rl.rewards.geneval.detector import Detection
from blip3o_rl.rewards.geneval.summary import GenEvalSummary

LEFT, RIGHT = (0.0, 10.0, 10.0, 20.0), (40.0, 10.0, 50.0, 20.0)
TWO_CATS = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}
RED_CUP = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}]}
DOG_LEFT = {
    "tag": "position",
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
}
IMAGES = [
    (TWO_CATS, [("cat", 0.95, LEFT), ("cat", 0.91, RIGHT)], True),
    (TWO_CATS, [("cat", 0.95, LEFT), ("cat", 0.89, RIGHT)], False),  # counting counts from 0.9
    (TWO_CATS, [("cat", 0.95, LEFT)] * 3, False),
    (TWO_CATS, [], False),
    (RED_CUP, [("cup", 0.31, LEFT)], True),
    (RED_CUP, [("cup", 0.30, LEFT)], False),  # must exceed the threshold
    (DOG_LEFT, [("cat", 0.5, RIGHT), ("dog", 0.5, LEFT)], True),
    (DOG_LEFT, [("cat", 0.5, LEFT), ("dog", 0.5, RIGHT)], False),
]
TEXT = """\
Summary
=======
Total images: 8
Total prompts: 3
% correct images: 37.50%
% correct prompts: 100.00%

Task breakdown
==============
counting         = 25.00% (1 / 4)
colors           = 50.00% (1 / 2)
position         = 50.00% (1 / 2)

Overall score (avg. over tasks): 0.41667"""


def test_given_detections_give_the_published_scripts_summary() -> None:
    verdicts = []
    for metadata, seen, right in IMAGES:
        objects = rules.select([Detection(*found) for found in seen], metadata["tag"])
        correct = rules.official(metadata, objects, lambda found, name: ["red"] * len(found)).score == 1
        assert correct == right
        verdicts.append((metadata["tag"], str(metadata), correct))
    assert str(GenEvalSummary.of(verdicts)) == TEXT


VERDICTS = st.lists(st.tuples(st.sampled_from(TAGS), st.integers(0, 3), st.booleans()), min_size=1, max_size=60)


@given(VERDICTS)
def test_it_is_the_published_formula(rows) -> None:
    verdicts = [(tag, f"{tag} {prompt}", correct) for tag, prompt, correct in rows]
    found = GenEvalSummary.of(verdicts)
    frame = pd.DataFrame(verdicts, columns=["tag", "metadata", "correct"])
    by_tag = frame.groupby("tag", sort=False)["correct"].mean()
    assert found.accuracies == pytest.approx(by_tag.to_dict()) and list(found.accuracies) == list(by_tag.index)
    assert found.overall == pytest.approx(np.mean(list(by_tag)))
    assert found.correct_images == pytest.approx(frame["correct"].mean())
    assert found.correct_prompts == pytest.approx(frame.groupby("metadata")["correct"].any().mean())


def test_an_image_without_a_verdict_is_left_out():
    found = GenEvalSummary.of([("counting", "a", True), ("counting", "a", None), ("colors", "b", None)])
    assert found.tags == {"counting": (1, 1)} and found.overall == 1 and found.prompts == {"a": True}
