"""What the agreement of two columns of rewards is, whatever the rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o_rl.benchmarks.agreement import agreement

REWARDS = st.lists(st.integers(-5, 5).map(float), min_size=4, max_size=12)
NAN = float("nan")


def groups(count: int) -> list[str]:
    return [str(number % 2) for number in range(count)]


@given(REWARDS)
def test_the_same_ranking_is_1_and_the_reversed_one_is_minus_1(rewards: list[float]) -> None:
    names = groups(len(rewards))
    same = agreement(rewards, [math.exp(reward) for reward in rewards], names)
    if same.groups:
        assert same.ranking == pytest.approx(1)
        assert agreement(rewards, [-reward for reward in rewards], names).ranking == pytest.approx(-1)
    else:
        assert math.isnan(same.ranking)


@given(REWARDS, st.randoms())
def test_neither_the_order_of_images_nor_what_is_compared_with_what_matters(
    rewards: list[float], random: object
) -> None:
    names, other = groups(len(rewards)), [reward * reward for reward in rewards]
    order = list(range(len(rewards)))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = agreement(rewards, other, names)
    moved = agreement(*([column[at] for at in order] for column in (other, rewards, names)))  # type: ignore[arg-type]
    np.testing.assert_allclose(
        [found.ranking, found.correlation, found.groups], [moved.ranking, moved.correlation, moved.groups], atol=1e-9
    )


def test_pairs_are_compared_within_groups_only() -> None:
    """Between the groups the order is reversed, which training never looks at."""
    found = agreement([0, 1, 10, 11], [20, 21, 10, 11], ["a", "a", "b", "b"])
    assert found.ranking == 1 and found.groups == 2
    assert found.correlation < -0.9


def test_one_flipped_pair_of_three() -> None:
    assert agreement([1, 2, 3], [1, 3, 2], ["a"] * 3).ranking == pytest.approx(1 / 3)


def test_a_difference_that_only_one_sees_is_no_agreement() -> None:
    assert agreement([1, 1, 1, 2], [1, 2, 1, 1], ["a", "a", "b", "b"]).ranking == 0
    mixed = agreement([1, 1, 1, 2, 5, 5], [1, 2, 1, 2, 6, 6], ["a", "a", "b", "b", "c", "c"])
    assert (mixed.ranking, mixed.groups) == (0.5, 2), "the third group says nothing"


def test_images_without_a_reward_are_left_out() -> None:
    found = agreement([1, 2, NAN, 4], [1, 2, 7, NAN], ["a"] * 4)
    assert (found.ranking, found.groups) == (1, 1)
    assert agreement([NAN, NAN], [1, 2], ["a", "a"]).groups == 0
