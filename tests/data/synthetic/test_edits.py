"""Edits of scenes: what changes is what the instruction says, and what is held out stays held out."""

from __future__ import annotations

import base64
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o_rl.data.images import read_image
from blip3o_rl.data.synthetic import edits, scenes

SEEDS = st.integers(0, 2**32 - 1)
SIDES = get_args(edits.Side)


def looks(scene):
    return [(item.shape, item.color) for item in scene.objects]


def parts(edit):
    """Objects that are gone, and objects that are new."""
    before, after = set(edit.before.objects), set(edit.after.objects)
    return before - after, after - before


def box(item):
    low_x, low_y = item.x - item.size / scenes.FILL / 2, item.y - item.size / scenes.FILL / 2
    return [low_x, low_y, low_x + item.size / scenes.FILL, low_y + item.size / scenes.FILL]


@settings(max_examples=150)
@given(seed=SEEDS, operation=st.sampled_from(edits.KINDS), side=st.sampled_from(SIDES))
def test_the_scene_after_is_the_scene_before_with_the_change_alone(seed, operation, side):
    edit = edits.sample(np.random.default_rng(seed), operation, side)
    gone, new = parts(edit)
    expected = {"add": (0, 1), "remove": (1, 0), "keep": (0, 0), "impossible": (0, 0)}.get(operation, (1, 1))
    if operation == "compose":
        assert len(gone) == 2 and len(new) in (1, 2)
    else:
        assert (len(gone), len(new)) == expected
    for old, made in zip(gone, new, strict=False):
        same = {name for name in ("shape", "color", "x", "y") if getattr(old, name) == getattr(made, name)}
        if operation == "recolor":
            assert same == {"shape", "x", "y"} and old.size == made.size
        elif operation == "replace":
            assert same == {"color", "x", "y"} and old.size == made.size
        elif operation == "move":
            assert {"shape", "color"} <= same != {"shape", "color", "x", "y"} and old.size == made.size
    brief = edit.metadata["edit"]
    assert brief["operation"] == edit.metadata["tag"] == operation
    assert np.allclose(sorted(brief["boxes"]), sorted(np.round(box(item), 4).tolist() for item in gone), atol=1e-3)


@settings(max_examples=100)
@given(seed=SEEDS, operation=st.sampled_from(edits.KINDS))
def test_shapes_and_colors_are_different_and_objects_stay_apart(seed, operation):
    edit = edits.sample(np.random.default_rng(seed), operation)
    assert 2 <= len(edit.before.objects) <= 3
    for scene in (edit.before, edit.after):
        for name in ("shape", "color"):
            values = [getattr(item, name) for item in scene.objects]
            assert len(set(values)) == len(values)
        image = scenes.draw(scene, 144)
        ground = np.full((144, 144), False)
        for item in scene.objects:
            alone = (scenes.draw(scenes.Scene((item,)), 144) != scenes.BACKGROUND).any(axis=2)
            assert not (alone & ground).any()
            ground |= alone
        assert (ground == (image != scenes.BACKGROUND).any(axis=2)).all()


@settings(max_examples=100)
@given(seed=SEEDS, operation=st.sampled_from(edits.KINDS))
def test_the_clauses_hold_after_and_not_before(seed, operation):
    edit = edits.sample(np.random.default_rng(seed), operation)
    brief = edit.metadata["edit"]
    after, before = ({item.shape: item for item in scene.objects} for scene in (edit.after, edit.before))
    for clause in brief["include"]:
        item = after[clause["class"]]
        assert item.color == clause["color"]
        if "box" in clause:
            assert box(item) == pytest.approx(clause["box"], abs=1e-3)
        if "position" in clause:
            relation, anchor = clause["position"]
            other = after[brief["include"][anchor]["class"]]
            along = {"left of": other.x - item.x, "right of": item.x - other.x}
            along |= {"above": other.y - item.y, "below": item.y - other.y}
            assert along[relation] > (item.size + other.size) / 2
    for clause in brief["exclude"]:
        assert (clause["class"], clause["color"]) not in looks(edit.after)
        assert (clause["class"], clause["color"]) in looks(edit.before)
    if operation in edits.CHANGING:
        wanted = {item.shape: item for item in edit.before.objects}
        made = brief["include"][-1] if brief["include"] else None
        assert made is None or before.get(made["class"]) != after[made["class"]]
        assert made or set(wanted) != set(after)


