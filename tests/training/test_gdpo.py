"""GDPO's advantages against values computed by hand, and what must hold for any rewards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.trainer.ppo.core_algos import compute_gdpo_outcome_advantage, get_adv_estimator_fn

from blip3o_rl.errors import UserError
from blip3o_rl.scoring.rubric import RubricScore, token_rewards
from blip3o_rl.training import advantage

TOKENS = 6
PLAIN = {"adv_estimator": "group_grpo", "use_kl_in_reward": False}


def gdpo(
    rewards: list[list[float]], groups: str, weights: list[float], tokens: int = TOKENS, **options: Any
) -> np.ndarray:
    """One advantage per sample, by the registered estimator; a row of `rewards` and a letter of `groups` each."""
    config = advantage.algorithm_options("gdpo", {f"r{k}": w for k, w in enumerate(weights)}, PLAIN) | options
    on_tokens = []
    for row in rewards:
        total = sum(w * r for w, r in zip(weights, row, strict=True))
        on_tokens.append(token_rewards(RubricScore(total, values=tuple(row)), tokens, "gdpo"))
    estimator = get_adv_estimator_fn(config["adv_estimator"])
    found, returns = estimator(
        token_level_rewards=torch.tensor(on_tokens),
        response_mask=torch.ones(len(rewards), tokens, dtype=torch.int64),
        config=config,
        index=np.array(list(groups), dtype=object),
    )
    assert torch.equal(found, returns)
    assert (found == found[:, :1]).all()
    return found[:, 0].numpy()


def by_formula(rewards: list[list[float]], groups: str, weights: list[float], tokens: int = TOKENS) -> np.ndarray:
    """The paper's three steps in plain numpy, for groups of at least two."""
    values, names = np.array(rewards), np.array(list(groups))
    total = np.zeros(len(values))
    for name in set(groups):
        rows = names == name
        for k, weight in enumerate(weights):
            column = values[rows, k]
            total[rows] += weight * (column - column.mean()) / (column.std(ddof=1) + 1e-4)
    n = len(total) * tokens
    variance = total.var() * n / (n - 1)
    return (total - total.mean()) / math.sqrt(variance + 1e-8)


def test_by_hand() -> None:
    # One group of two, two rewards that disagree: r0 says +-sqrt(1/2), r1 says -+sqrt(1/2) whatever its range is.
    # Weighted 2 and 1 the sum is +-sqrt(1/2); whitened over 2 x 6 tokens by sqrt(1/2 * 12/11): +-sqrt(11/12).
    found = gdpo([[1.0, 0.0], [0.0, 100.0]], "aa", [2.0, 1.0])
    np.testing.assert_allclose(found, [math.sqrt(11 / 12), -math.sqrt(11 / 12)], atol=1e-4)


def test_a_wide_reward_does_not_drown_a_narrow_one() -> None:
    rewards = [[0.0, 100.0], [0.1, 0.0], [0.0, 0.0], [0.1, 100.0]]
    found = gdpo(rewards, "aaaa", [1.0, 1.0])
    assert found[0] == pytest.approx(0, abs=2e-3) and found[1] == pytest.approx(0, abs=2e-3)  # epsilon
    assert found[3] > 0.9 and found[2] < -0.9
    estimator = get_adv_estimator_fn("group_grpo")
    summed = torch.tensor(rewards).sum(1, keepdim=True)
    grpo, _ = estimator(summed, torch.ones(4, 1), np.array(list("aaaa"), dtype=object))
    assert grpo[0] > 0.5 > 0 > grpo[1]


rows = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(-40, 40), min_size=3, max_size=3)), min_size=6, max_size=12
).map(lambda pairs: [("abc"[i % 3] if i < 6 else "abc"[g], [v / 8 for v in r]) for i, (g, r) in enumerate(pairs)])


@settings(max_examples=80)
@given(rows, st.lists(st.sampled_from([-2.0, -0.3, 0.1, 1.0, 3.0]), min_size=3, max_size=3))
def test_any_rewards_agree_with_the_formula(pairs, weights) -> None:  # type: ignore[no-untyped-def]
    groups, rewards = "".join(g for g, _ in pairs), [r for _, r in pairs]
    found, expected = gdpo(rewards, groups, weights), by_formula(rewards, groups, weights)
    np.testing.assert_allclose(found, expected, atol=5e-3)


@settings(max_examples=40)
@given(rows, st.floats(0.1, 50), st.floats(-5, 5))
def test_scale_and_offset_of_a_reward_do_not_matter(pairs, scale: float, offset: float) -> None:  # type: ignore[no-untyped-def]
    groups, rewards = "".join(g for g, _ in pairs), [r for _, r in pairs]
    other = [[r[0], scale * r[1] + offset, r[2]] for r in rewards]
    weights = [1.0, 0.5, 2.0]
    exact = {"advantage_epsilon": 1e-9}
    np.testing.assert_allclose(
        gdpo(rewards, groups, weights, **exact), gdpo(other, groups, weights, **exact), atol=5e-3
    )


def test_one_reward_is_whitened_grpo() -> None:
    found = gdpo([[0.0], [1.0], [0.2], [0.4]], "aabb", [5.0])
    np.testing.assert_allclose(np.abs(found), math.sqrt(23 / 24), atol=1e-3)
    assert found[1] > 0 > found[0] and found[3] > 0 > found[2]


