"""Synthetic data sets: scenes, words, text prompts."""
