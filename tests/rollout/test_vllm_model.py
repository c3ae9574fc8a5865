"""The policy in vLLM: the distribution it samples from, weight sync, and whether vLLM still needs patching."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o_rl.model.policy import Blip3oNextForCausalLM, image_logits
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.rollout.state_capture import sampling_params, states_tensor, unpack_states


@settings(max_examples=80)
@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 5), st.integers(1, 4), st.integers(0, 3))
def test_shards_put_together_are_the_masked_full_matrix(
    text: int, images: int, behind: int, ranks: int, padding: int
) -> None:
    from blip3o_rl.rollout.vllm_model import shard_logits

    layout = TokenLayout(0, 1, 2, 3, text, images)
    vocabulary = text + images + behind
    width = -(-vocabulary // ranks) + padding
    weight = torch.zeros(ranks * width, 4)
    weight[:vocabulary] = torch.randn(vocabulary, 4)
    hidden = torch.randn(3, 4)
    shards = [
        shard_logits(
            hidden,
            weight[rank * width : (rank + 1) * width],
            min(rank * width, vocabulary),
            min((rank + 1) * width, vocabulary),
            layout,
        )
        for rank in range(ranks)
    ]
    got = torch.cat(shards, dim=-1)[:, :vocabulary]
    expected = torch.full((3, vocabulary), float("-inf"))
    expected[:, text : text + images] = (hidden @ weight.T)[:, text : text + images]
    torch.testing.assert_close(got, expected)


def test_logits_of_a_bfloat16_policy_stay_in_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU cannot multiply with another dtype of the result; what a GPU gives is written out in place of it."""
    from blip3o_rl.rollout.vllm_model import shard_logits

    def mm(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        return a.to(out_dtype) @ b.to(out_dtype)

    monkeypatch.setattr("blip3o_rl.rollout.vllm_model.torch.mm", mm)
    layout = TokenLayout(0, 1, 2, 3, 5, 4)
    hidden, weight = (torch.randn(rows, 8).bfloat16() for rows in (3, 12))
    rounded, whole = (shard_logits(hidden, weight, 0, 12, layout, dtype) for dtype in (None, torch.float32))
    assert (rounded.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
    expected = hidden.float() @ weight[5:9].float().T
    torch.testing.assert_close(whole[:, 5:9], expected)
    assert not torch.equal(rounded[:, 5:9].float(), expected)
    assert bool((whole[:, [0, 4, 9, 11]] == float("-inf")).all())


CHILD = """
import multiprocessing, os, sys, time
from pathlib import Path
from tqdm import tqdm
from blip3o_rl.rollout.vllm_patches import end_with_parent, lock_bars_with_threads

def child(pipe, patched):
    if patched:
        end_with_parent()
        lock_bars_with_threads()
    tqdm(total=1, file=open(os.devnull, "w")).close()
    pipe.send((os.getpid(), "/dev/shm/sem." in Path("/proc/self/maps").read_text()))
    time.sleep(600)

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=child, args=(there, sys.argv[1] == "True")).start()
    print(*here.recv(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("patched", [False, True])
def test_an_engine_outlives_a_killed_parent_and_has_a_semaphore_unless_patched(patched: bool, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(CHILD)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), str(patched)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    number, semaphore = parent.stdout.readline().split()
    assert (semaphore == b"True") == (not patched)
    engine = psutil.Process(int(number))
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs([engine], timeout=20 if patched else 2)
    for process in alive:
        process.kill()
    assert bool(gone) == patched


def assert_engine_has_weights(engine: Any, policy: Any, request_id: str) -> None:
    """One short image: every sampled token's log-prob is the one of `policy`'s image softmax."""
    layout = policy.layout
    prompt = [5, 6, 7, layout.image_start_tag_id, layout.scale_token_id(2)]
    asked = sampling_params(layout, 2, request_id)
    output = engine.generate([{"prompt_token_ids": prompt}], asked, use_tqdm=False)[0].outputs[0]
    with torch.inference_mode():
        ids = torch.tensor([prompt + list(output.token_ids[:-1])])
        states = policy.model(ids).last_hidden_state[0, len(prompt) - 1 :]
        chosen = layout.to_indices(torch.tensor(output.token_ids))[:, None]
        expected = image_logits(policy, states).log_softmax(-1).gather(-1, chosen)[:, 0]
    got = torch.tensor([row[token].logprob for row, token in zip(output.logprobs, output.token_ids, strict=True)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    taken = states_tensor(unpack_states(engine.collective_rpc("take_states", args=([request_id],)))[0])
    torch.testing.assert_close(taken, states, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_repeated_weight_syncs_and_verls_own_patch(tiny_engine: Any, tiny_policy_folder: Path, tmp_path: Path) -> None:
    """verl wraps `compute_logits` too (`monkey_patch_model`) and loads weights again and again."""
    original = Blip3oNextForCausalLM.from_pretrained(tiny_policy_folder).eval()
    changed = Blip3oNextForCausalLM.from_pretrained(tiny_policy_folder).eval()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    changed.save_pretrained(tmp_path / "changed")

    assert_engine_has_weights(tiny_engine, original, "before")
    tiny_engine.collective_rpc("monkey_patch_model", args=(original.config.vocab_size,))
    for step, (policy, folder) in enumerate([(changed, tmp_path / "changed"), (original, tiny_policy_folder)]):
        tiny_engine.reset_prefix_cache()
        tiny_engine.collective_rpc("sync_weights", args=(str(folder / "model.safetensors"),))
        assert_engine_has_weights(tiny_engine, policy, f"sync{step}")


UNTIED = """
import sys, torch
from vllm import LLM
from blip3o_rl.model.policy import Blip3oNextForCausalLM, image_logits
folder = sys.argv[1]
llm = LLM(folder, dtype="float32", max_model_len=64, max_num_seqs=2, enforce_eager=True,
          distributed_executor_backend="uni")
model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
policy = Blip3oNextForCausalLM.from_pretrained(folder).eval()
assert not torch.equal(policy.lm_head.weight, policy.model.embed_tokens.weight)
states = torch.randn(4, policy.config.hidden_size)
with torch.inference_mode():
    got, expected, ids = model.compute_logits(states), image_logits(policy, states), list(policy.layout.image_ids)
    torch.testing.assert_close(got[:, ids], expected)
    got[:, ids] = float("-inf")
    assert got.shape == (4, policy.config.vocab_size) and bool((got == float("-inf")).all())
    model.full_vocabulary = True
    torch.testing.assert_close(model.compute_logits(states), policy.lm_head(states))
print("as expected")
"""


@pytest.mark.slow
def test_untied_embeddings_and_the_full_vocabulary(tiny_policy_folder: Path, tmp_path: Path) -> None:
    policy = Blip3oNextForCausalLM.from_pretrained(tiny_policy_folder, tie_word_embeddings=False)
    torch.nn.init.normal_(policy.lm_head.weight, std=0.1)
    policy.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_policy_folder / name).read_bytes())
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", UNTIED, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert "as expected" in done.stdout, done.stderr[-3000:]


def test_vllm_still_drops_the_weights_of_linear_layers_on_a_cpu() -> None:
    """When this fails, vLLM keeps them by itself: delete `vllm_patches.keep_cpu_weights`."""
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    from blip3o_rl.rollout import vllm_patches

    if not current_platform.is_cpu():
        pytest.skip("the patch is for vLLM's CPU build")
    vllm_patches.register()
    vllm_patches.register()
    patched = utils.dispatch_cpu_unquantized_gemm
    assert not hasattr(patched.__wrapped__, "__wrapped__"), "registered twice, patched twice"

    for dispatch, kept in ((patched.__wrapped__, False), (patched, True)):
        layer = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)
        dispatch(layer, remove_weight=True)
        assert (layer.weight.numel() == 64 * 64) is kept


def test_vllm_still_gives_a_worker_on_a_cpu_a_process_of_its_own(tiny_policy_folder: Path) -> None:
    """When this fails, vLLM runs a single worker in the engine: delete `vllm_patches.executor`."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from blip3o_rl.rollout import vllm_patches

    if not current_platform.is_cpu():
        pytest.skip("on a GPU, vLLM runs a single worker in the engine")
    vllm_patches.register()
    for asked, got in (
        ({"distributed_executor_backend": "uni"}, MultiprocExecutor),
        (vllm_patches.executor(workers=1), UniProcExecutor),
    ):
        config = EngineArgs(str(tiny_policy_folder), skip_tokenizer_init=True, **asked).create_engine_config()
        assert Executor.get_class(config) is got


@pytest.mark.parametrize(("workers", "binding"), [(2, None), (1, "0-1"), (1, "auto")])
def test_workers_that_need_a_process_of_their_own_get_it(
    workers: int, binding: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blip3o_rl.rollout import vllm_patches

    monkeypatch.setattr(vllm_patches.machine, "vllm_device", lambda: "cpu")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    assert vllm_patches.executor(workers=1)
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
    assert vllm_patches.executor(workers=1)
    if binding is not None:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", binding)
    assert vllm_patches.executor(workers) == {}


def test_a_worker_on_a_gpu_is_left_to_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    from blip3o_rl.rollout import vllm_patches

    monkeypatch.setattr(vllm_patches.machine, "vllm_device", lambda: "cuda")
    assert vllm_patches.executor(workers=1) == {}


def test_model_runner_v2_still_lacks_what_a_capture_needs() -> None:
    """When this fails, capture through `get_model_state_cls` may replace the patches of V1: see docs/pitfalls.md."""
    from vllm.config import VllmConfig
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    runner: Any = SimpleNamespace(pooling_runner=None, removed=[])
    runner._remove_request = runner.removed.append
    step: Any = SimpleNamespace(finished_req_ids={"ended"}, preempted_req_ids={"preempted"})
    GPUModelRunner.finish_requests(runner, step)
    assert sorted(runner.removed) == ["ended", "preempted"], "the model state can tell the two apart"

    if not current_platform.is_cpu():
        pytest.skip("on a GPU, V2 has its Triton")
    with pytest.raises(ValueError, match="Model Runner V2 requires Triton"):
        VllmConfig._validate_v2_model_runner(SimpleNamespace())  # type: ignore[arg-type]


def test_registration_is_by_name() -> None:
    """vLLM must be able to load the class lazily, in its own processes."""
    from vllm import ModelRegistry

    from blip3o_rl.rollout import vllm_patches

    vllm_patches.register()
    registered = ModelRegistry.models[vllm_patches.ARCHITECTURE]
    assert (registered.module_name, registered.class_name) == ("blip3o_rl.rollout.vllm_model", "Blip3oNextForCausalLM")
