"""GenEval's rules against hand-computed cases and against what must hold for every input."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o_rl.data.synthetic.scenes import TAGS
from blip3o_rl.rewards.geneval import rules
from blip3o_rl.rewards.geneval.detector import Detection

LEFT, MIDDLE, RIGHT = (0.0, 10.0, 10.0, 20.0), (20.0, 10.0, 30.0, 20.0), (40.0, 10.0, 50.0, 20.0)


def seen(name: str, box=LEFT, score: float = 0.95) -> Detection:
    return Detection(name, score, box)


def no_colors(detections, class_name):
    raise AssertionError("no rule of this prompt asks for colors")


def colors(*names: str):
    """Colors by the order of the detections asked for."""
    return lambda detections, class_name: list(names[: len(detections)])


def official(metadata, detections, colors):
    return rules.official(metadata, rules.select(detections, metadata["tag"]), colors)


def flow_grpo(metadata, detections, colors):
    return rules.flow_grpo(metadata, rules.select(detections, metadata["tag"]), colors)


def partial(metadata, detections, colors):
    return rules.partial(metadata, rules.select(detections, metadata["tag"]), colors)


def counting(count: int) -> dict:
    include = [{"class": "cat", "count": count}]
    return {"tag": "counting", "include": include, "exclude": [{"class": "cat", "count": count + 1}]}


def position(relation: str = "left of") -> dict:
    include = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": [relation, 0]}]
    return {"tag": "position", "include": include}


def color_attr() -> dict:
    include = [{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}]
    return {"tag": "color_attr", "include": include}


# ---- relative position


def test_relation_by_hand():
    # Centers 5 and 25, sizes 10: off = -20, dead zone 2, so dx = -18 / 20 = -0.9.
    assert rules.offsets(LEFT, MIDDLE) == pytest.approx((-0.9, 0.0))
    assert rules.relative_position(LEFT, MIDDLE) == {"left of"}


def test_relation_uses_the_raw_offset_as_length():
    # off = (4, 4), sizes 10: revised = (2, 2); over |off| = 5.66 it is 0.354 < 0.5, over |revised| it were 0.707.
    assert rules.offsets((4, 4, 14, 14), (0, 0, 10, 10)) == pytest.approx((2 / math.sqrt(32),) * 2)
    assert rules.relative_position((4, 4, 14, 14), (0, 0, 10, 10)) == set()


def test_two_relations_on_the_diagonal():
    assert rules.relative_position((0, 0, 1, 1), (50, 50, 51, 51)) == {"left of", "above"}


def test_concentric_boxes_have_no_relation():
    assert rules.relative_position((0, 0, 10, 10), (2, 2, 8, 8)) == set()


coordinate = st.floats(0, 100, allow_nan=False)
extent = st.floats(0.5, 60)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), coordinate, coordinate, extent, extent)


@given(boxes, boxes)
def test_swapping_the_boxes_mirrors_the_relation(a, b):
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {opposite[name] for name in rules.relative_position(a, b)} == rules.relative_position(b, a)


@given(boxes, boxes)
def test_mirroring_the_image_swaps_left_and_right_only(a, b):
    def mirror(box):
        return (-box[2], box[1], -box[0], box[3])

    swap = {"left of": "right of", "right of": "left of", "above": "above", "below": "below"}
    for relation in swap:
        assert rules.relation_degree(a, b, relation) == pytest.approx(
            rules.relation_degree(mirror(a), mirror(b), swap[relation]), abs=1e-9
        )


@given(boxes, boxes)
def test_transposing_the_image_swaps_the_axes(a, b):
    def transpose(box):
        return (box[1], box[0], box[3], box[2])

    swap = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}
    for relation in swap:
        assert rules.relation_degree(a, b, relation) == pytest.approx(
            rules.relation_degree(transpose(a), transpose(b), swap[relation]), abs=1e-9
        )


@given(boxes, boxes)
def test_degree_is_bounded_and_one_where_the_relation_holds(a, b):
    for relation in ("left of", "right of", "above", "below"):
        degree = rules.relation_degree(a, b, relation)
        assert 0 <= degree <= 1
        if relation in rules.relative_position(a, b):
            assert degree == 1


def test_degree_rises_on_the_way_to_the_right_place():
    # The cat circles from below the dog to its left.
    degrees = []
    for angle in (90, 75, 65, 61, 45):
        x, y = -30 * math.cos(math.radians(angle)), 30 * math.sin(math.radians(angle))
        degrees.append(rules.relation_degree((x - 2, y - 2, x + 2, y + 2), (-2, -2, 2, 2), "left of"))
    assert degrees == sorted(degrees)
    assert degrees[0] == 0 and 0 < degrees[2] < 1 and degrees[-1] == 1


# ---- selection


@pytest.mark.parametrize(("tag", "threshold"), [("two_object", 0.3), ("counting", 0.9)])
def test_threshold_is_strict_in_float32(tag, threshold):
    below = [seen("cat", score=threshold), seen("cat", score=threshold + 1e-9)]
    assert rules.select(below, tag) == {}
    assert len(rules.select([seen("cat", score=threshold + 1e-6)], tag)["cat"]) == 1


def test_at_most_sixteen_of_a_class_best_first():
    found = rules.select([seen("cat", score=0.4 + i / 100) for i in range(20)], "two_object")["cat"]
    assert [round(d.score, 2) for d in found] == [round(0.59 - i / 100, 2) for i in range(16)]


def test_of_equal_scores_the_later_detection_comes_first():
    """As numpy's argsort, reversed, upstream."""
    first, second = seen("cat", LEFT), seen("cat", RIGHT)
    assert rules.select([first, second], "position")["cat"] == [second, first]


