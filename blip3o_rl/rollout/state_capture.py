"""Hidden states out of the vLLM worker, without a second prefill.

The renderer is conditioned on the policy's post-norm states at the scale token and the image tokens. These are the rows
that `compute_logits` multiplies, and `StateCapture`, a vLLM worker extension, keeps them for the requests that ask.

It hooks into "model runner V1" (vLLM 0.24 and 0.28) at two places. After `_update_states` the persistent batch is the
batch of this step, reordering and preemption included: here each row gets its destination. The first `compute_logits`
after it is the sampler's, with one row per request in that order; other calls (warm-up, prompt log-probs) find no plan.
Rows are stored by absolute position, so chunked prefill, preemption and prefix caching need no treatment of their own.

A caller gives `sampling_params` to the request, calls `collective_rpc("take_states", args=([request_id],))` when it has
finished, and `unpack_states` on the reply. The caller's id travels in `SamplingParams.extra_args`, because the engine
appends a suffix to request ids; states travel as bytes, because vLLM's msgpack channel gives back arrays only when
insecure serialisation is allowed. Of several workers the first rank of the last pipeline stage keeps the states.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from blip3o_rl.errors import UserError
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.rollout.state_pool import NOT_KEPT, StateStore

IMAGE_TOKENS = "image_tokens"
"""Sampling parameter with which an agent loop asks the server for an image of so many tokens."""
STATES = "states"
"""Extra field of the server's answer: a reference to the packed states."""
EXTRA_ARG = "capture_states"
UNTAKEN_PER_SEQUENCE = 4

PackedStates = tuple[str, tuple[int, ...], bytes]


def image_request(count: int) -> dict[str, Any]:
    """Sampling parameters of an image of `count` tokens: one token more, which the caller drops, because the state of
    the last image token is computed only when a token follows it.
    """
    return {"max_tokens": count + 1, "ignore_eos": True, "detokenize": False}


def capture_request(request_id: str, n_states: int) -> dict[str, Any]:
    """`SamplingParams.extra_args` of a request whose `n_states` image states are to be kept under `request_id`."""
    return {EXTRA_ARG: [request_id, n_states]}


