"""The built-in sources: disjoint sides, repeatable draws, and a judge that can score every prompt."""

from __future__ import annotations

from collections import Counter

import pytest

from blip3o_rl.data.sources import SOURCES, held_out_rows, training_rows
from blip3o_rl.data.synthetic import edits
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.build import build_rubric


def settings(**change):
    return {"source": "shapes", "train": 200, "shares": {}, "file": None, **change}


@pytest.mark.parametrize("name", SOURCES)
def test_the_sides_of_a_source_share_nothing_but_single_objects(name):
    train, held_out = training_rows(settings(source=name, train=2000), 1), held_out_rows(name, None, "x")
    assert len(train) == 2000 and len(held_out) == SOURCES[name].size
    shared = {row.key for row in train} & {row.key for row in held_out}
    assert shared <= {row.key for row in held_out if row.metadata["tag"] == "single_object"}


@pytest.mark.parametrize("name", SOURCES)
def test_a_draw_follows_its_seed_and_the_held_out_side_is_fixed(name):
    first, again, other = (training_rows(settings(source=name), seed) for seed in (1, 1, 2))
    assert first == again != other
    assert held_out_rows(name, 5, "x") == held_out_rows(name, 9, "x")[:5]


@pytest.mark.parametrize("name", SOURCES)
def test_the_judge_can_score_every_prompt_and_has_the_component_of_all_right(name, coco_names):
    source = SOURCES[name]
    judge = build_rubric(source.judge)
    rows = [*training_rows(settings(source=name), 1), *held_out_rows(name, None, "x")]
    judge.check_prompts(rows)
    judge.check_tags(rows)
    assert [component.split("/")[0] for component in source.correct] == judge.names


def test_shares_change_what_the_source_has_and_cannot_all_be_0():
    assert Counter(row.metadata["tag"] for row in training_rows(settings(shares={"counting": 5}, train=20), 1)) == {
        **dict.fromkeys(SOURCES["shapes"].shares, 2),
        "counting": 10,
    }
    none = dict.fromkeys(SOURCES["geneval"].shares, 0)
    with pytest.raises(UserError, match=r"prompts\.shares: all shares of geneval are 0"):
        training_rows(settings(source="geneval", shares=none), 1)
    rows = training_rows(settings(source="edits", shares={"keep": 0, "add": 4}, train=24), 1)
    assert Counter(row.metadata["tag"] for row in rows) == {**dict.fromkeys(edits.OPERATIONS[1:-1], 4), "add": 8}
    for tag in ("recolour", "compose"):
        with pytest.raises(UserError, match=rf"prompts\.shares\.{tag}: there is no such tag of edits"):
            training_rows(settings(source="edits", shares={tag: 1}), 1)


def test_shares_are_checked_and_not_used_where_there_are_no_tags(tmp_path):
    (tmp_path / "mine.txt").write_text("a red circle\n")
    for chosen in ({"source": "words"}, {"file": str(tmp_path / "mine.txt")}):
        assert training_rows(settings(shares={"position": 2}, **chosen), 1) == training_rows(settings(**chosen), 1)
        with pytest.raises(UserError, match=r"prompts\.shares\.positon: .*; did you mean 'position'"):
            training_rows(settings(shares={"positon": 2}, **chosen), 1)


def test_shapes_and_words_have_the_sides_of_either_world_and_as_many_of_one_as_of_the_other():
    train = training_rows(settings(source="shapes-and-words", train=1200), 1)
    held_out = held_out_rows("shapes-and-words", None, "x")
    for rows in (train, held_out):
        assert sum(row.metadata["tag"] == "text" for row in rows) == len(rows) / 2
    for name in ("shapes", "words"):
        own = {row.prompt for row in held_out_rows(name, None, "x") if row.metadata["tag"] != "single_object"}
        assert not own & {row.prompt for row in train} and own & {row.prompt for row in held_out}
    words = training_rows(settings(source="shapes-and-words", train=12, shares={"text": 0}), 1)
    assert all(row.metadata["tag"] != "text" for row in words)


def test_a_file_takes_the_place_of_a_source(tmp_path):
    (tmp_path / "mine.txt").write_text("a red circle\na blue square\n")
    rows = training_rows(settings(source="nothing", file=str(tmp_path / "mine.txt")), 1)
    assert [row.prompt for row in rows] == ["a red circle", "a blue square"]


def test_an_unknown_source_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="prompts.source=shape: there is no such source of prompts; did you mean 'sha"):
        training_rows(settings(source="shape"), 1)


@pytest.mark.parametrize("count", [0, 10**6])
def test_more_held_out_prompts_than_there_are_are_refused(count):
    with pytest.raises(UserError, match=f"--prompts {count}: words has 56 "):
        held_out_rows("words", count, f"--prompts {count}")
