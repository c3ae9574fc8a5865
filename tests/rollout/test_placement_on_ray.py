"""Trainers and renderers on Ray's logical GPUs, from what each process sees: 8 or 4 on one node, 4 on each of two.

A process per GPU has to start in each test, half a minute on two cores. `make test` has what differs most; the rest is
marked long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from verl.single_controller.ray import base

from blip3o_rl.config.train import compose_recipe, read_settings
from blip3o_rl.rollout import render_service
from blip3o_rl.training import capacity, given_cluster
from blip3o_rl.training.compat import verl as verl_patches

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Place = tuple[str, str]
"""A node and a GPU on it."""


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """A cluster with these logical GPUs per node, which this process is connected to."""
    gpus = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        started = Cluster()
        for count in gpus:
            started.add_node(num_cpus=count + 1, num_gpus=count, object_store_memory=10**8, include_dashboard=False)
        ray.init(address=started.address, namespace="placement", log_to_driver=False)
        try:
            yield gpus
        finally:
            serve.shutdown()
            ray.shutdown()
            started.shutdown()


def trainers(nodes: int, per_node: int) -> list[Place]:
    """Where verl's placement groups put the trainer processes."""
    verl_patches.one_cpu_per_worker()
    manager = base.ResourcePoolManager({"pool": [per_node] * nodes}, {})
    manager.create_resource_pool()
    groups = manager.resource_pool_dict["pool"].get_placement_groups()

    @ray.remote(num_gpus=1, num_cpus=0)
    def place() -> Place:
        import time

        time.sleep(2)  # so that every bundle is asked once
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids()["GPU"][0]

    strategies = [PlacementGroupSchedulingStrategy(group, n) for group in groups for n in range(per_node)]
    return ray.get([place.options(scheduling_strategy=strategy).remote() for strategy in strategies])


def renderers(folder: Path, config: Any, monkeypatch: pytest.MonkeyPatch) -> list[Place]:
    """Where the run's renderers find themselves, each with the GPU that its "cuda" is."""

    class Probe:
        def __init__(self, model: str, settings: Any, gpus_per_node: int, editing: bool):
            import os

            from blip3o_rl.rollout.placement import renderer_device

            context = ray.get_runtime_context()
            device = renderer_device(settings, gpus_per_node)
            own = context.get_accelerator_ids()["GPU"]
            assert bool(own) == (device == "cuda")
            assert not own or os.environ["CUDA_VISIBLE_DEVICES"] == own[0]
            found = [context.get_node_id(), own[0] if own else device.removeprefix("cuda:")]
            (Path(model) / f"{context.get_actor_id()}.json").write_text(json.dumps(found))

        async def __call__(self) -> None: ...

    folder.mkdir()
    monkeypatch.setattr(render_service, "RenderService", serve.deployment(Probe))
    settings, trainer = read_settings(config).render, config.trainer
    render_service.start("runs/a", str(folder), settings, trainer.nnodes, trainer.n_gpus_per_node)
    return [tuple(json.loads(file.read_text())) for file in folder.iterdir()]


@pytest.mark.parametrize(
    ("nodes", "per_node"), [([8], 8), ([4], 2), pytest.param([4, 4], 4, marks=pytest.mark.long)], indirect=["nodes"]
)
def test_each_gpu_of_the_run_has_a_trainer_and_a_renderer(
    nodes: list[int], per_node: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two of a node's four GPUs, both kinds have to choose the same."""
    words = [f"trainer.nnodes={len(nodes)}", f"trainer.n_gpus_per_node={per_node}"]
    config = compose_recipe("text_3b", words, "gpu")
    assert not capacity.is_taken(config, given_cluster.nodes())
    rendering = renderers(tmp_path / "places", config, monkeypatch)
    training = trainers(len(nodes), per_node)
    assert len({node for node, _ in training}) == len(nodes)
    assert len(set(training)) == per_node * len(nodes)
    assert sorted(rendering) == sorted(training)


@pytest.mark.parametrize(
    ("nodes", "per_node"), [([4, 4], 2), pytest.param([8], 4, marks=pytest.mark.long)], indirect=["nodes"]
)
def test_renderers_with_gpus_of_their_own_have_no_trainers(
    nodes: list[int], per_node: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = per_node * len(nodes)
    own = ["render.gpus_per_replica=1", f"render.replicas={count}"]
    words = [f"trainer.nnodes={len(nodes)}", f"trainer.n_gpus_per_node={per_node}", *own]
    config = compose_recipe("text_3b", words, "gpu")
    assert not capacity.is_taken(config, given_cluster.nodes())
    rendering = renderers(tmp_path / "places", config, monkeypatch)
    training = trainers(len(nodes), per_node)
    assert len({node for node, _ in training}) == len(nodes)
    assert len(set(training)) == len(set(rendering)) == count
    assert not set(training) & set(rendering)