def sampling_params(
    layout: TokenLayout,
    scale: int,
    request_id: str | None = None,
    seed: int | None = None,
    logprobs: bool = True,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Any:
    """vLLM's `SamplingParams` for one image: temperature 1 over the action space, n + 1 tokens, no early end.

    Args:
        layout: the policy's token layout.
        scale: see `GenerationConfig`, as `top_k` and `top_p`, whose defaults are the whole action space.
        request_id: keep the hidden states under this id, unique among live requests; None keeps none.
        seed: of this request's own random stream.
        logprobs: return the log-probability of every sampled token.
    """
    from vllm import SamplingParams

    count = layout.tokens_per_image(scale)
    return SamplingParams(
        temperature=1.0,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        logprobs=0 if logprobs else None,
        extra_args=None if request_id is None else capture_request(request_id, count + 1),
        **image_request(count),
    )


def unpack_states(replies: list[list[PackedStates] | None]) -> list[np.ndarray]:
    """The reply of `collective_rpc("take_states")`: an array [n_states, hidden] per request, on the received memory.

    The arrays are read-only. bfloat16, which numpy lacks, comes as its bits in uint16; `states_tensor` knows.
    """
    packed = [reply for reply in replies if reply is not None]
    if len(packed) != 1:
        raise UserError(
            f"take_states: {len(packed)} workers answered with states, not 1; use one engine per replica, and call "
            "start_capture first"
        )
    return [
        np.frombuffer(data, dtype=np.uint16 if dtype == "bfloat16" else dtype).reshape(shape)
        for dtype, shape, data in packed[0]
    ]


def states_tensor(states: np.ndarray) -> torch.Tensor:
    """A CPU tensor of its own from `unpack_states`' array, in the policy's dtype."""
    tensor = torch.from_numpy(states.copy())
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def pack_states(states: torch.Tensor) -> PackedStates:
    """A host tensor as what every vLLM channel carries: dtype name, shape, bytes."""
    bits = states.view(torch.uint16) if states.dtype == torch.bfloat16 else states
    return str(states.dtype).removeprefix("torch."), tuple(states.shape), bits.numpy().tobytes()


class StateCapture:
    """Worker extension (`worker_extension_cls`), alone or as a base of another; called through `collective_rpc`."""

    model_runner: Any
    _captured: RunnerHook | None = None

    def start_capture(self, max_untaken: int | None = None) -> bool:
        """Begins to keep the states of new requests that ask for it, if this worker does; may be called repeatedly.

        Of the finished requests that wait to be taken, only the newest `max_untaken` are kept (4 x max_num_seqs).
        """
        if self._captured is None and _keeps_states():
            self._captured = RunnerHook(self.model_runner)
        if self._captured is not None and max_untaken is not None:
            self._captured.store.max_untaken = max_untaken
        return self._captured is not None

    def take_states(self, request_ids: list[str]) -> list[PackedStates] | None:
        """Hands over the states of finished requests and frees their memory; None on the ranks that keep none."""
        return None if self._captured is None else [pack_states(self._captured.store.take(i)) for i in request_ids]

    def drop_states(self, request_id: str) -> bool:
        return self._captured is not None and self._captured.store.drop(request_id)

    def free_states(self) -> None:
        """Forgets all requests and frees the memory of their states."""
        if self._captured is not None:
            self._captured.store.clear()


class RunnerHook:
    """Ties a `StateStore` to one model runner; see the module's docstring for the two places."""

    def __init__(self, runner: Any):
        _check_runner(runner)
        self.runner = runner
        self.store = StateStore(
            hidden=runner.model_config.get_hidden_size(),
            dtype=runner.model_config.dtype,
            device=runner.device,
            max_untaken=UNTAKEN_PER_SEQUENCE * runner.scheduler_config.max_num_seqs,
        )
        self._plan: np.ndarray | None = None
        self._update_states = runner._update_states
        self._compute_logits = runner.model.compute_logits
        runner._update_states = self._after_update_states
        runner.model.compute_logits = self._before_compute_logits

    def _after_update_states(self, scheduler_output: Any) -> Any:
        result = self._update_states(scheduler_output)
        self.store.finish(scheduler_output.finished_req_ids)
        for request in scheduler_output.scheduled_new_reqs:
            asked = (getattr(request.sampling_params, "extra_args", None) or {}).get(EXTRA_ARG)
            if asked is not None and request.req_id not in self.store.running:
                self.store.begin(request.req_id, str(asked[0]), int(asked[1]))
        self._plan = self._destinations(scheduler_output) if self.store.running else None
        return result

    def _before_compute_logits(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        plan, self._plan = self._plan, None
        if plan is not None:
            if len(plan) != len(states):
                raise RuntimeError(f"state capture: {len(states)} rows for {len(plan)} requests in the batch")
            self.store.pool.write(states, plan)
        return self._compute_logits(states, *args, **kwargs)

    def _destinations(self, scheduler_output: Any) -> np.ndarray:
        """The row that each request of this step's batch writes to, int64 [requests]; 0 is the sink."""
        batch = self.runner.input_batch
        count, tokens = batch.num_reqs, scheduler_output.num_scheduled_tokens
        scheduled = np.fromiter((tokens[req_id] for req_id in batch.req_ids), np.int64, count)
        kept = [self.store.running.get(req_id, NOT_KEPT) for req_id in batch.req_ids]
        first = np.fromiter((request.first for request in kept), np.int64, count)
        rows = np.fromiter((request.count for request in kept), np.int64, count)
        # The states of image tokens begin at the prompt's last position, the scale token's.
        index = (batch.num_computed_tokens_cpu[:count] + scheduled - 1) - (batch.num_prompt_tokens[:count] - 1)
        return np.where((index >= 0) & (index < rows), first + index, 0)


def _keeps_states() -> bool:
    from vllm.distributed.parallel_state import get_pp_group, get_tensor_model_parallel_rank

    return get_pp_group().is_last_rank and get_tensor_model_parallel_rank() == 0


def _check_runner(runner: Any) -> None:
    """Raises `UserError` unless `runner` is a V1 model runner without speculative decoding."""
    batch = getattr(runner, "input_batch", None)
    needed = ("req_ids", "num_reqs", "num_computed_tokens_cpu", "num_prompt_tokens")
    if not hasattr(runner, "_update_states") or not all(hasattr(batch, name) for name in needed):
        raise UserError(
            f"vLLM model runner {type(runner).__module__}.{type(runner).__name__}: hidden states cannot be captured "
            "from it; set VLLM_USE_V2_MODEL_RUNNER=0 or use a supported vLLM version (0.24, 0.28)"
        )
    if runner.speculative_config is not None:
        raise UserError("vLLM speculative_config: speculative decoding hides the states to be captured; remove it")
