"""What the reward `edit` refuses when prompts are loaded: one line with the key and the remedy."""

from __future__ import annotations

import pytest

from blip3o_rl.data.synthetic.edits import held_out_edits, train_edits
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.edit.reward import EditReward
from blip3o_rl.scoring.build import build_rubric

REWARD = EditReward()
ADD = {"operation": "add", "include": [{"class": "circle", "color": "red"}]}


def fault(edit, reward=REWARD):
    return reward.check_metadata({"prompt": "add a red circle", "references": ["a.png"], "edit": edit})


def test_synthetic_edits_pass():
    for line in [*train_edits(110, seed=3), *held_out_edits()]:
        assert REWARD.check_metadata(line) == ""


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (None, "edit: is no JSON object"),
        ({}, "edit.operation: is missing"),
        ({**ADD, "operation": "ad"}, "edit.operation=ad: must be 'add', "),
        ({**ADD, "inclde": []}, "edit.inclde: there is no such key; did you mean 'include'?"),
        ({**ADD, "include": [{"class": "circle", "colour": "red"}]}, "did you mean 'color'?"),
        ({**ADD, "include": [{"class": "cirle"}]}, "edit.include.0.class: 'cirle' is not known; did you mean"),
        ({**ADD, "include": [{"class": "circle", "color": "redd"}]}, "edit.include.0.color: 'redd' is no color"),
        ({**ADD, "include": [{"class": "circle", "color": "pink"}]}, "edit.include.0.color: 'pink' is not seen"),
        ({**ADD, "include": [{"class": "circle", "count": 0}]}, "edit.include.0.count=0"),
        ({**ADD, "include": [{"class": "circle", "count": "1"}]}, "edit.include.0.count=1"),
        ({**ADD, "include": [{"class": "circle", "position": ["above", 0]}]}, "refers to clause 0; it must be"),
        ({**ADD, "include": [{"class": "circle", "position": ["near", 0]}]}, "edit.include.0.position"),
        ({**ADD, "include": [{"class": "circle", "box": [0.5, 0, 0.5, 1]}]}, "edit.include.0.box: is empty"),
        ({**ADD, "boxes": [[0, 0, 2, 1]]}, "edit.boxes.0.2=2"),
        ({**ADD, "boxes": [[0, 0, 1]]}, "edit.boxes.0"),
        ({**ADD, "exclude": [{"class": "circle", "position": ["above", 0]}]}, "edit.exclude.0.position: there is"),
        ({**ADD, "operation": "keep"}, "edit: operation: keep asks for no change; remove include and exclude"),
        ({"operation": "remove"}, "edit: remove has no clause; say in include or exclude what is to change"),
        ({**ADD, "mask": 3}, "edit.mask=3"),
    ],
)  # fmt: skip
def test_a_bad_edit_is_one_line(edit, message):
    found = fault(edit)
    assert message in found and "\n" not in found


def test_an_edit_without_clauses_has_a_consistency_all_the_same():
    style = {"operation": "style"}
    assert "style has no clause" in fault(style)
    assert fault(style, EditReward(combine="consistency")) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "produkt"}, "combine: is 'produkt'; did you mean 'product'?"),
        ({"measures": {"styl": "pixels"}}, "measures.styl: there is no such operation; did you mean 'style'?"),
        ({"measures": {"add": "lpips"}}, "measures.add: is 'lpips'; use one of pixels, structure, dinov2"),
        ({"measures": {"all": "dinov2"}}, "checkpoint: is for the measure dinov2; give both, or neither"),
        ({"checkpoint": "x"}, "checkpoint: is for the measure dinov2; give both, or neither"),
        ({"anchors": {"ssim": [0, 1]}}, "anchors.ssim: there is no such measure"),
        ({"anchors": {"pixels": [0.5, 0.5]}}, "anchors.pixels: is"),
        ({"anchors": {"pixels": [0.5]}}, "anchors.pixels: is"),
        ({"observer": {"detectr": "scenes"}}, "observer.detectr: there is no such option; did you mean 'detector'?"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(UserError) as found:
        EditReward(**options)
    assert message in str(found.value) and "\n" not in str(found.value)


def test_the_reward_is_found_by_its_name():
    assert build_rubric({"edit": {"combine": "gate"}}).names == ["edit"]
