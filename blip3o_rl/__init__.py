"""Reinforcement learning for BLIP3o-NEXT image generation, on verl, vLLM and Ray."""

__version__ = "0.1.0"
