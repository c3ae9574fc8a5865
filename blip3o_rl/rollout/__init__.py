"""Rollouts, sampled, rendered and scored: the vLLM policy, its state capture, the render service, the agent loop."""
