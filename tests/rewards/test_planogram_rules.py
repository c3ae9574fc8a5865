"""The planogram rules: the published table on random plans, range, monotonicity, symmetry, and how each term reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o_rl.data.synthetic.scenes import COLORS, SHAPES, rgb
from blip3o_rl.rewards.observation import Observation, Observer, Thing
from blip3o_rl.rewards.planogram import rules
from blip3o_rl.rewards.planogram.brief import PlanogramBrief
from blip3o_rl.rewards.planogram.reward import PlanogramReward

REWARD = PlanogramReward(Observer(None, None, None))
PRODUCTS = {f"{color} {shape}": {"class": shape, "color": color} for color in COLORS for shape in SHAPES}
NAMES = list(PRODUCTS)


def plan(rows, **more):
    """A brief of rows of product names, one facing each; None is an empty slot."""
    products = {name: PRODUCTS[name] for row in rows for name in row if name}
    shelves = [[{"product": name, "facings": 1} if name else {"empty": 1} for name in row] for row in rows]
    return PlanogramBrief.model_validate({"count_from": "top", "products": products, "shelves": shelves, **more})


def shown(rows, width=0.2):
    """What an image of rows of product names shows; None leaves a gap."""
    things = []
    for y, row in enumerate(rows):
        for x, name in enumerate(row):
            if name:
                color, shape = name.split()
                left, bottom = 0.02 + 0.3 * x, (y + 1) / (len(rows) + 0.2)
                things.append(Thing(shape, (left, bottom - 0.2, left + width, bottom), rgb(color), color))
    return Observation(tuple(things))


def value(brief, seen):
    return REWARD._score_of(brief, seen).value


def terms(brief, seen):
    return rules.terms(brief, seen)[0]


def random_plans(count=100):
    """Plans of three rows of three facings of at most two products."""
    rng = np.random.default_rng(0)
    plans = []
    for _ in range(count):
        rows = []
        for _ in range(3):
            (a, b), first = rng.choice(NAMES, 2, replace=False), int(rng.integers(1, 4))
            rows.append([str(a)] * first + [str(b)] * (3 - first))
        plans.append(rows)
    return plans


def changed(rows, row, column, name):
    rows = [list(r) for r in rows]
    rows[row][column] = name
    return rows


def commonest(rows):
    names = [name for row in rows for name in row]
    return [[max(names, key=names.count)] * 3] * 3


def recolored(rows):
    color, shape = rows[1][0].split()
    return changed(rows, 1, 0, f"{'red' if color != 'red' else 'blue'} {shape}")


def swapped(rows):
    """Two neighbors that differ."""
    y, x = next(((y, x) for y, row in enumerate(rows) for x in (0, 1) if row[x] != row[x + 1]), (0, 0))
    return changed(changed(rows, y, x, rows[y][x + 1]), y, x + 1, rows[y][x])


# Image -> (what it shows of a plan, sequence, facings, osa, value), means over random 3 x 3 plans of 20 products.
TABLE = {
    "true": (lambda rows: rows, 1, 1, 1, 1),
    "one facing missing": (lambda rows: changed(rows, 1, 0, None), 0.91, 0.89, 0.93, 0.91),
    "one color wrong": (recolored, 0.93, 0.79, 0.93, 0.89),
    "two neighbors swapped": (swapped, 0.89, 1, 1, 0.93),
    "rows swapped": (lambda rows: [rows[1], rows[0], rows[2]], 0.52, 1, 1, 0.69),
    "mirrored": (lambda rows: [row[::-1] for row in rows], 0.67, 1, 1, 0.79),
    "extra row": (lambda rows: [*rows, rows[0]], 0.73, 0.67, 1, 0.74),
    "every facing doubled": (lambda rows: [[name for name in row for _ in (0, 1)] for row in rows], 0.55, 0, 1, 0.46),
    "all slots the commonest product": (commonest, 0.51, 0.01, 0.20, 0.35),
    "all products once": (lambda rows: [NAMES[n : n + 4] for n in range(0, 20, 4)], 0.22, 0.17, 1, 0.29),
    "one row only": (lambda rows: rows[:1], 0.27, 0.33, 0.38, 0.30),
    "blank": (lambda rows: [], 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name):
    show, *expected = TABLE[name]
    found = []
    for rows in random_plans():
        brief, seen = plan(rows), shown(show(rows), width=0.2)
        each = terms(brief, seen)
        found.append((each["sequence"], each["facings"], each["osa"], value(brief, seen)))
    assert np.mean(found, axis=0) == pytest.approx(expected, abs=0.06)


def test_another_plans_image_scores_little_but_not_nothing():
    plans = random_plans()
    found = [value(plan(a), shown(b)) for a, b in zip(plans, plans[1:], strict=False)]
    assert 0.15 < np.mean(found) < 0.3


names = st.sampled_from(NAMES[:6])
rows_of = st.lists(st.lists(names, min_size=1, max_size=4), min_size=1, max_size=3)
boxes = st.tuples(*[st.floats(0, 1, width=32)] * 4).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)
things = st.builds(
    lambda shape, color, box: Thing(shape, box, rgb(color), color),
    st.sampled_from([*SHAPES, "panel"]), st.sampled_from(list(COLORS)), boxes,
)  # fmt: skip


@settings(max_examples=150)
@given(
    rows_of, st.lists(things, max_size=12), st.sampled_from(["forbid", "allow"]), st.sampled_from(["forbid", "allow"])
)
def test_every_term_is_between_0_and_1(rows, found, empty, mirror):
    brief = plan(rows, empty=empty, mirror=mirror)
    assert all(0 <= part <= 1 + 1e-9 for part in terms(brief, Observation(tuple(found))).values())
    assert 0 <= value(brief, Observation(tuple(found))) <= 1


@settings(max_examples=100)
@given(rows_of, st.randoms())
def test_one_more_right_facing_never_lowers_the_score(rows, random):
    brief, places = plan(rows, empty="allow"), [(y, x) for y, row in enumerate(rows) for x in range(len(row))]
    random.shuffle(places)
    there: set = set()
    last = 0.0
    full = shown(rows)
    by_place = dict(zip([(y, x) for y, row in enumerate(rows) for x in range(len(row))], full.things, strict=True))
    for place in places:
        there.add(place)
        score = value(brief, Observation(tuple(by_place[place] for place in sorted(there))))
        assert score >= last - 1e-9
        last = score
    assert last == pytest.approx(1)


@settings(max_examples=60)
@given(rows_of, st.randoms())
def test_equal_products_may_be_exchanged_and_keys_renamed(rows, random):
    seen = shown(rows)
    mixed = Observation(tuple(random.sample(seen.things, len(seen.things))))
    brief = plan(rows)
    renamed = brief.model_dump(by_alias=True, exclude_none=True)
    renamed["products"] = {f"x{key}": product for key, product in renamed["products"].items()}
    renamed["shelves"] = [[{**item, "product": f"x{item['product']}"} for item in row] for row in renamed["shelves"]]
    assert value(brief, seen) == value(brief, mixed) == value(PlanogramBrief.model_validate(renamed), seen)


@settings(max_examples=60)
@given(rows_of)
def test_a_mirror_image_is_right_only_where_it_is_allowed(rows):
    mirrored = [row[::-1] for row in rows]
    assert value(plan(rows, mirror="allow"), shown(mirrored)) == pytest.approx(1)
    assert value(plan(mirrored), shown(mirrored)) == pytest.approx(1)
    assert (value(plan(rows), shown(mirrored)) == pytest.approx(1)) == (rows == mirrored)


ABC = [["red circle", "red circle", "blue square"], ["green triangle", "yellow cross", "yellow cross"]]


def test_rows_follow_the_bottoms_of_products_of_any_height():
    seen = shown(ABC)
    taller = [replace(t, box=(t.box[0], t.box[1] - 0.15 * (n % 2), *t.box[2:])) for n, t in enumerate(seen.things)]
    wobbly = [replace(t, box=(*t.box[:3], t.box[3] + 0.03 * (n % 2))) for n, t in enumerate(taller)]
    assert value(plan(ABC), Observation(tuple(wobbly))) == pytest.approx(1)


def test_an_empty_slot_is_a_symbol_and_a_gap_nobody_asked_for_costs():
    gap = [["red circle", None, "blue square", "red circle"], ["red circle"] * 4]
    assert terms(plan(gap), shown(gap))["sequence"] == 1
    full = [["red circle", "blue square", "blue square", "red circle"], ["red circle"] * 4]
    assert terms(plan(gap), shown(full))["sequence"] == pytest.approx(1 - 1 / 9)
    short = [["red circle", "blue square", "red circle"], ["red circle"] * 4]
    assert terms(plan(short), shown(gap))["sequence"] == pytest.approx(1 - 1 / 9)
    assert terms(plan(short, empty="allow"), shown(gap))["sequence"] == 1
    ends = [[None, "red circle", "blue square"], ["red circle"] * 3]
    assert terms(plan(ends), shown(ends))["sequence"] == 1


def test_a_pile_is_one_place_of_several_facings():
    brief = plan([["red circle", "blue square"]])
    item = {"product": "red circle", "facings": [1, 2]}
    brief = PlanogramBrief.model_validate(
        {**brief.model_dump(by_alias=True, exclude_none=True), "shelves": [[item, {"product": "blue square"}]]}
    )
    low, high = shown([["red circle", "blue square"]]).things
    on_top = replace(low, box=(low.box[0], low.box[1] - 0.21, low.box[2], low.box[1] - 0.01))
    assert value(brief, Observation((low, on_top, high))) == pytest.approx(1)
    assert terms(brief, Observation((low, high)))["facings"] == pytest.approx(2 / 3)
    assert 0.7 < value(brief, Observation((low, high))) < 0.9


def test_shelves_may_be_counted_from_the_bottom():
    up = plan(ABC[::-1], count_from="bottom")
    assert value(up, shown(ABC)) == pytest.approx(1)
    assert value(up, shown(ABC[::-1])) < 0.8


def test_the_trades_rates():
    wrong = [["red circle", "red circle", "red circle"], ["green triangle", "yellow cross", "yellow cross"]]
    found = rules.terms(plan(ABC), shown(wrong))[1]
    assert found["kpi_on_shelf"] == found["kpi_shelf_number"] == 3 / 4
    assert found["kpi_position"] == pytest.approx(5 / 6)
    assert found["kpi_facings"] == pytest.approx(2 / 4)
    assert found["rows"] == 1 and found["commonest"] == 0.5 and found["foreign"] == 0


def test_one_missing_product_does_not_fail_what_is_right_of_it():
    row = ["red circle", "blue square", "green triangle", "yellow cross"]
    assert rules.terms(plan([row]), shown([row[1:]]))[1]["kpi_position"] == pytest.approx(3 / 4)


def test_surplus_and_foreign_products_cost():
    more = [[*ABC[0], "black cross"], ABC[1]]
    assert terms(plan(ABC), shown(more))["facings"] == pytest.approx(6 / 7)
    assert value(plan(ABC), shown(more)) < 0.95
    panel = Thing("panel", (0, 0.9, 1, 1), (0, 0, 0), "black")
    assert terms(plan(ABC), Observation((*shown(ABC).things, panel)))["facings"] < 1


def priced(*labels):
    brief = plan(ABC, prices=True, products={
        name: {**PRODUCTS[name], **({"price": "1.99"} if name == "red circle" else {})} for row in ABC for name in row
    })  # fmt: skip
    texts = [Thing("text", (x, 0.46, x + 0.1, 0.48), text=text) for x, text in labels]
    return terms(brief, Observation((*shown(ABC).things, *texts)))["price"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], 0),
        ([(0.05, "1.99")], 1),
        ([(0.05, "$1.99"), (0.35, "1.99")], 1),
        ([(0.05, "1.49")], 0.75),
        ([(0.05, "1.9")], 0),  # digits are not guessed
        ([(0.05, "one")], 0),
        ([(0.7, "1.99")], 0),  # under another product
        ([(0.05, "1.99"), (0.35, "9.99")], 0.875),
    ],
)
def test_a_price_is_read_under_its_product(labels, expected):
    assert priced(*labels) == pytest.approx(expected)


def test_partial_credit_lets_groups_differ_where_exact_does_not():
    rng = np.random.default_rng(0)
    equal, same_exact = 0, 0
    for rows in random_plans(30):
        brief, group = plan(rows), []
        for _ in range(8):
            drawn = [[name if rng.random() > 0.4 else NAMES[rng.integers(20)] for name in row] for row in rows]
            group.append(REWARD._score_of(brief, shown(drawn)))
        equal += len({score.value for score in group}) == 1
        same_exact += len({score.components["exact"] for score in group}) == 1
    assert equal == 0 and same_exact > 15
