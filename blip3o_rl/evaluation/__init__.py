"""Evaluation: a model and a prompt list in, numbers that can be compared out."""