def test_the_estimator_is_verls_own_given_what_verl_wants() -> None:
    rewards = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    config = advantage.algorithm_options("gdpo", {"a": 1.5, "b": -0.5}, PLAIN)
    mask, prompts = torch.ones(8, TOKENS, dtype=torch.int64), torch.zeros(8, 3, dtype=torch.int64)
    groups = np.array(list("aaaabbbb"), dtype=object)
    verls, _ = compute_gdpo_outcome_advantage(
        torch.zeros(8, TOKENS),
        mask,
        groups,
        epsilon=advantage.EPSILON,
        config={**config, "gdpo_reward_keys": ["a", "b"]},
        non_tensor_batch={"a": rewards[:, 0], "b": rewards[:, 1]},
        batch={"prompts": prompts, "attention_mask": torch.ones(8, 3 + TOKENS, dtype=torch.int64)},
    )
    np.testing.assert_allclose(gdpo(rewards.tolist(), "aaaabbbb", [1.5, -0.5]), verls[:, 0].numpy(), atol=1e-5)


def test_a_reward_that_is_the_same_for_a_group_says_exactly_nothing() -> None:
    assert (gdpo([[0.7, 0.1]] * 7 + [[0.3, 0.9]] * 7, "a" * 7 + "b" * 7, [1.0, 0.3]) == 0).all()
    varied = [[r, 0.7] for r in (0.1, 0.5, 0.9)]
    np.testing.assert_array_equal(
        gdpo(varied, "aaa", [1.0, 1.0]), gdpo([[r, 0.0] for r, _ in varied], "aaa", [1.0, 1.0])
    )


def test_samples_alone_in_their_group_are_not_pushed_and_push_nobody() -> None:
    pair = gdpo([[1.0], [0.0]], "aa", [1.0])
    found = gdpo([[1.0], [0.0], [1000.0]], "aab", [1.0])
    np.testing.assert_array_equal(found, [*pair, 0.0])
    assert (gdpo([[1.0], [5.0]], "ab", [1.0]) == 0).all()


def test_shorter_responses_keep_their_mask() -> None:
    config = advantage.algorithm_options("gdpo", {"a": 1.0}, PLAIN)
    rewards = torch.tensor([[1.0, 0, 0, 0], [0.5, 0, 0, 0], [0.0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    found, _ = advantage.group_gdpo_advantage(rewards, mask, np.array(list("aaa"), dtype=object), config)
    assert ((found != 0) == (mask * torch.tensor([[1], [1], [1]]) > 0)).all()
    assert (found * mask).sum() == pytest.approx(0, abs=1e-5)


def test_verls_padding_rows_change_nothing() -> None:
    config = advantage.algorithm_options("gdpo", {"a": 1.0, "b": 2.0}, PLAIN)
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.5, 4.0, 0.0], [0.0, 2.0, 0.0]])
    groups, mask = np.array(list("aaa"), dtype=object), torch.ones(3, 3, dtype=torch.int64)
    alone, _ = advantage.group_gdpo_advantage(rewards, mask, groups, config)
    padded, _ = advantage.group_gdpo_advantage(
        torch.cat([rewards, torch.zeros(2, 3)]),
        torch.cat([mask, torch.zeros(2, 3, dtype=torch.int64)]),
        np.array(["a", "a", "a", "pad", "pad"], dtype=object),
        config,
    )
    assert torch.equal(padded[:3], alone) and (padded[3:] == 0).all()


def test_token_rewards_sum_to_the_value() -> None:
    score = RubricScore(1.25, values=(1.0, 0.5))
    assert token_rewards(score, 4, "gdpo") == [1.0, 0.5, 0.0, -0.25]
    assert token_rewards(score, 4, "weighted_sum") == [0.0, 0.0, 0.0, 1.25]
    with pytest.raises(ValueError, match="2 rewards do not fit on 2 tokens"):
        token_rewards(score, 2, "gdpo")


def test_dr_grpo_is_a_switch_of_both() -> None:
    rewards, mask = torch.tensor([[2.0], [0.0]]), torch.ones(2, 1)
    index = np.array(list("aa"), dtype=object)
    found, _ = advantage.group_advantage(rewards, mask, index, config={"norm_adv_by_std_in_grpo": False})
    assert found[:, 0].tolist() == [1.0, -1.0]
    config = {**advantage.algorithm_options("gdpo", {"a": 1.0, "b": 1.0}, PLAIN), "norm_adv_by_std_in_grpo": False}
    wide = torch.tensor([[4.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found, _ = advantage.group_gdpo_advantage(wide, torch.ones(3, 2), np.array(list("aaa"), dtype=object), config)
    assert found[0, 0] > 1 and found[1, 0] < found[0, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gdpo", {"a": 1.0}, {**PLAIN, "adv_estimator": "rloo"}), "algorithm.adv_estimator=rloo: reward.aggregation"),
        (("gdpo", {}, PLAIN), "reward.aggregation=gdpo: every reward has weight 0"),
        (("gdpo", {"a": 1.0}, {**PLAIN, "use_kl_in_reward": True}), "algorithm.use_kl_in_reward=true"),
    ],
)
def test_what_cannot_work_is_refused(arguments, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError) as caught:
        advantage.algorithm_options(*arguments)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_the_weighted_sum_leaves_the_estimator_to_the_user() -> None:
    assert advantage.algorithm_options("weighted_sum", {"a": 1.0}, {**PLAIN, "adv_estimator": "rloo"}) == {}
