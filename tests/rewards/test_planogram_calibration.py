"""Calibration of the planogram reward on drawn images: true, near, wrong, blank and hacked ones in the stated order."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from blip3o_rl.data.synthetic import shelves
from blip3o_rl.data.synthetic.scenes import COLORS, SHAPES
from blip3o_rl.rewards.planogram.reward import PlanogramReward
from blip3o_rl.scoring.api import Sample

BRIEFS = 24
REWARD = PlanogramReward()


@pytest.fixture(scope="module")
def plans():
    rng = np.random.default_rng(11)
    return [shelves.train_plan(rng, rows=2)["planogram"] for _ in range(BRIEFS)]


def scores(plans, images):
    samples = [
        Sample(str(n), "shelves", image, {"planogram": plan})
        for n, (plan, image) in enumerate(zip(plans, images, strict=True))
    ]
    return REWARD.score(samples)


def shown(plan, change=lambda rows: rows, products=None):
    """The image of a plan whose rows of single facings were changed."""
    rows = [[item["product"] for item in row for _ in range(item["facings"])] for row in plan["shelves"]]
    single = [[{"product": key, "facings": 1} if key else {"empty": 1} for key in row] for row in change(rows)]
    return shelves.draw({**plan, "products": products or plan["products"], "shelves": single})


def wrong_color(plan):
    products = dict(plan["products"])
    first = products["A"]
    products["Z"] = {**first, "color": next(color for color in COLORS if color != first["color"])}
    return shown(plan, lambda rows: [["Z", *rows[0][1:]], *rows[1:]], products)


def wrong_product(plan):
    taken = {(product["class"], product["color"]) for product in plan["products"].values()}
    shape, color = next(
        (s, c) for s in SHAPES for c in COLORS if (s, c) not in taken and s != plan["products"]["A"]["class"]
    )
    products = {**plan["products"], "Z": {"class": shape, "color": color}}
    return shown(plan, lambda rows: [["Z", *rows[0][1:]], *rows[1:]], products)


def commonest(plan):
    return shown(plan, lambda rows: [[max("ABCD", key=sum(rows, []).count)] * 3] * 2)


def everything_once(plan):
    products = {f"{c}{s}": {"class": s, "color": c} for c in COLORS for s in SHAPES}
    return shown(plan, lambda rows: [list(products)[n : n + 4] for n in range(0, 12, 4)], products)


TABLE = {
    "true": (shown, 1, 1),
    "one facing missing": (lambda plan: shown(plan, lambda rows: [rows[0], [*rows[1][:2], None]]), 0.8, 0.95),
    "one color wrong": (wrong_color, 0.75, 0.95),
    "one product wrong": (wrong_product, 0.7, 0.9),
    "rows swapped": (lambda plan: shown(plan, lambda rows: rows[::-1]), 0.5, 0.8),
    "one row more": (lambda plan: shown(plan, lambda rows: [*rows, rows[0]]), 0.5, 0.8),
    "one row only": (lambda plan: shown(plan, lambda rows: rows[:1]), 0.3, 0.55),
    "hack: the commonest product everywhere": (commonest, 0.2, 0.65),
    "hack: twelve products once": (everything_once, 0.1, 0.45),
    "blank": (lambda plan: np.full((64, 64, 3), 238, np.uint8), 0, 0),
}


@pytest.fixture(scope="module")
def values(plans):
    return {
        name: float(np.mean([score.value for score in scores(plans, [make(plan) for plan in plans])]))
        for name, (make, _, _) in TABLE.items()
    }


@pytest.mark.parametrize("name", TABLE)
def test_the_table(values, name):
    _, low, high = TABLE[name]
    assert low <= values[name] <= high


def test_near_misses_come_before_wrong_images_and_hacks(values):
    near = min(values[name] for name in ("one facing missing", "one color wrong", "one product wrong"))
    wrong = max(values[name] for name in ("rows swapped", "one row more", "one row only"))
    hacked = max(value for name, value in values.items() if name.startswith("hack"))
    assert values["true"] > near > wrong > values["blank"] and near > hacked


def test_another_plans_image_scores_little(plans):
    found = scores(plans, [shown(plan) for plan in [*plans[3:], *plans[:3]]])
    assert 0.1 < np.mean([score.value for score in found]) < 0.4


@pytest.mark.parametrize(("blur", "noise"), [(0, 0), (0.8, 8), (1.2, 0)])
def test_the_judges_ceiling_on_drawn_truths(blur, noise):
    rng = np.random.default_rng(1)
    lines = [*shelves.train_prompts(20, 3), *shelves.held_out_prompts(20)]
    images = []
    for line in lines:
        image = shelves.draw(line["planogram"], rng=rng)
        image = cv2.GaussianBlur(image, (0, 0), blur) if blur else image
        images.append(np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8))
    found = scores([line["planogram"] for line in lines], images)
    assert np.mean([score.components["exact"] for score in found]) >= 0.95


def test_three_shelves_are_read_too(plans):
    found = scores(plans, [shown(plan, lambda rows: [*rows, rows[1]]) for plan in plans])
    assert all(score.components["rows"] == 1.5 for score in found)


def test_prices_are_read_where_they_are_asked_for():
    plan = {
        "count_from": "top", "prices": True, "slots": 2,
        "products": {"A": {"class": "circle", "color": "red", "price": "1.99"},
                     "B": {"class": "square", "color": "blue", "price": "2.49"}},
        "shelves": [[{"product": "A", "facings": 1}, {"product": "B", "facings": 1}]],
    }  # fmt: skip
    reward = PlanogramReward({"read": True})
    line = {"prompt": "shelves", "planogram": plan}
    assert reward.check_metadata(line) == "" and "observer.read: true" in REWARD.check_metadata(line)
    true, other = (
        reward.score([Sample("a", "shelves", shelves.draw({**plan, "products": products}, 512), line)])[0]
        for products in (plan["products"], {**plan["products"], "A": {**plan["products"]["A"], "price": "7.35"}})
    )
    assert true.components["price"] == 1 and true.components["exact"] == 1 and "text_area" in true.components
    assert other.components["price"] < 0.8 and other.value < true.value
