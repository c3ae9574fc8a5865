from __future__ import annotations

from collections import Counter

from blip3o_rl.data.synthetic.scene_prompts import held_out_prompts, split, train_prompts
from blip3o_rl.data.synthetic.scenes import TAGS, all_metadata


def test_split_covers_every_prompt_once() -> None:
    for tag in TAGS[1:]:
        training, held_out = split(tag)
        texts = [line["prompt"] for line in training + held_out]
        assert sorted(texts) == sorted(line["prompt"] for line in all_metadata(tag))
        assert len(set(texts)) == len(texts)


def test_held_out_prompts_are_never_trained_on() -> None:
    held_out = {line["prompt"] for line in held_out_prompts(64) if line["tag"] != "single_object"}
    trained = {line["prompt"] for line in train_prompts(5000, seed=1)}
    assert not held_out & trained


def test_held_out_prompts_are_fixed_and_of_every_tag() -> None:
    lines = held_out_prompts(64)
    assert lines == held_out_prompts(64)
    assert lines[:24] == held_out_prompts(24)
    assert len({line["prompt"] for line in lines}) == 64
    assert set(Counter(line["tag"] for line in lines)) == set(TAGS)
    assert len(held_out_prompts(10_000)) == sum(len(split(tag)[1]) for tag in TAGS)


def test_train_prompts_follow_the_seed_in_equal_shares() -> None:
    assert train_prompts(60, seed=3) == train_prompts(60, seed=3)
    assert train_prompts(60, seed=3) != train_prompts(60, seed=4)
    assert set(Counter(line["tag"] for line in train_prompts(60, seed=3)).values()) == {10}


def test_shares_say_how_many_prompts_of_each_tag_come() -> None:
    shares = {"counting": 1, "color_attr": 3}
    assert Counter(line["tag"] for line in train_prompts(40, seed=3, shares=shares)) == {
        "counting": 10,
        "color_attr": 30,
    }
