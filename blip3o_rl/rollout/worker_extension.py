"""What runs inside every vLLM worker of a rollout replica; a module of its own because vLLM imports it by name."""

from __future__ import annotations

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from blip3o_rl.rollout.state_capture import StateCapture


class Blip3oWorkerExtension(StateCapture, vLLMColocateWorkerExtension):
    """verl's extension (weight transfer, sleep) and the capture of hidden states."""
