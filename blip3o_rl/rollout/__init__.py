"""Sampling, rendering and scoring of rollouts: the vLLM policy, its state capture, the render service, the agent loop."""
