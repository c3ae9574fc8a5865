"""Learned preference and quality rewards, each a small port on transformers, and judges behind an HTTP endpoint."""
