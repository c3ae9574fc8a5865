"""The embedded default: synthetic scenes, their prompts, and the script that builds the small model."""
