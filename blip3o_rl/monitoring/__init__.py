"""Image statistics and their drift during a run."""