def test_overlapping_objects_are_dropped_only_on_demand():
    """As upstream's max_overlap: off at 1, sides one pixel longer, each class alone, a dropped object drops nothing."""
    cats = [seen("cat", (0.0, 0.0, 10.0, 10.0), 0.9), seen("cat", (5.0, 0.0, 15.0, 10.0), 0.8)]
    cats.append(seen("cat", (10.0, 0.0, 20.0, 10.0), 0.7))
    dog = seen("dog", (0.0, 0.0, 10.0, 10.0), 0.6)
    assert rules.select([*cats, dog], "two_object") == {"cat": cats, "dog": [dog]}
    assert rules.overlap(cats[0].box, cats[1].box) == 66 / 176
    assert rules.select([*cats, dog], "two_object", nms=66 / 176) == {"cat": [cats[0], cats[2]], "dog": [dog]}
    assert rules.select(cats, "two_object", nms=66 / 176 + 1e-6) == {"cat": cats}
    assert rules.select([cats[0], cats[0]], "two_object") == {"cat": [cats[0]] * 2}
    crowd = [seen("cat", (0.0, 0.0, 9.0, 9.0))] * 16 + [seen("cat", (50.0, 0.0, 59.0, 9.0), 0.5)]
    assert len(rules.select(crowd, "two_object", nms=0.5)["cat"]) == 1, "the sixteen best are taken first"


# ---- official


@pytest.mark.parametrize(("number", "expected"), [(2, 0.0), (3, 1.0), (4, 0.0)])
def test_official_counting_is_exact(number, expected):
    assert official(counting(3), [seen("cat")] * number, no_colors).score == expected


def test_official_allows_more_objects_outside_counting():
    metadata = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
    assert official(metadata, [seen("cat")] * 5, no_colors).score == 1
    assert official(metadata, [seen("dog")], no_colors).score == 0


def test_official_judges_the_most_confident_only():
    metadata = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]}
    found = [seen("cat", LEFT, 0.5), seen("cat", RIGHT, 0.8)]

    def color_of(detections, class_name):
        return ["red" if d.box == LEFT else "blue" for d in detections]

    assert official(metadata, found, color_of).score == 0
    assert official(metadata, list(reversed(found)), lambda d, n: ["red"] * len(d)).score == 1


def test_official_position():
    assert official(position(), [seen("cat", LEFT), seen("dog", RIGHT)], no_colors).score == 1
    assert official(position(), [seen("cat", RIGHT), seen("dog", LEFT)], no_colors).score == 0
    assert official(position("right of"), [seen("cat", RIGHT), seen("dog", LEFT)], no_colors).score == 1
    missing = official(position(), [seen("cat", LEFT)], no_colors)
    assert missing.score == 0 and "dog" in missing.reason


def test_official_reads_exclude_of_another_class():
    exclude = [{"class": "dog", "count": 1}]
    metadata = {"tag": "two_object", "include": [{"class": "cat", "count": 1}], "exclude": exclude}
    assert official(metadata, [seen("cat")], no_colors).score == 1
    assert official(metadata, [seen("cat"), seen("dog")], no_colors).score == 0


# ---- flow_grpo: values computed by hand from the published formula


@pytest.mark.parametrize(
    ("count", "number", "score"),
    [(3, 2, 2 / 3), (3, 3, 1.0), (3, 7, -1 / 3), (1, 3, -1.0), (1, 16, -14.0), (2, 0, 0.0)],
)
def test_flow_grpo_counting(count, number, score):
    verdict, strict = flow_grpo(counting(count), [seen("cat")] * number, no_colors)
    assert verdict.score == pytest.approx(score)
    assert strict == (number == count)


