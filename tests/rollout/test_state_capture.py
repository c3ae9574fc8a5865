"""Hidden states kept by the vLLM worker against a plain transformers forward, under all that reorders a batch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engines
import numpy as np
import pytest
import torch
import vllm
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.workers.rollout.replica import RolloutMode

from blip3o_rl.errors import UserError
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM, image_logits
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.rollout import state_capture
from blip3o_rl.rollout.server import Blip3oHttpServer
from blip3o_rl.rollout.state_capture import (
    RunnerHook,
    StateCapture,
    pack_states,
    sampling_params,
    states_tensor,
    unpack_states,
)
from blip3o_rl.rollout.state_pool import FIRST_ROWS, Captured, StateStore


@pytest.fixture(scope="module")
def policy(tiny_policy_folder: Path) -> Any:
    return Blip3oNextForCausalLM.from_pretrained(tiny_policy_folder).eval()


@pytest.fixture(scope="module")
def layout(tiny_policy_folder: Path) -> TokenLayout:
    return TokenLayout.from_config(Blip3oNextConfig.from_pretrained(tiny_policy_folder))


def prompts(layout: TokenLayout, scales: list[int]) -> list[dict[str, list[int]]]:
    """Text of 1, 8, 15, ... random bytes, then the tag and the scale token: shorter and longer than a prefill chunk."""
    rng = np.random.default_rng(0)
    tails = [[layout.image_start_tag_id, layout.scale_token_id(scale)] for scale in scales]
    return [{"prompt_token_ids": rng.integers(0, 200, 1 + 7 * i).tolist() + tail} for i, tail in enumerate(tails)]


def take(engine: Any, request_id: str) -> torch.Tensor:
    return states_tensor(unpack_states(engine.collective_rpc("take_states", args=([request_id],)))[0])


def preemptions(engine: Any) -> int:
    return sum(int(m.value) for m in engine.get_metrics() if m.name == "vllm:num_preemptions")


@torch.inference_mode()
def assert_states_are_right(policy: Any, output: Any, states: torch.Tensor) -> None:
    prompt, sampled = list(output.prompt_token_ids), list(output.outputs[0].token_ids)
    expected = policy.model(torch.tensor([prompt + sampled[:-1]])).last_hidden_state[0, len(prompt) - 1 :]
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_states_and_log_probs_equal_a_plain_forward(tiny_engine: Any, policy: Any, layout: TokenLayout) -> None:
    scales = [0, 0, 0, 1, 0, 2, 0, 0]
    asked = [sampling_params(layout, scale, f"r{i}") for i, scale in enumerate(scales)]
    before = preemptions(tiny_engine)
    outputs = tiny_engine.generate(prompts(layout, scales), asked, use_tqdm=False)
    assert preemptions(tiny_engine) > before, "the KV cache is too large for this test to mean anything"
    assert tiny_engine.collective_rpc("captured_requests") == [[f"r{i}" for i in (0, 1, 2, 3, 4, 5, 6, 7)]]

    for i, (output, scale) in enumerate(zip(outputs, scales, strict=True)):
        sampled = output.outputs[0].token_ids
        assert len(sampled) == layout.tokens_per_image(scale) + 1
        assert set(sampled) <= set(layout.image_ids)
        states = take(tiny_engine, f"r{i}")
        assert states.dtype == torch.float32
        assert_states_are_right(policy, output, states)

        log_softmax = image_logits(policy, states).log_softmax(-1)
        expected = log_softmax.gather(-1, layout.to_indices(torch.tensor(sampled))[:, None])[:, 0]
        got = torch.tensor([row[token].logprob for row, token in zip(output.outputs[0].logprobs, sampled, strict=True)])
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert tiny_engine.collective_rpc("captured_requests") == [[]]


@pytest.mark.slow
@pytest.mark.parametrize(("async_scheduling", "ranks"), [(True, 1), (False, 2)])
def test_states_are_right_in_the_engines_of_gpus(
    async_scheduling: bool, ranks: int, tiny_policy_folder: Path, tmp_path: Path, policy: Any, layout: TokenLayout
) -> None:
    """A step that is scheduled while the one before runs, which vLLM's CPU platform turns off; and two ranks of one
    model, of which the first keeps the states. Before and after a weight sync."""
    if async_scheduling and vllm.__version__.startswith("0.24."):
        pytest.skip("vLLM 0.24 for CPUs lacks the streams of steps that are scheduled ahead")
    folder = engines.write_tiny_policy(tmp_path, seed=1)
    other = Blip3oNextForCausalLM.from_pretrained(folder).eval()
    scales = [0, 1, 0, 2, 0]
    with engines.tiny_engine(tiny_policy_folder, async_scheduling, ranks) as engine:
        assert engine.collective_rpc("schedules_asynchronously") == [async_scheduling] * ranks
        for name, weights in (("before", policy), ("after", other)):
            asked = [sampling_params(layout, scale, f"{name}{i}") for i, scale in enumerate(scales)]
            outputs = engine.generate(prompts(layout, scales), asked, use_tqdm=False)
            assert engine.collective_rpc("captured_requests")[1:] == [[]] * (ranks - 1)
            for i, output in enumerate(outputs):
                assert_states_are_right(weights, output, take(engine, f"{name}{i}"))
            engine.reset_prefix_cache()
            engine.collective_rpc("sync_weights", args=(str(folder / "model.safetensors"),))
        assert preemptions(engine) > 0


@pytest.mark.slow
def test_only_requests_that_ask_are_kept(tiny_engine: Any, policy: Any, layout: TokenLayout) -> None:
    asked = [sampling_params(layout, 2, "kept"), sampling_params(layout, 2), sampling_params(layout, 2, "dropped")]
    outputs = tiny_engine.generate(prompts(layout, [2, 2, 2]), asked, use_tqdm=False)
    assert tiny_engine.collective_rpc("captured_requests") == [["kept", "dropped"]]
    assert tiny_engine.collective_rpc("drop_states", args=("dropped",)) == [True]
    assert tiny_engine.collective_rpc("drop_states", args=("dropped",)) == [False]
    assert_states_are_right(policy, outputs[0], take(tiny_engine, "kept"))
    with pytest.raises(Exception, match="request kept: no hidden states are kept"):
        take(tiny_engine, "kept")


@pytest.mark.slow
def test_aborted_and_unfinished_requests(tiny_engine: Any, policy: Any, layout: TokenLayout) -> None:
    core = tiny_engine.llm_engine
    for i, prompt in enumerate(prompts(layout, [1, 1, 1])):
        core.add_request(f"external{i}", prompt, sampling_params(layout, 1, f"a{i}"))
    for _ in range(4):
        core.step()
    with pytest.raises(Exception, match=r"request a0: \d+ of 10 hidden states are missing"):
        take(tiny_engine, "a0")
    core.abort_request(["external1"])
    finished = {}
    while core.has_unfinished_requests():
        finished.update({output.request_id: output for output in core.step() if output.finished})
    tiny_engine.generate(prompts(layout, [2]), sampling_params(layout, 2), use_tqdm=False)  # a step after the abort
    assert tiny_engine.collective_rpc("captured_requests") == [["a0", "a2"]]
    for i in (0, 2):
        assert_states_are_right(policy, finished[f"external{i}"], take(tiny_engine, f"a{i}"))
    assert tiny_engine.collective_rpc("captured_requests") == [[]]


def scheduler_output(new: list[Any], finished: set[str], tokens: dict[str, int]) -> SimpleNamespace:
    return SimpleNamespace(
        scheduled_new_reqs=new,
        finished_req_ids=finished,
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
    )


class FakeRunner:
    """The parts of a model runner that the hook touches, over a scripted batch."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(get_hidden_size=lambda: 2, dtype=torch.bfloat16)
        self.scheduler_config = SimpleNamespace(max_num_seqs=2)
        self.speculative_config = None
        self.device = torch.device("cpu")
        self.model = SimpleNamespace(compute_logits=lambda states: states.sum(-1))
        self.input_batch = SimpleNamespace(req_ids=[], num_reqs=0, num_computed_tokens_cpu=None, num_prompt_tokens=None)

    def _update_states(self, output: Any) -> None:
        return None

    def step(self, output: Any, batch: dict[str, tuple[int, int]]) -> None:
        """`batch`: request -> (prompt length, computed tokens). The row of position p is filled with p."""
        self.input_batch.req_ids = list(batch)
        self.input_batch.num_reqs = len(batch)
        self.input_batch.num_prompt_tokens = np.array([prompt for prompt, _ in batch.values()], dtype=np.int32)
        self.input_batch.num_computed_tokens_cpu = np.array([done for _, done in batch.values()], dtype=np.int32)
        self._update_states(output)
        last = [done + output.num_scheduled_tokens[i] - 1 for i, (_, done) in batch.items()]
        self.model.compute_logits(torch.tensor(last, dtype=torch.bfloat16)[:, None].expand(-1, 2))


