"""What a person sees of a run: run folder, progress, image grids, summary, page. Files only, no model."""
