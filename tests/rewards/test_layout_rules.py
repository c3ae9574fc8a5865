"""The layout rules as functions: range, monotonicity, symmetry, and what faults of public code must not come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o_rl.data.synthetic.scenes import rgb
from blip3o_rl.rewards.layout import rules
from blip3o_rl.rewards.layout.brief import LayoutBrief
from blip3o_rl.rewards.layout.reward import LayoutReward
from blip3o_rl.rewards.observation import Observation, Observer, Thing

REWARD = LayoutReward(Observer(None, None, None))


def brief(*elements, **more):
    named = [{"id": f"e{number}", **element} for number, element in enumerate(elements)]
    return LayoutBrief.model_validate({"elements": named, **more})


def text(words, box, **more):
    return Thing("text", box, (25, 25, 25), text=words, **{"contrast": 15.0, **more})


def thing(kind, color, box, **more):
    return Thing(kind, box, rgb(color), color, **more)


def value(asked, *things):
    return REWARD._score_of(asked, Observation(things)).value


TITLE = {"class": "text", "text": "HELLO", "region": "top left"}
LOGO = {"class": "circle", "color": "red", "region": "bottom right"}
TRUE_TITLE, TRUE_LOGO = text("HELLO", (0.05, 0.05, 0.45, 0.2)), thing("circle", "red", (0.65, 0.65, 0.95, 0.95))

boxes = st.tuples(*[st.floats(0, 1, width=32)] * 4).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)
objects = st.builds(
    thing, st.sampled_from(["circle", "square", "panel"]), st.sampled_from(["red", "blue"]), boxes,
    score=st.floats(0.3, 1),
)  # fmt: skip
things = st.one_of(
    objects,
    st.builds(text, st.sampled_from(["HELLO", "HALLO", "X", "SALE", ""]), boxes, contrast=st.floats(1, 21)),
)
FULL = brief(
    {**TITLE, "rank": 1, "color": "black"},
    {**LOGO, "size": [0.2, 0.4]},
    {"class": "text", "text": "SALE", "rank": 2, "region": "bottom"},
    {"class": "panel", "color": "yellow", "box": [0, 0, 1, 0.3]},
    under=[["e0", "e3"]], order=["e0", "e2", "e1"], align=[["e0", "e2", "left"]], contrast=True, palette=True,
)  # fmt: skip
TRUTH = (
    text("HELLO", (0.05, 0.05, 0.5, 0.25)),
    text("SALE", (0.05, 0.7, 0.35, 0.82)),
    thing("circle", "red", (0.65, 0.65, 0.95, 0.95)),
    thing("panel", "yellow", (0, 0, 1, 0.3)),
)


@settings(max_examples=200)
@given(st.lists(things, max_size=7))
def test_every_term_is_between_0_and_1(found):
    terms = rules.terms(FULL, Observation(tuple(found)))
    assert set(terms) == set(LayoutReward.WEIGHTS)
    assert all(0 <= part <= 1 + 1e-9 for part in terms.values())
    assert 0 <= value(FULL, *found) <= 1


@settings(max_examples=100)
@given(st.permutations(TRUTH), st.integers(1, 4))
def test_one_more_right_thing_never_lowers_the_score(order, count):
    scores = [value(FULL, *order[:number]) for number in range(count + 1)]
    assert scores == sorted(scores)
    assert value(FULL, *order) == pytest.approx(1)


@settings(max_examples=100)
@given(st.lists(things, max_size=6), st.randoms())
def test_the_order_of_what_was_found_does_not_matter(found, random):
    objects = [item for item in found if item.kind != "text"]
    mixed = random.sample(objects, len(objects))
    lines = [item for item in found if item.kind == "text"]
    # Two equal things may be exchanged; nothing else may change.
    assert value(FULL, *objects, *lines) == pytest.approx(value(FULL, *mixed, *lines), abs=0.2 * (len(objects) > 1))


def mirrored(item):
    left, top, right, bottom = item.box
    return replace(item, box=(1 - right, top, 1 - left, bottom))


@settings(max_examples=100)
@given(st.lists(objects, max_size=5))
def test_a_mirrored_image_scores_the_same_under_the_mirrored_brief(found):
    one, other = brief(LOGO), brief({**LOGO, "region": "bottom left"})
    assert value(one, *found) == pytest.approx(value(other, *map(mirrored, found)))


def test_terms_without_a_field_in_the_brief_are_absent():
    terms = rules.terms(brief(TITLE, LOGO), Observation((TRUE_TITLE, TRUE_LOGO)))
    assert terms == dict.fromkeys(("text", "presence", "region", "overlap", "margin"), 1.0)
    assert "region" not in rules.terms(brief({"class": "circle"}), Observation())


@pytest.mark.parametrize(
    ("center", "reach", "expected"),
    [(0.9, 1 / 3, 1), (2 / 3, 1 / 3, 1), (0.5, 1 / 3, 0.293), (0.1, 1 / 3, 0), (0.5, 1 / 6, 0)],
)
def test_region_falls_with_the_distance_from_the_cell(center, reach, expected):
    found = thing("circle", "red", (center - 0.05, center - 0.05, center + 0.05, center + 0.05))
    terms = rules.terms(brief(LOGO), Observation((found,)), reach)
    assert terms["region"] == pytest.approx(expected, abs=0.01)


def test_an_asked_box_is_intersection_over_union():
    asked = brief({"class": "panel", "color": "red", "box": [0, 0, 1, 0.5]})
    for box, expected in (((0, 0, 1, 0.5), 1), ((0, 0, 1, 0.25), 0.5 / 0.9), ((0, 0.6, 1, 0.9), 0)):
        assert rules.terms(asked, Observation((thing("panel", "red", box),)))["region"] == pytest.approx(expected)


def test_class_and_color_are_half_each_and_surplus_objects_divide():
    asked = brief(LOGO)
    half = rules.terms(asked, Observation((thing("circle", "blue", TRUE_LOGO.box),)))
    assert half["presence"] == half["region"] == 0.5
    litter = [thing("square", "blue", (0.1 * n, 0.1, 0.1 * n + 0.08, 0.18)) for n in range(3)]
    assert rules.terms(asked, Observation((TRUE_LOGO, *litter)))["presence"] == 0.25
    allowed = brief(LOGO, extra="allow")
    assert rules.terms(allowed, Observation((TRUE_LOGO, *litter, TRUE_TITLE)))["presence"] == 1
    assert rules.terms(asked, Observation((TRUE_LOGO, TRUE_TITLE)))["text"] == 0.5  # no text was asked for


def test_a_weak_detection_and_a_size_out_of_range_count_less():
    asked = brief({**LOGO, "size": [0.3, 0.4]})
    small = replace(TRUE_LOGO, box=(0.7, 0.7, 0.85, 0.85))
    assert rules.terms(asked, Observation((small,)))["presence"] == pytest.approx(0.5)
    weak = rules.terms(asked, Observation((replace(TRUE_LOGO, score=0.45),)))
    assert weak["presence"] == pytest.approx(0.5)


def test_specks_are_not_there():
    speck = replace(TRUE_LOGO, box=(0.9, 0.9, 0.92, 0.92))
    assert value(brief(LOGO), speck) == 0
    assert rules.terms(brief(TITLE), Observation((replace(TRUE_TITLE, box=(0.1, 0.1, 0.3, 0.12)),)))["text"] == 0


def test_the_lines_of_a_text_are_read_as_one():
    asked = brief(
        {"class": "text", "text": "HELLO WORLD", "region": "top"}, {"class": "text", "text": "SALE", "region": "bottom"}
    )
    lines = (
        text("HELLO", (0.3, 0.05, 0.6, 0.15)),
        text("WORLD", (0.3, 0.2, 0.6, 0.3)),
        text("SALE", (0.3, 0.8, 0.6, 0.9)),
    )
    assert value(asked, *lines) == pytest.approx(1)
    assert value(asked, lines[0], lines[2], replace(lines[1], box=(0.3, 0.8, 0.6, 0.9))) < 0.95


@pytest.mark.parametrize(
    ("change", "term", "expected"),
    [
        ({"contrast": 1.0}, "contrast", 1 / 2),
        ({"contrast": 2.75}, "contrast", 3 / 4),
        ({"contrast": 4.5}, "contrast", 1),
        ({"color": (255, 255, 255)}, "palette", 2 / 3),
        ({"box": (0.05, 0.05, 0.5, 0.17)}, "hierarchy", 1 / 1.3),
        ({"box": (0.075, 0.05, 0.5, 0.25)}, "align", 0.5),
        ({"box": (0.05, 0.2, 0.5, 0.4)}, "under", 0.5),
        ({"box": (0.05, 0.85, 0.5, 0.99)}, "order", 1 / 3),
    ],
)
def test_each_optional_term_reads_its_own_thing(change, term, expected):
    found = (replace(TRUTH[0], **change), *TRUTH[1:])
    assert rules.terms(FULL, Observation(found))[term] == pytest.approx(expected, abs=0.02)


# Faults of public reference code, each with a case that shows it.


def test_text_that_sticks_out_to_the_right_is_not_on_the_panel():
    asked = brief(
        {**TITLE, "region": "top"}, {"class": "panel", "color": "red", "box": [0, 0, 0.5, 0.5]}, under=[["e0", "e1"]]
    )
    found = (text("HELLO", (0.25, 0.1, 0.75, 0.3)), thing("panel", "red", (0, 0, 0.5, 0.5)))
    assert rules.terms(asked, Observation(found))["under"] == pytest.approx(0.5)


def test_one_aligned_pair_does_not_align_the_others():
    asked = brief(TITLE, LOGO, {"class": "square", "color": "blue"}, align=[["e0", "e1", "left"], ["e0", "e2", "left"]])
    found = (TRUE_TITLE, replace(TRUE_LOGO, box=(0.05, 0.6, 0.3, 0.9)), thing("square", "blue", (0.5, 0.6, 0.8, 0.9)))
    assert rules.terms(asked, Observation(found))["align"] == pytest.approx(0.5)


def test_overlap_is_a_mean_over_pairs_in_0_to_1_and_defined_without_pairs():
    four = tuple(text("A", (0.1, 0.1, 0.4, 0.4)) for _ in range(4))
    assert rules.terms(brief(TITLE), Observation(four))["overlap"] == 0
    assert rules.terms(brief(TITLE), Observation(()))["overlap"] == 1
    inside = (TRUE_LOGO, thing("square", "blue", (0.75, 0.75, 0.85, 0.85)))
    assert rules.terms(brief(LOGO), Observation(inside))["overlap"] == 0  # intersection over union would forgive it


def test_nothing_on_the_image_scores_nothing_for_looks():
    """A ratio over what was drawn vanishes when nothing is drawn; here it is multiplied by what is there."""
    assert value(FULL) == 0
    assert value(brief(TITLE, LOGO), TRUE_TITLE) < 0.6


def test_boxes_are_fractions_so_that_the_image_may_have_any_size():
    assert all(0 <= edge <= 1 for item in TRUTH for edge in item.box)
    assert value(FULL, *TRUTH) == pytest.approx(1)


def test_separate_entries_and_sharpness():
    only = LayoutReward(REWARD.observer, terms=["region"])
    sharp = LayoutReward(REWARD.observer, sharpness=2)
    asked, found = brief(TITLE, LOGO), Observation((TRUE_TITLE, replace(TRUE_LOGO, box=(0.4, 0.7, 0.7, 0.95))))
    assert only._score_of(asked, found).value == pytest.approx(rules.terms(asked, found)["region"])
    assert sharp._score_of(asked, found).value == pytest.approx(REWARD._score_of(asked, found).value ** 2)


def test_a_text_out_of_its_size_is_worth_less_even_without_a_place():
    asked = brief({"class": "text", "text": "HELLO", "size": [0.2, 0.4]})
    terms = [rules.terms(asked, Observation((text("HELLO", (0.05, 0.1, right, 0.3)),))) for right in (0.4, 0.95)]
    assert terms[0]["text"] == 1
    assert terms[1]["text"] == pytest.approx(0.4 / 0.9)


def test_a_text_over_two_lines_is_as_high_as_its_highest_line_and_as_clear_as_its_faintest():
    asked = brief(
        {"class": "text", "text": "HELLO", "rank": 1}, {"class": "text", "text": "SALE", "rank": 2}, contrast=True
    )
    small = text("SALE", (0.1, 0.7, 0.4, 0.8))
    broken = (text("HE", (0.1, 0.1, 0.4, 0.2)), text("LLO", (0.1, 0.22, 0.3, 0.32), contrast=1.0))
    terms = rules.terms(asked, Observation((*broken, small)))
    assert terms["hierarchy"] == pytest.approx(1 / rules.TALLER)
    assert terms["contrast"] == pytest.approx(0.5)