def new_request(req_id: str, key: str, n_states: int) -> SimpleNamespace:
    params = SimpleNamespace(extra_args=state_capture.capture_request(key, n_states))
    return SimpleNamespace(req_id=req_id, sampling_params=params)


def test_rows_of_other_callers_of_compute_logits_are_ignored() -> None:
    runner = FakeRunner()
    hook = RunnerHook(runner)
    runner.step(scheduler_output([new_request("a-1", "a", 2)], set(), {"a-1": 3}), {"a-1": (3, 0)})
    runner.model.compute_logits(torch.full((1, 2), 99.0))  # prompt log-probs, warm-up
    runner.step(scheduler_output([], set(), {"a-1": 1}), {"a-1": (3, 3)})
    runner.step(scheduler_output([], set(), {"a-1": 1}), {"a-1": (3, 4)})  # one token more than asked for
    assert hook.store.take("a").tolist() == [[2, 2], [3, 3]]


def test_a_resubmitted_id_does_not_inherit_rows() -> None:
    runner = FakeRunner()
    hook = RunnerHook(runner)
    runner.step(scheduler_output([new_request("a", "a", 3)], set(), {"a": 3}), {"a": (3, 0)})
    runner.step(scheduler_output([new_request("a", "a", 3)], {"a"}, {"a": 2}), {"a": (2, 0)})
    with pytest.raises(UserError, match="2 of 3 hidden states are missing"):
        hook.store.take("a")


