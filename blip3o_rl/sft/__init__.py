"""Supervised fine-tuning of policy and renderer on image-text pairs."""
