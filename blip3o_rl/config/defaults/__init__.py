"""Hydra configuration that every recipe stands on."""