def test_two_live_requests_of_one_id_are_refused() -> None:
    runner = FakeRunner()
    hook = RunnerHook(runner)
    twins = [new_request("1", "same", 1), new_request("2", "same", 1)]
    runner.step(scheduler_output(twins, set(), {"1": 2, "2": 2}), {"1": (2, 0), "2": (2, 0)})
    with pytest.raises(UserError, match="two live requests"):
        hook.store.take("same")


def test_a_row_count_that_does_not_fit_the_batch_is_an_error() -> None:
    runner = FakeRunner()
    RunnerHook(runner)
    runner._update_states(scheduler_output([], set(), {}))
    runner.step(scheduler_output([new_request("a", "a", 2)], set(), {"a": 1}), {"a": (1, 0)})
    runner.input_batch.num_computed_tokens_cpu += 1
    runner._update_states(scheduler_output([], set(), {"a": 1}))
    with pytest.raises(RuntimeError, match="2 rows for 1 requests"):
        runner.model.compute_logits(torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_batch": None}, "VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"speculative_config": SimpleNamespace(method="mtp")}, "speculative"),
    ],
)
def test_unfit_runners_are_refused(change: dict[str, Any], message: str) -> None:
    runner = FakeRunner()
    vars(runner).update(change)
    with pytest.raises(UserError, match=message):
        RunnerHook(runner)


@settings(max_examples=60)
@given(st.data())
def test_any_schedule_gives_the_same_states(data: st.DataObject) -> None:
    """Random chunking, pausing, preemption to any point and batch order: row i of a request is always its position."""
    runner = FakeRunner()
    hook = RunnerHook(runner)
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=4))
    done = {f"q{i}": 0 for i in range(len(sizes))}
    sampled = dict.fromkeys(done, 0)
    size = dict(zip(done, sizes, strict=True))
    started: set[str] = set()
    finished: set[str] = set()
    ended: set[str] = set()
    while done:
        batch = data.draw(st.lists(st.sampled_from(sorted(done)), min_size=1, unique=True))
        for req_id in batch:
            if data.draw(st.booleans()):
                done[req_id] = data.draw(st.integers(0, done[req_id]))  # preempted; part of its prefix is still cached
        known = {i: size[i][0] + sampled[i] for i in batch}
        done.update({i: min(done[i], known[i] - 1) for i in batch})
        tokens = {i: data.draw(st.integers(1, known[i] - done[i])) for i in batch}
        new = [new_request(i, i, size[i][1]) for i in batch if i not in started]
        started.update(batch)
        runner.step(scheduler_output(new, ended, tokens), {i: (size[i][0], done[i]) for i in batch})
        ended = set()
        for i in batch:
            done[i] += tokens[i]
            sampled[i] += done[i] == known[i]
            if sampled[i] == size[i][1]:
                del done[i]
                ended.add(i)
        finished |= ended
    hook.store.finish(ended)
    for i in finished:
        prompt, n_states = size[i]
        assert hook.store.take(i)[:, 0].tolist() == list(range(prompt - 1, prompt - 1 + n_states))
    assert not hook.store.by_key and len(hook.store.pool.rows) == 1


