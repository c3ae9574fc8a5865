"""What a planogram brief may not say: one line with its field, when prompts are loaded."""

from __future__ import annotations

import pytest

from blip3o_rl.rewards.geneval.scenes import SceneColors, SceneDetector
from blip3o_rl.rewards.observation import Observer
from blip3o_rl.rewards.planogram.reward import PlanogramReward

REWARD = PlanogramReward(Observer(SceneDetector(), SceneColors(), None))
A = {
    "class": "circle", "color": "red", "name": "red circle", "upc": "0500000000002", "brand": "X",
    "size_mm": [65, 120], "price": "1.99",
}  # fmt: skip
B = {"class": "square", "color": "blue"}
ROW = [{"product": "A", "facings": 2}, {"product": "B", "facings": 1}]
GOOD = {
    "count_from": "top", "products": {"A": A, "B": B}, "shelves": [ROW, [{"product": "B", "facings": [3, 1]}]],
    "slots": 3, "empty": "forbid", "mirror": "forbid", "prices": False,
}  # fmt: skip


def fault(plan):
    return REWARD.check_metadata({"prompt": "a", "planogram": plan})


def row(*items):
    return {**GOOD, "shelves": [ROW, list(items)]}


def product(**change):
    return {**GOOD, "products": {"A": {**A, **change}, "B": B}}


def test_good_plans():
    assert fault(GOOD) == ""
    assert REWARD.check_metadata(PlanogramReward.example_metadata) == ""
    assert fault(row({"product": "A", "facings": [1, 2, 4]}, {"empty": 2})) == ""
    assert (
        fault({**GOOD, "width_mm": 130})
        == ""
        == fault({key: GOOD[key] for key in ("count_from", "products", "shelves")})
    )


