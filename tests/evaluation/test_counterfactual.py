"""Pairs of prompts that differ in one thing, on pipelines that read all of the prompt, none of it, or its opposite."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from blip3o_rl.data.sources import held_out_rows
from blip3o_rl.data.synthetic import layouts, shelves
from blip3o_rl.evaluation.counterfactual import with_counterfactuals
from blip3o_rl.evaluation.held_out import evaluate
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.rubric import RubricScore

DRAW: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "layout-pairs": ("layout", layouts.draw),
    "planogram-pairs": ("planogram", shelves.draw),
}


@pytest.mark.parametrize("suite", DRAW)
@pytest.mark.parametrize(("kind", "expected"), [("reads", 1), ("fixed", 0), ("opposite", -1)])
def test_the_component_says_whether_the_changed_thing_is_followed(suite: str, kind: str, expected: int) -> None:
    field, draw = DRAW[suite]
    rows = held_out_rows(suite, 8, "test")
    truths = [draw(row.metadata[field]) for row in rows]
    image_of = {
        "reads": dict(zip([row.prompt for row in rows], truths, strict=True)),
        "fixed": dict.fromkeys([row.prompt for row in rows], truths[0]),
        "opposite": {row.prompt: truths[place ^ 1] for place, row in enumerate(rows)},
    }[kind]

    def pipe(prompts, seeds, config):
        return SimpleNamespace(images=np.stack([image_of[prompt] for prompt in prompts]), tokens=[[s] for s in seeds])

    result = evaluate(pipe, rows, suite, images_per_prompt=1)
    assert result.components["counterfactual"] == pytest.approx(expected)


@pytest.mark.parametrize("suite", DRAW)
def test_the_two_rows_of_a_pair_differ_in_what_the_tag_says(suite: str) -> None:
    field, _ = DRAW[suite]
    rows = held_out_rows(suite, None, "test")
    assert len({row.metadata["tag"] for row in rows}) == 4
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one.prompt != other.prompt and one.metadata["tag"] == other.metadata["tag"]
        assert one.metadata["counterfactual"] == {field: other.metadata[field]}
        assert other.metadata["counterfactual"] == {field: one.metadata[field]}
        if suite == "layout-pairs":
            elements = zip(one.metadata[field]["elements"], other.metadata[field]["elements"], strict=True)
            changed = [key for a, b in elements for key in a if a[key] != b[key]]
            expected = {"text": "text", "color": "color", "shape": "class", "column": "region"}[one.metadata["tag"]]
            assert changed == [expected]


def test_a_row_without_a_counterpart_has_no_such_component() -> None:
    class Unasked:
        def score(self, samples):
            raise AssertionError("a reward may not expect to be asked for nothing")

    scores = [RubricScore(0.5)]
    assert with_counterfactuals(Unasked(), [Sample("a", "a", np.zeros((8, 8, 3), np.uint8))], scores) == scores


def test_the_counterpart_has_its_own_prompt_if_its_fields_have_one() -> None:
    class Reads:
        def score(self, samples):
            return [RubricScore(float(sample.prompt == "open"), {}) for sample in samples]

    sample = Sample("1", "open", np.zeros((2, 2, 3), np.uint8), {"counterfactual": {"prompt": "shut"}})
    (found,) = with_counterfactuals(Reads(), [sample], [RubricScore(1.0, {})])
    assert found.components == {"counterfactual": 1}


@pytest.mark.parametrize("value", [None, {}])
def test_an_empty_counterpart_is_none(value) -> None:
    sample = Sample("1", "open", np.zeros((2, 2, 3), np.uint8), {"counterfactual": value})
    assert with_counterfactuals(None, [sample], [RubricScore(1.0, {})]) == [RubricScore(1.0, {})]
