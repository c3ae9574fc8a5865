"""What a person sees of a run: progress, run folder, image grids, summary."""
