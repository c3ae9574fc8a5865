"""`blip3o-rl sft`: supervised fine-tuning."""

from __future__ import annotations

from blip3o_rl.cli import runs


def sft(arguments: runs.Arguments = None, resume: runs.Resume = None) -> None:
    """Fine-tunes a model on image-text pairs and edits, on the GPUs of this machine or as a worker of torchrun."""
    if resume is None:
        recipe, overrides = runs.recipe_and_overrides(arguments, "sft", "recipes/sft data.files=[pairs.tar]")
    with runs.interruptible():
        from blip3o_rl.sft import launch

        model = (
            launch.launch(recipe, overrides)
            if resume is None
            else launch.resume(resume, runs.with_files(arguments or []))
        )
    print(f"model folder: {model}")
