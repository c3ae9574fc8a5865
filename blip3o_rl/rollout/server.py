"""The rollout backend `blip3o`: verl's vLLM replica whose answers carry the hidden states of the image.

verl's `vLLMHttpServer` does the work. For a request that names `image_tokens`, the worker keeps the states that the
sampler computed (`state_capture`), and this module puts them into Ray's object store, so that only a reference travels.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from blip3o_rl import machine
from blip3o_rl.errors import UserError
from blip3o_rl.rollout import weight_sync
from blip3o_rl.rollout.server_actor import ServerActor
from blip3o_rl.rollout.state_capture import IMAGE_TOKENS, STATES, capture_request, image_request, unpack_states
from blip3o_rl.rollout.vllm_patches import executor, use_v1_runner


class Blip3oHttpServer(vLLMHttpServer):
    """verl's vLLM server with `image_tokens` requests; see the module's docstring."""

    async def launch_server(self, *args: Any, **kwargs: Any) -> None:
        """verl's `launch_server`, with the model runner that states can be captured from.

        vLLM's processes have opened their shared memory by then, so its names go at once: nothing stays in /dev/shm
        however the run ends. It is 0.4 GiB per engine whose workers have processes of their own.
        """
        if self.config.data_parallel_size > 1:  # a `collective_rpc` reaches one engine only
            raise UserError(
                f"actor_rollout_ref.rollout.data_parallel_size={self.config.data_parallel_size}: must be 1; "
                "verl makes more replicas where there are more GPUs"
            )
        use_v1_runner()
        os.environ["VERL_RAY_JOB_ID"] = weight_sync.job_name()
        await super().launch_server(*args, **kwargs)
        if self.node_rank == 0:
            await self.engine.collective_rpc("start_capture")
        for file in machine.shared_files():
            file.unlink(missing_ok=True)

    async def sleep(self) -> None:
        """verl's `sleep`. The update gets the memory of states that nobody took, too."""
        if self.node_rank == 0:
            await self.engine.collective_rpc("free_states")
        await super().sleep()

    def _preprocess_engine_kwargs(self, engine_kwargs: dict[str, Any]) -> None:
        """verl's, and where the worker runs; a `distributed_executor_backend` that is given stays."""
        super()._preprocess_engine_kwargs(engine_kwargs)
        for key, value in executor(self.config.tensor_model_parallel_size).items():
            engine_kwargs.setdefault(key, value)

    def _get_worker_extension_cls(self) -> str:
        return "blip3o_rl.rollout.worker_extension.Blip3oWorkerExtension"

    async def generate(  # type: ignore[override]
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **kwargs: Any
    ) -> TokenOutput:
        """verl's `generate`; when the sampling parameters say `image_tokens: n`, for an image.

        The output then has exactly n tokens and log-probs, and `extra_fields["states"]` is an object reference to
        [n + 1, hidden] as `state_capture.unpack_states` gives it.
        """
        params = dict(sampling_params)
        count = params.pop(IMAGE_TOKENS, None)
        if count is None:
            return await super().generate(prompt_ids, params, request_id, **kwargs)
        params |= image_request(count) | {"extra_args": capture_request(request_id, count + 1)}
        output = await super().generate(prompt_ids, params, request_id, **kwargs)
        if output.stop_reason == "aborted":
            await self.engine.collective_rpc("drop_states", args=(request_id,))
            return output
        packed = await self.engine.collective_rpc("take_states", args=([request_id],))
        output.token_ids = list(output.token_ids[:count])
        if output.log_probs is not None:
            output.log_probs = output.log_probs[:count]
        output.extra_fields[STATES] = ray.put(unpack_states(packed)[0])
        return output


class Blip3oReplica(vLLMReplica):
    """verl's vLLM replica with the server above, in an actor that its callers know without vLLM."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(ServerActor)

    def _get_server_name_prefix(self) -> str:
        """verl's weight sync looks the server up by the rollout's name."""
        return f"{self.config.name}_"