def test_flow_grpo_position_and_its_extra_one():
    right, strict = flow_grpo(position(), [seen("cat", LEFT), seen("dog", RIGHT)], no_colors)
    assert (right.score, strict) == (1.0, True)
    wrong, strict = flow_grpo(position(), [seen("cat", RIGHT), seen("dog", LEFT)], no_colors)
    assert (wrong.score, strict) == (0.75, False)
    assert flow_grpo(position(), [seen("cat", LEFT)], no_colors)[0].score == 0.5
    # The cat is missing: 1 for the dog, 0 for the cat's count, one 0 for its position.
    assert flow_grpo(position(), [seen("dog", LEFT)], no_colors)[0].score == pytest.approx(1 / 3)


def test_flow_grpo_colors():
    single = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]}
    assert flow_grpo(single, [seen("cat")], colors("blue"))[0].score == 0.5
    assert flow_grpo(single, [seen("cat")], colors("red"))[0].score == 1.0
    one_wrong, strict = flow_grpo(color_attr(), [seen("cat"), seen("dog")], colors("red"))
    assert (one_wrong.score, strict) == (0.75, False)


def test_flow_grpo_strict_forbids_extra_objects_where_official_does_not():
    metadata = {"tag": "two_object", "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]}
    found = [seen("cat"), seen("dog"), seen("dog")]
    verdict, strict = flow_grpo(metadata, found, no_colors)
    assert official(metadata, found, no_colors).score == 1
    assert not strict and verdict.score == 0.5


# ---- partial


def test_partial_by_hand():
    assert partial(counting(3), [seen("cat")] * 2, no_colors).score == pytest.approx(2 / 3)
    assert partial(counting(1), [seen("cat")] * 3, no_colors).score == 0
    wrong = partial(position(), [seen("cat", RIGHT), seen("dog", LEFT)], no_colors)
    assert wrong.score == pytest.approx(2 / 3)
    assert wrong.terms == {"count": 1.0, "position": 0.0}
    assert partial(position(), [seen("cat", LEFT)], no_colors).score == pytest.approx(1 / 3)
    # Two red cats where one is asked for: count 0, color 2 / 2; blue dog: count 1, color 1.
    three = [seen("cat"), seen("cat"), seen("dog")]
    score = partial(color_attr(), three, lambda d, n: ["red" if n == "cat" else "blue"] * len(d)).score
    assert score == pytest.approx(3 / 4)


def test_partial_is_one_without_more_objects_only():
    found = [seen("cat", LEFT), seen("dog", RIGHT)]
    assert partial(position(), found, no_colors).score == 1
    assert partial(position(), [*found, seen("cat", (0, 30, 10, 40))], no_colors).score < 1


def test_nothing_seen_is_zero():
    for metadata in (counting(2), position(), color_attr()):
        assert partial(metadata, [], no_colors).score == 0
        assert official(metadata, [], no_colors).score == 0


names = st.sampled_from(["cat", "dog"])
detections = st.lists(st.builds(Detection, names, st.floats(0, 1), boxes), max_size=20)


@st.composite
def metadatas(draw):
    include = []
    for index in range(draw(st.integers(1, 3))):
        clause: dict = {"class": draw(names), "count": draw(st.integers(1, 4))}
        if draw(st.booleans()):
            clause["color"] = draw(st.sampled_from(["red", "blue"]))
        if index and draw(st.booleans()):
            relation = draw(st.sampled_from(["left of", "right of", "above", "below"]))
            clause["position"] = [relation, draw(st.integers(0, index - 1))]
        include.append(clause)
    return {"tag": draw(st.sampled_from(TAGS)), "include": include}


def by_place(found, class_name):
    return ["red" if d.box[0] < 50 else "blue" for d in found]


@given(metadatas(), detections)
def test_bounds_and_order_of_the_four_scorings(metadata, found):
    value = partial(metadata, found, by_place).score
    correct = official(metadata, found, by_place).score
    flow, strict = flow_grpo(metadata, found, by_place)
    assert 0 <= value <= 1
    assert correct in (0.0, 1.0)
    assert -14 <= flow.score <= 1
    if strict:
        assert flow.score == 1 and correct == 1 and value == 1
    if value == 1:
        assert flow.score >= 0.5
    if flow.score < 0:
        assert not strict


@given(metadatas(), detections, st.randoms())
def test_the_order_of_detections_does_not_matter(metadata, found, random):
    distinct = {d.score: d for d in found}
    shuffled = list(distinct.values())
    random.shuffle(shuffled)
    before = partial(metadata, list(distinct.values()), by_place).score
    assert partial(metadata, shuffled, by_place).score == pytest.approx(before)
