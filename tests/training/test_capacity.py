"""A cluster that is too small for a run is refused; one that others use is waited for, one run after the other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from blip3o_rl.config.train import compose_recipe
from blip3o_rl.errors import UserError
from blip3o_rl.training import capacity
from blip3o_rl.training.given_cluster import Node

RECIPE = "recipes/shapes"


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ([{"CPU": 8, "GPU": 1}], "has 1 GPUs, this run needs 2"),
        ([{"CPU": 2, "GPU": 2}], "has 2 CPUs"),
        ([{"CPU": 8, "GPU": 1}] * 2, "has 0 nodes with 2 GPUs .* 2 CPUs, this run needs 1"),
        ([{"CPU": 1, "GPU": 2}, {"CPU": 8}], "has 0 nodes with 2"),
    ],
)
def test_a_cluster_that_verl_would_wait_for_is_refused(has: list[dict[str, float]], expected: str) -> None:
    """Whether or not somebody holds a part of it, which is waited for."""
    config = compose_recipe(RECIPE, ["trainer.n_gpus_per_node=2"])
    with pytest.raises(UserError, match=f"the Ray cluster {expected}"):
        capacity.refuse_too_small(config, [Node(node, node) for node in has])
    large = [Node({"CPU": 8.0, "GPU": 8.0}, node) for node in has]
    capacity.refuse_too_small(config, large)
    assert capacity.is_taken(config, large)


def test_a_renderer_with_gpus_of_its_own_counts() -> None:
    def node(**has: float) -> Node:
        return Node(has, has)

    enough = node(CPU=3, GPU=2)
    capacity.refuse_too_small(compose_recipe(RECIPE, ["trainer.n_gpus_per_node=2"]), [enough])
    own = compose_recipe(RECIPE, ["trainer.n_gpus_per_node=2", "render.gpus_per_replica=0.5"])
    with pytest.raises(UserError, match=r"needs 3: 2 for trainer\.nnodes x .*, 1 for render.gpus_per_replica; reserve"):
        capacity.refuse_too_small(own, [enough])
    with pytest.raises(UserError, match="has 0 nodes with 3 GPUs"):
        capacity.refuse_too_small(own, [enough, node(GPU=1)])
    capacity.refuse_too_small(own, [node(CPU=3, GPU=3)])


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        (["num_gpus=1"], "4 GPUs, this run needs 5: 2 for trainer.* 2 for render.* 1 for reward.*num_gpus;"),
        (["replicas=3", "num_cpus=2"], "8 CPUs, this run needs 9: 3 for the trainers.* 6 for reward.*num_cpus;"),
    ],
)
def test_what_deployed_rewards_reserve_counts(service: list[str], expected: str) -> None:
    """Serve takes it first, and verl would wait for the rest without a word."""
    node = {"CPU": 8.0, "GPU": 4.0}
    words = ["trainer.n_gpus_per_node=2", "render.gpus_per_replica=1", "reward.rewards.ocr.service.retries=3"]
    capacity.refuse_too_small(compose_recipe(RECIPE, words), [Node(node, node)])
    config = compose_recipe(RECIPE, [*words, *(f"reward.rewards.ocr.service.{word}" for word in service)])
    with pytest.raises(UserError, match=f"the Ray cluster has {expected}"):
        capacity.refuse_too_small(config, [Node(node, node)])
    roomy = {"CPU": 9.0, "GPU": 5.0}
    capacity.refuse_too_small(config, [Node(roomy, roomy)])
    assert capacity.is_taken(config, [Node(roomy, node)])


def test_a_shared_renderer_is_kept_off_the_gpus_of_others() -> None:
    nodes = [Node({"CPU": 9, "GPU": 8}, {"CPU": 9, "GPU": 6})]
    two = "trainer.n_gpus_per_node=2"
    assert capacity.is_taken(compose_recipe(RECIPE, [two], "gpu"), nodes)
    assert not capacity.is_taken(compose_recipe(RECIPE, [two, "render.gpus_per_replica=1"], "gpu"), nodes)
    assert not capacity.is_taken(compose_recipe(RECIPE, [two]), nodes)


def test_runs_take_their_gpus_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run says what it waits for: for the name that another holds, then for GPUs; its own it keeps until its agent
    loops are there."""
    actors, said, killed = ["theirs"], [], []
    free = iter([0.0, 0.0, 1.0])

    class Actor:
        @classmethod
        def options(cls, name: str, namespace: str) -> type[Actor]:
            assert name == namespace == capacity.LOCK
            return cls

        @classmethod
        def remote(cls) -> str:
            if actors:
                raise ValueError("The name blip3o-rl-turn is already taken.")
            return "ours"

    def say(text: str) -> None:
        said.append(text)
        actors.clear()

    monkeypatch.setattr("ray.remote", lambda **_: lambda _: Actor)
    monkeypatch.setattr("ray.kill", killed.append)
    monkeypatch.setattr(capacity, "POLL_S", 0.0)
    nodes = lambda: [Node({"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": next(free)})]  # noqa: E731
    monkeypatch.setattr(capacity, "given_cluster", SimpleNamespace(nodes=nodes))
    lock = capacity.take_lock(compose_recipe(RECIPE, []), say)
    assert lock == "ours"
    waits = "waiting for GPUs that others hold: 0 of 1 are free"
    assert said == ["waiting for another run to take its GPUs", waits, waits]
    assert capacity.release(lock, ["blip3o-recorder"]) == "ours" and not killed
    loops = ["blip3o-recorder", "agent_loop_worker_0_1a2b3c4d"]
    assert capacity.release(lock, loops) is None and killed == ["ours"]
    assert capacity.release(None, loops) is None
