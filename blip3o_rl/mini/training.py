"""One phase of the build, on the trainer of supervised fine-tuning: resumable, on the CPU, in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blip3o_rl.report.progress import progress
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.sft.trainer import Batches, LossTrainer, arguments


def train_phase(
    folder: Path,
    model: Any,
    make: Callable[[int], dict[str, Any]],
    look: Callable[[], None],
    *,
    steps: int,
    warmup: int,
    save_every: int = 200,
) -> None:
    """Trains in place, from the newest checkpoint of the run folder `folder` if there is one.

    Args:
        model, make: see `sft.trainer`; `make` gives the batch of a step.
        look: called before each checkpoint, to leave something to look at.
    """
    run = RunFolder(folder)
    args = arguments(
        run,
        steps,
        warmup_steps=min(warmup, steps - 1),
        weight_decay=0.01,
        adam_beta2=0.99,
        save_steps=save_every,
        save_total_limit=1,
        bf16=True,
        use_cpu=True,
    )
    with progress(steps, run.name) as shown:

        def show(step: int, metrics: Mapping[str, float]) -> None:
            losses = ", ".join(f"{key[4:]} {value:.4f}" for key, value in metrics.items() if key.startswith("sft/"))
            shown.phase(f"step {step}/{steps}  {losses}")
            if step % save_every == 0 or step == steps:
                look()

        LossTrainer(model, Batches(steps, make), args, run, show).fit()