@pytest.mark.parametrize("side", SIDES)
def test_what_is_held_out_is_never_trained_on(side):
    rng = np.random.default_rng(5)
    evaluated = side in ("held_out", "unseen")
    for operation in edits.OPERATIONS:
        for _ in range(40):
            edit = edits.sample(rng, operation, side)
            objects = frozenset(looks(edit.before))
            trained, held_out = ({frozenset(some) for some in those} for those in edits.SETS[len(objects)])
            assert (objects in held_out, objects in trained) == (evaluated, not evaluated)
            gone, new = parts(edit)
            for item in new or gone:
                assert (item.shape, item.color) in edits.COMBINATIONS[operation][side]


@pytest.mark.parametrize("operation", edits.CHANGING)
def test_supervised_training_has_the_combinations_that_rl_and_its_evaluation_share_out(operation):
    of = {side: set(looks) for side, looks in edits.COMBINATIONS[operation].items()}
    assert of["supervised"] == of["training"] | of["held_out"]
    parts = [of["training"], of["held_out"], of["unseen"]]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert len(set.union(*parts)) == len(scenes.SHAPES) * len(scenes.COLORS)


def test_an_impossible_edit_names_what_is_not_there():
    rng = np.random.default_rng(6)
    for _ in range(60):
        edit = edits.sample(rng, "impossible")
        assert edit.before == edit.after
        assert not any(f"the {color} {shape}" in edit.metadata["prompt"] for shape, color in looks(edit.before))
        assert edit.metadata["prompt"].startswith(("remove the ", "make the "))


def test_the_reference_is_the_scene_before_as_a_data_uri():
    edit = edits.sample(np.random.default_rng(7), "add")
    (uri,) = edit.metadata["references"]
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
    assert np.array_equal(read_image(content), scenes.draw(edit.before, edits.SIDE))


def test_training_prompts_follow_shares_and_seed_and_have_every_form():
    lines = edits.train_edits(1100, seed=1)
    assert lines[:30] == edits.train_edits(30, seed=1) != edits.train_edits(30, seed=2)
    assert Counter(line["tag"] for line in lines) == {**dict.fromkeys(edits.OPERATIONS, 200), "keep": 100}
    assert {line["tag"] for line in edits.train_edits(9, shares={"remove": 2, "add": 1})} == {"remove", "add"}
    begins = {line["prompt"].split()[0] for line in lines if line["tag"] == "recolor"}
    assert begins == {"make", "change", "recolor"}
    removed = {line["prompt"] for line in lines if line["tag"] == "remove"}
    assert {"remove the circle", "take the red one away"} <= removed
    assert any(prompt.startswith("delete the red ") for prompt in removed)


@pytest.mark.parametrize(
    ("prompts", "kinds"), [(edits.held_out_edits, edits.KINDS), (edits.unseen_edits, edits.CHANGING)]
)
def test_evaluated_prompts_are_of_all_kinds_in_turn_and_of_the_first_form(prompts, kinds):
    lines = prompts()
    assert len(lines) == edits.EACH * len(kinds)
    assert [line["tag"] for line in lines[: len(kinds)]] == list(kinds)
    assert len({(line["prompt"], *line["references"]) for line in lines}) == len(lines)
    assert prompts(5) == lines[:5]
    first = {"add": "add a ", "remove": "remove the ", "recolor": "make the ", "replace": "replace the "}
    for line in lines:
        assert line["prompt"].startswith(first.get(line["tag"], ""))
        assert " one" not in line["prompt"].replace("one step", "")
