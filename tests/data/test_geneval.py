"""GenEval's prompts: the benchmark's list as it was published, and training prompts that do not give it away."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from blip3o_rl.data import geneval
from blip3o_rl.errors import UserError

BENCHMARK = geneval.benchmark_prompts(10**9)
TEXTS = {line["prompt"] for line in BENCHMARK}
PUBLISHED = {
    33: "a photo of a train",
    103: "a photo of a broccoli and a parking meter",
    148: "a photo of a toothbrush and a toilet",
    156: "a photo of a computer keyboard and a cell phone",
    181: "a photo of four handbags",
    220: "a photo of four donuts",
    232: "a photo of two trucks",
    316: "a photo of a yellow orange",
    328: "a photo of a white teddy bear",
    389: "a photo of a stop sign above a chair",
    417: "a photo of a bicycle above a parking meter",
    469: "a photo of a black kite and a green bear",
}
"""Number -> prompt, from the human annotations that were published with the benchmark."""


def test_the_list_is_the_published_one() -> None:
    assert Counter(line["tag"] for line in BENCHMARK) == {
        **{"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    }
    assert {number: BENCHMARK[number]["prompt"] for number in PUBLISHED} == PUBLISHED
    counts = Counter(line["include"][0]["count"] for line in BENCHMARK if line["tag"] == "counting")
    relations = Counter(line["include"][1]["position"][0] for line in BENCHMARK if line["tag"] == "position")
    assert counts == {2: 26, 3: 28, 4: 26}
    assert relations == {"below": 28, "right of": 27, "above": 26, "left of": 19}
    text = "".join(json.dumps(line) + "\n" for line in BENCHMARK).encode()
    assert hashlib.sha256(text).hexdigest() == "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13", (
        "numpy's generator gives other numbers than it did"
    )


def test_the_metadata_are_in_the_benchmarks_form() -> None:
    assert BENCHMARK[417]["include"] == [
        {"class": "parking meter", "count": 1},
        {"class": "bicycle", "count": 1, "position": ["above", 0]},
    ]
    assert BENCHMARK[220]["exclude"] == [{"class": "donut", "count": 5}]
    assert geneval.counting("toothbrush", 2)["prompt"] == "a photo of two toothbrushs", "the benchmark's plural"
    assert geneval.counting("bus", 3)["prompt"] == "a photo of three buses"
    assert geneval.colors("orange", "orange")["prompt"] == "a photo of an orange orange"


def test_a_part_of_the_benchmark_has_every_tag() -> None:
    assert Counter(line["tag"] for line in geneval.benchmark_prompts(12)) == dict.fromkeys(geneval.SHARES, 2)


def test_training_prompts_come_in_flow_grpos_ratio() -> None:
    lines = geneval.train_prompts(17 * 100, seed=3)
    shares = {"position": 700, "counting": 500, "color_attr": 300, "colors": 100, "two_object": 100}
    assert Counter(line["tag"] for line in lines) == shares
    assert len({line["tag"] for line in lines[:17]}) == 5 and lines[:50] == geneval.train_prompts(50, seed=3)
    assert lines[:50] != geneval.train_prompts(50, seed=4)


def test_no_training_prompt_is_in_the_benchmark_in_whatever_order() -> None:
    lines = geneval.train_prompts(20_000, shares={"position": 1, "two_object": 8, "color_attr": 1, "counting": 1})
    for line in lines:
        assert line["prompt"] not in TEXTS
        first, joint, second = line["prompt"].removeprefix("a photo of ").partition(" and ")
        if joint:
            assert f"a photo of {second} and {first}" not in TEXTS
        for relation, opposite in geneval.OPPOSITE.items() if line["tag"] == "position" else ():
            first, joint, second = line["prompt"].removeprefix("a photo of ").partition(f" {relation} ")
            if joint:
                assert f"a photo of {second} {relation} {first}" not in TEXTS
                assert f"a photo of {second} {opposite} {first}" not in TEXTS


def test_single_objects_cannot_be_trained_on() -> None:
    with pytest.raises(UserError, match=r"prompts\.shares\.single_object: geneval trains on none"):
        geneval.train_prompts(10, shares={"single_object": 1})
