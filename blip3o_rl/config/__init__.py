"""Settings: pydantic models and their composition with Hydra."""
