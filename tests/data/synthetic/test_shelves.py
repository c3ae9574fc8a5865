"""Shelf briefs: what is held out stays held out, and prompts say what the brief asks for."""

from __future__ import annotations

import numpy as np
import pytest

from blip3o_rl.data.synthetic import shelves

STORES = (shelves.SHAPE_STORE, shelves.OBJECT_STORE)


def row_types(line):
    """Ordered pairs, or the one product, of each row."""
    plan = line["planogram"]
    look = {key: (product["color"], product["class"]) for key, product in plan["products"].items()}
    rows = [tuple(look[item["product"]] for item in row) for row in plan["shelves"]]
    return [row if len(row) == 2 else row[0] for row in rows]


def held_out(kind):
    return any(kind in store.pairs[1] or kind in store.threes[1] for store in STORES)


@pytest.mark.parametrize("store", STORES)
def test_no_training_plan_has_a_held_out_row_and_held_out_plans_have_no_other(store):
    assert not any(held_out(kind) for line in shelves.train_prompts(500, 1, store) for kind in row_types(line))
    lines = shelves.held_out_prompts(store=store)
    assert len({line["prompt"] for line in lines}) == len(lines) == 48
    for line in lines:
        new = store.threes[1] if line["tag"] == "threes" else store.pairs[1]
        assert all(kind in new for kind in row_types(line))


def test_training_plans_have_two_and_three_shelves_and_each_suite_one_of_them():
    heights = [[len(line["planogram"]["shelves"]) for line in made(48)]
               for made in (shelves.train_prompts, shelves.held_out_prompts, shelves.held_out_pairs)]  # fmt: skip
    assert sorted(heights[0]) == [2] * 12 + [3] * 36
    assert set(heights[1]) == {3} and set(heights[2]) == {2}


PLAN = {
    "count_from": "top", "slots": 3,
    "products": {"A": {"class": "circle", "color": "red"}, "B": {"class": "cross", "color": "orange"},
                 "C": {"class": "bottle", "name": "amber glass"}},
    "shelves": [[{"product": "A", "facings": 2}, {"product": "B", "facings": 1}],
                [{"empty": 1}, {"product": "C", "facings": [2, 3]}]],
}  # fmt: skip


def test_prompts_name_rows_from_the_top_and_products_from_the_left():
    assert [shelves.prompt(PLAN, number) for number in range(3)] == [
        "a photo of shelves: two red circles, an orange cross; an empty slot, 6 amber glasses",
        "a shelf unit. Top: two red circles, then an orange cross. Bottom: an empty slot, then 6 amber glasses.",
        "top shelf two red circles and an orange cross, bottom shelf an empty slot and 6 amber glasses",
    ]
    up = {**PLAN, "count_from": "bottom", "shelves": PLAN["shelves"][::-1]}
    assert shelves.prompt(up) == shelves.prompt(PLAN)
    four = {**PLAN, "shelves": [[{"product": "B", "facings": 2}]] * 4}
    assert shelves.prompt(four, 1).startswith("a shelf unit. Top: two orange crosses. Shelf 2: ")


def test_a_draw_stands_on_the_raster_and_a_generator_moves_it_by_whole_cells():
    plan = {**PLAN, "shelves": [[{"product": "A", "facings": 3}], [{"product": "B", "facings": 3}]]}
    image = shelves.draw(plan, 72)
    ys, xs = np.nonzero(np.abs(image.astype(int) - 238).sum(2) > 60)
    assert (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1) == pytest.approx((8, 56, 0, 64), abs=1)
    moved = [shelves.draw(plan, 72, np.random.default_rng(seed)) for seed in range(8)]
    assert 2 <= len({each.tobytes() for each in moved}) <= 4
    assert shelves.draw(PLAN, 256).shape == (256, 256, 3)


@pytest.mark.parametrize("kind", ["cup", "circle"])
def test_a_shelf_may_have_more_slots_than_an_image_has_pixels(kind):
    shelf = [{"empty": 3000}, {"product": "A"}]
    plan = {
        "count_from": "top",
        "prices": True,
        "products": {"A": {"class": kind, "price": "1.99"}},
        "shelves": [shelf],
    }
    assert shelves.draw(plan).shape == (64, 64, 3)


def test_what_a_brief_leaves_out_is_drawn_and_said_as_its_default():
    one = {**PLAN, "shelves": [[{"product": "A", "facings": 1}, {"empty": 1}]]}
    short = {**PLAN, "shelves": [[{"product": "A", "empty": None}, {"product": None, "empty": 1}]]}
    assert shelves.prompt(short) == shelves.prompt(one) and np.array_equal(shelves.draw(short), shelves.draw(one))