BAD = [
    ("plan", "planogram: is no JSON object"),
    ([GOOD], "planogram: is no JSON object"),
    ({}, "planogram.count_from: is missing"),
    ({**GOOD, "count_from": "left"}, "planogram.count_from=left"),
    ({**GOOD, "count_from": None}, "planogram.count_from=null"),
    ({**GOOD, "shelfs": []}, "planogram.shelfs: there is no such key; did you mean 'shelves'?"),
    ({**GOOD, "shelves": []}, "planogram.shelves"),
    ({**GOOD, "shelves": [[]]}, "planogram.shelves.0"),
    ({**GOOD, "shelves": [ROW, "A"]}, "planogram.shelves.1=A"),
    ({**GOOD, "shelves": {"1": ROW}}, "planogram.shelves="),
    ({**GOOD, "shelves": [["A", "B"]]}, "planogram.shelves.0.0"),
    ({**GOOD, "shelves": [[{"empty": 2}]]}, "planogram: shelves: there is no product on them"),
    ({**GOOD, "products": {}}, "planogram.products"),
    ({**GOOD, "products": [A, B]}, "planogram.products="),
    ({**GOOD, "products": {"A": A, "B": A}}, "planogram: products.B: is a red circle like A"),
    ({**GOOD, "products": {"A": A, "B": {"class": "circle", "color": "#de2a2a"}}}, "planogram: products.B.color"),
    ({**GOOD, "products": {"A": A}}, "planogram: shelves.0.1: there is no product 'B'; known: A"),
    ({**GOOD, "products": {"A": A, "B": "square"}}, "planogram.products.B"),
    ({**GOOD, "slots": 2}, "planogram: shelves.0: has 3 facings side by side; slots is 2"),
    ({**GOOD, "slots": 0}, "planogram.slots=0"),
    ({**GOOD, "slots": 2.5}, "planogram.slots=2.5"),
    ({**GOOD, "width_mm": 129}, "planogram: shelves.0: its products are 130 mm wide; width_mm is 129"),
    ({**GOOD, "width_mm": 0}, "planogram.width_mm=0"),
    ({**GOOD, "empty": "no"}, "planogram.empty=no"),
    ({**GOOD, "mirror": True}, "planogram.mirror=True"),
    ({**GOOD, "prices": "yes"}, "planogram.prices=yes"),
    ({**GOOD, "prices": True}, "planogram.prices: the observer does not read"),
    ({**product(price=None), "prices": True}, "planogram: prices: no product has a price"),
    (row({"product": "C", "facings": 1}), "planogram: shelves.1.0: there is no product 'C'"),
    (row({"product": "A", "facings": 0}), "planogram.shelves.1.0.facings"),
    (row({"product": "A", "facings": -1}), "planogram.shelves.1.0.facings"),
    (row({"product": "A", "facings": 1.5}), "planogram.shelves.1.0.facings"),
    (row({"product": "A", "facings": "2"}), "planogram.shelves.1.0.facings"),
    (row({"product": "A", "facings": True}), "planogram.shelves.1.0.facings"),
    (row({"product": "A", "facings": None}), "planogram.shelves.1.0.facings"),
    (row({"product": "A", "facings": []}), "planogram.shelves.1.0.facings"),
    (row({"product": "A", "facings": [1, 0]}), "planogram.shelves.1.0.facings"),
    (row({"product": "A", "facings": [1, 1, 1, 1]}), "planogram.shelves.1.0.facings"),
    (row({"product": "A", "faces": 2}), "planogram.shelves.1.0.faces: there is no such key"),
    (row({"produkt": "A"}), "planogram.shelves.1.0.produkt: there is no such key; did you mean 'product'?"),
    (row({"product": "A", "empty": 1}), "planogram.shelves.1.0: is neither a product"),
    (row({"empty": 1, "facings": 2}), "planogram.shelves.1.0: is neither a product"),
    (row({}), "planogram.shelves.1.0: is neither a product"),
    (row({"empty": 0}), "planogram.shelves.1.0.empty=0"),
    (row({"product": 7}), "planogram.shelves.1.0.product=7"),
    ({**row({"product": "A", "facings": 15}), "slots": None}, "planogram: shelves: 17 facings of class circle"),
    ({**row({"product": "B", "facings": [4, 4]}), "slots": None}, "planogram: shelves: 17 facings of class square"),
    (product(**{"class": "bottle"}), "planogram.products.A.class: 'bottle' is not known"),
    (product(**{"class": "cirle"}), "did you mean 'circle'?"),
    (product(**{"class": None}), "planogram.products.A.class=null"),
    (product(color="purple"), "planogram.products.A.color: 'purple' is not seen"),
    (product(color="redd"), "planogram.products.A.color: 'redd' is no color"),
    (product(color=3), "planogram.products.A.color=3"),
    (product(colour="red"), "planogram.products.A.colour: there is no such key; did you mean 'color'?"),
    (product(upc=500000000002), "planogram.products.A.upc=500000000002"),
    (product(size_mm=[65]), "planogram.products.A.size_mm"),
    (product(size_mm=[65, 0]), "planogram.products.A.size_mm.1=0"),
    (product(size_mm="65x120"), "planogram.products.A.size_mm=65x120"),
    (product(price=1.99), "planogram.products.A.price=1.99"),
    (product(price="1.9"), "planogram.products.A.price=1.9"),
    (product(price="free"), "planogram.products.A.price=free"),
    (product(name=["red circle"]), "planogram.products.A.name="),
    ({**GOOD, "products": {"A": {"color": "red"}, "B": B}}, "planogram.products.A.class: is missing"),
]


@pytest.mark.parametrize(("plan", "message"), BAD)
def test_a_plan_that_cannot_be_judged_is_one_line_with_its_field(plan, message):
    found = fault(plan)
    assert message in found and "\n" not in found and found.startswith("planogram")


GAP, ONE, TWO = {"empty": 1}, {"product": "A"}, {"product": "B", "facings": 2}


@pytest.mark.parametrize(
    "shelves",
    [
        [[TWO, ONE], [{"empty": 2}]],  # an empty shelf
        [[ONE, GAP], [GAP, {"product": "B"}]],  # nothing says how far apart slots are
        [[GAP, TWO], [GAP, ONE, ONE]],  # the same end everywhere
        [[TWO, GAP], [ONE, ONE, GAP]],
    ],
)
def test_empty_slots_that_no_image_can_show_are_refused(shelves):
    assert "no image can show these empty slots" in fault({**GOOD, "shelves": shelves})


@pytest.mark.parametrize(
    "shelves",
    [[[TWO, GAP], [ONE, ONE, ONE]], [[ONE, GAP, ONE], [TWO, ONE]], [[GAP, ONE, {"product": "B"}], [ONE, TWO]]],
)
def test_empty_slots_next_to_products_are_asked_for(shelves):
    assert fault({**GOOD, "shelves": shelves}) == ""
