"""What runs inside every vLLM worker of a rollout replica: verl's weight sync plus the capture of hidden states.

A module of its own because vLLM imports it by name in its worker processes, which need nothing else of this package.
"""

from __future__ import annotations

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from blip3o_rl.rollout.state_capture import StateCapture


class Blip3oWorkerExtension(StateCapture, vLLMColocateWorkerExtension):
    """verl's extension (weight transfer, sleep) with `take_states` and friends."""