def make_store(max_untaken: int = 3) -> StateStore:
    return StateStore(hidden=2, dtype=torch.float32, device=torch.device("cpu"), max_untaken=max_untaken)


def fill(store: StateStore, request: Captured, value: float) -> None:
    rows = request.first + np.arange(request.count)
    store.pool.write(torch.full((request.count, 2), float(value)), rows)


def test_untaken_states_are_bounded_and_aborted_ones_released() -> None:
    store = make_store()
    for i in range(3 * FIRST_ROWS):
        request = store.begin(f"e{i}", f"k{i}", 1)
        if i % 2:
            fill(store, request, i)
        store.finish([f"e{i}"])
    assert list(store.by_key) == [f"k{3 * FIRST_ROWS - back}" for back in (5, 3, 1)]
    assert len(store.pool.rows) == FIRST_ROWS


def test_the_pool_grows_without_losing_rows_and_blocks_of_two_sizes_do_not_overlap() -> None:
    store = make_store(max_untaken=10**6)
    requests = [store.begin(f"e{i}", f"k{i}", 2 + i % 2) for i in range(FIRST_ROWS)]
    for i, request in enumerate(requests):
        fill(store, request, i)
    assert len(store.pool.rows) > FIRST_ROWS
    late = store.begin("late", "late", 2)
    assert store.missing(late) == 2
    store.finish([f"e{i}" for i in range(FIRST_ROWS)])
    for i in range(FIRST_ROWS):
        states = store.take(f"k{i}")
        assert len(states) == 2 + i % 2 and bool((states == i).all())


def test_memory_is_freed_when_no_request_is_left() -> None:
    store = make_store()
    fill(store, store.begin("e", "k", 5), 1.0)
    twin = store.begin("e2", "k", 5)
    store.finish(["e"])
    assert store.drop("k") and len(store.pool.rows) == FIRST_ROWS, "the twin is running"
    assert store.running["e2"] is twin
    store.finish(["e2"])
    assert len(store.pool.rows) == 1


def test_a_sleeping_engine_keeps_no_states() -> None:
    """Those of an aborted request that nobody took would stay on the GPU during the update."""
    order: list[str] = []

    class Worker(StateCapture):
        model_runner = FakeRunner()

    worker = Worker()
    worker.free_states()
    worker._captured = RunnerHook(worker.model_runner)
    store = worker._captured.store
    store.begin("e", "k", 5)
    assert list(store.by_key) == ["k"] and len(store.pool.rows) > 1

    async def rpc(method: str) -> None:
        order.append(method)
        getattr(worker, method)()

    async def asleep() -> None:
        order.append("sleep")

    server = object.__new__(Blip3oHttpServer)
    server.node_rank, server.rollout_mode = 0, RolloutMode.HYBRID
    server.config = SimpleNamespace(free_cache_engine=True)
    server.engine = SimpleNamespace(collective_rpc=rpc)
    server._sleep_hybrid = asleep
    asyncio.run(server.sleep())
    assert order == ["free_states", "sleep"]
    assert not store.by_key and len(store.pool.rows) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_states_survive_the_wire_bit_by_bit(dtype: torch.dtype) -> None:
    states = torch.randn(5, 3).to(dtype)
    received = states_tensor(unpack_states([None, [pack_states(states)]])[0])
    assert received.dtype == dtype
    assert torch.equal(received, states)
    with pytest.raises(UserError, match="0 workers"):
        unpack_states([None])
