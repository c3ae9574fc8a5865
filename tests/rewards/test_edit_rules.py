"""The rules of the reward `edit`: ranges, monotony, and what a copy earns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o_rl.config.base import validate
from blip3o_rl.rewards.edit import rules
from blip3o_rl.rewards.edit.brief import EditBrief
from blip3o_rl.rewards.observation import Thing

UNIT = st.floats(0, 1)
SHAPES, COLORS = ("circle", "square", "cross"), ("red", "blue")


def boxes():
    corner = st.floats(0, 0.6)
    return st.builds(lambda x, y, size: (x, y, x + size, y + size), corner, corner, st.floats(0.05, 0.4))


def things():
    shapes, colors = st.sampled_from(SHAPES), st.sampled_from(COLORS)
    return st.lists(st.builds(lambda kind, color, box: Thing(kind, box, color_name=color), shapes, colors, boxes()))


def clauses():
    plain = {"class": st.sampled_from(SHAPES), "count": st.integers(1, 3)}
    return st.fixed_dictionaries(plain, optional={"color": st.sampled_from(COLORS), "box": boxes().map(list)})


@st.composite
def briefs(draw):
    include, exclude = draw(st.lists(clauses(), max_size=3)), draw(st.lists(clauses(), max_size=2))
    if not include and not exclude:
        include = [draw(clauses())]
    for number, clause in enumerate(include[1:], start=1):
        if draw(st.booleans()):
            clause["position"] = [draw(st.sampled_from(["left of", "above"])), draw(st.integers(0, number - 1))]
    return validate(EditBrief, {"operation": "compose", "include": include, "exclude": exclude}, "edit")


def quality(brief, seen, cleared=1.0):
    return rules.quality(rules.terms(brief, seen, [cleared] * len(brief.exclude)))


@given(brief=briefs(), seen=things(), cleared=UNIT)
def test_every_term_is_in_0_1(brief, seen, cleared):
    found = rules.terms(brief, seen, [cleared] * len(brief.exclude))
    assert len(found) == len(brief.include) + len(brief.exclude)
    assert all(0 <= term <= 1 for clause in found for term in clause)
    assert 0 <= rules.quality(found) <= 1


@given(brief=briefs(), seen=things(), low=UNIT, high=UNIT)
def test_a_box_that_is_emptier_is_never_worth_less(brief, seen, low, high):
    assert quality(brief, seen, min(low, high)) <= quality(brief, seen, max(low, high))


@pytest.mark.parametrize("name", rules.COMBINATIONS)
@given(a=UNIT, b=UNIT, kept=UNIT)
def test_more_of_one_part_is_never_worth_less(name, a, b, kept):
    combine, low, high = rules.COMBINATIONS[name], min(a, b), max(a, b)
    assert 0 <= combine(low, kept) <= combine(high, kept) <= 1
    assert combine(kept, low) <= combine(kept, high)


@pytest.mark.parametrize("name", ["product", "geometric", "min", "gate"])
@given(own=st.floats(0, 0.99), kept=UNIT)
def test_a_copy_earns_0(name, own, kept):
    assert rules.COMBINATIONS[name](rules.between(own, own, 1.0), kept) == 0


@given(value=UNIT, other=UNIT, low=st.floats(0, 0.4), high=st.floats(0.5, 1))
def test_between_anchors(value, other, low, high):
    assert 0 <= rules.between(value, low, high) <= 1
    assert rules.between(low, low, high) == 0 and rules.between(high, low, high) == 1
    assert rules.between(min(value, other), low, high) <= rules.between(max(value, other), low, high)


def brief(**fields):
    return validate(EditBrief, {"operation": "compose", **fields}, "edit")


RED = Thing("circle", (0.1, 0.1, 0.4, 0.4), color_name="red")
BLUE = Thing("circle", (0.6, 0.1, 0.9, 0.4), color_name="blue")
SQUARE = Thing("square", (0.1, 0.6, 0.4, 0.9), color_name="red")
ONE = [{"class": "circle", "color": "red"}]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [([RED], [1, 1]), ([RED, BLUE], [1, 1]), ([BLUE], [1, 0]), ([], [0, 0]), ([RED, RED], [0, 0]), ([SQUARE], [0, 0])],
)
def test_presence_and_color(seen, expected):
    assert rules.terms(brief(include=ONE), seen, []) == [expected]


@pytest.mark.parametrize(("shift", "expected"), [(0, 1), (1, 1), (1.5, 0.5), (2, 0), (5, 0)])
def test_a_place_may_be_a_cell_off(shift, expected):
    asked = [{"class": "circle", "box": [0.1, 0.1 + shift / 9, 0.4, 0.4 + shift / 9]}]
    assert rules.terms(brief(include=asked), [RED], [])[0][1] == pytest.approx(expected)


def test_a_relation_is_to_the_things_of_the_other_clause():
    asked = brief(include=[{"class": "square"}, {"class": "circle", "color": "red", "position": ["above", 0]}])
    assert rules.terms(asked, [RED, SQUARE], []) == [[1], [1, 1, 1]]
    assert rules.terms(asked, [RED], []) == [[0], [1, 1, 0]]
    below = brief(include=[{"class": "square"}, {"class": "circle", "color": "red", "position": ["below", 0]}])
    assert rules.terms(below, [RED, SQUARE], [])[1][2] == 0


def test_what_is_to_go_has_to_leave_its_place_empty():
    asked = brief(exclude=[{"class": "circle", "color": "red"}])
    assert rules.terms(asked, [RED], [1.0]) == [[0]]
    assert rules.terms(asked, [BLUE], [0.25]) == [[0.25]]
    assert rules.terms(asked, [], [1.0]) == [[1]]


def test_new_things_are_those_of_the_clauses_that_the_reference_did_not_fulfil():
    asked = brief(include=[{"class": "square"}, {"class": "circle", "color": "blue", "position": ["right of", 0]}])
    before = rules.terms(asked, [SQUARE], [])
    assert rules.changed(asked, before, [SQUARE, BLUE, RED]) == [BLUE]
