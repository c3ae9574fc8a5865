"""Rewards count in a plan by the networks that they load on the GPUs of the run."""

from __future__ import annotations

import pytest

from blip3o_rl.config.train import compose_recipe, read_settings
from blip3o_rl.training.planning.gpus import CONTEXT_GIB
from blip3o_rl.training.planning.rewards import NETWORK_GIB, shared_gib

NO_JUDGE = "run.evaluate=false"
LAYOUT = "reward.rewards.layout"
DETECTOR = NETWORK_GIB["mask2former"]


def planned(recipe: str, *overrides: str) -> float:
    return shared_gib(read_settings(compose_recipe(recipe, [*overrides], "gpu")))


@pytest.mark.parametrize(
    ("recipe", "overrides", "loaded"),
    [
        ("text_3b", [], []),
        ("shapes", [], []),
        ("geneval_3b", [NO_JUDGE], ["mask2former"]),
        ("geneval_3b", [], ["mask2former", "mask2former"]),
        ("layout_3b", [NO_JUDGE], ["mask2former"]),
        ("layout_3b", [], ["mask2former"]),
        ("planogram_3b", [], ["mask2former"]),
        ("edit_3b", [], ["mask2former", "dinov2"]),
        ("multi_3b", [], ["mask2former", "mask2former", "pickscore", "hpsv2", "clipscore"]),
        ("text_3b", ["reward.rewards.liked.name=pickscore"], ["pickscore"]),
        ("text_3b", ["reward.rewards.pickscore.device=cpu"], []),
        ("text_3b", ["reward.rewards.pickscore.path=mine.py:score"], []),
        ("layout_3b", [f"{LAYOUT}.observer.device=cpu", NO_JUDGE], []),
        ("layout_3b", [f"{LAYOUT}.observer.detector=pipeline", NO_JUDGE], ["pipeline"]),
        ("layout_3b", [f"{LAYOUT}.observer=null", NO_JUDGE], []),
    ],
)
def test_a_reward_counts_by_what_it_loads(recipe: str, overrides: list[str], loaded: list[str]) -> None:
    """A judge that asks for other settings than the run's rewards has networks of its own; observers are shared."""
    expected = sum(NETWORK_GIB[network] for network in loaded)
    assert planned(recipe, *overrides) == pytest.approx(expected + (CONTEXT_GIB if loaded else 0))


@pytest.mark.parametrize(
    ("overrides", "processes"),
    [
        ([], 1),
        (["actor_rollout_ref.rollout.agent.num_workers=3"], 3),
        (["actor_rollout_ref.rollout.agent.num_workers=3", "trainer.n_gpus_per_node=2"], 2),
        ([f"{LAYOUT}.service.replicas=3"], 3),
        ([f"{LAYOUT}.service.replicas=3", "trainer.n_gpus_per_node=2"], 2),
        ([f"{LAYOUT}.service.replicas=4", "trainer.nnodes=4"], 1),
        ([f"{LAYOUT}.service.num_gpus=1"], 0),
        ([f"{LAYOUT}.service.url=http://gpu7:18085"], 0),
    ],
)
def test_each_process_that_scores_has_its_own_networks(overrides: list[str], processes: int) -> None:
    """The replicas of a deployed reward that reserves no GPU are on those of the run."""
    assert planned("layout_3b", NO_JUDGE, *overrides) == pytest.approx(processes * (DETECTOR + CONTEXT_GIB))


def test_deployed_rewards_take_the_gpus_in_turn() -> None:
    second = "reward.rewards.second.name=layout", "reward.rewards.second.observer={detector: mmdet}"
    both = [NO_JUDGE, f"{LAYOUT}.service.replicas=1", *second, "reward.rewards.second.service.replicas=1"]
    assert planned("layout_3b", *both) == pytest.approx(2 * (DETECTOR + CONTEXT_GIB))
    assert planned("layout_3b", *both, "trainer.n_gpus_per_node=2") == pytest.approx(DETECTOR + CONTEXT_GIB)
