"""Upstream checkpoints in, trained weights out."""
