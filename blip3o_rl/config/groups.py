"""The groups of a training run's configuration that are ours: `run`, `model`, `render`, `eval` and `prompts`.

Defaults stand here and nowhere else: Hydra composes a recipe on top of `Model().model_dump()`. What verl reads is set
in `defaults/blip3o_ppo.yaml` and restricted in `verl_keys`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from blip3o_rl.config.base import InputText, PathText, Settings
from blip3o_rl.errors import UserError
from blip3o_rl.model.generation import GenerationConfig


class RunSettings(Settings):
    """Where a run keeps its files, and what it reports."""

    renamed = {"resume": "blip3o-rl train --resume RUN"}

    recipe: str | None = Field(None, description="the recipe's name; set by the launcher")
    folder: PathText | None = Field(None, description="null: `runs/<recipe>-<time>`")
    upload: InputText | None = Field(
        None, description="where the run folder is copied when the run has ended: s3://..."
    )
    seed: int = Field(1, ge=0, description="of prompts, tokens and noise")
    images_every: int = Field(5, ge=1, description="steps between image grids")
    evaluate: bool = Field(True, description="score the held-out prompts before, during and after, see `eval`")
    grace_s: float = Field(
        0.0, ge=0, description="after SIGTERM, seconds for the step to end and to save a checkpoint; 0: end at once"
    )


class ModelSettings(Settings):
    """The model and the number of tokens per image."""

    folder: InputText = Field(
        "mini", description="a model folder, its address, or a packaged one: `mini`, `mini-edits`"
    )
    scale: int = Field(0, ge=0, le=2, description="0, 1, 2 for 729, 169, 81 tokens per image")
    layout_fields: dict[str, Any] | None = Field(None, description="the policy's token layout; set by the launcher")


class RenderSettings(Settings):
    """The frozen renderer, a Ray Serve deployment."""

    steps: int = Field(30, ge=1, description="Euler steps")
    guidance: float = Field(2.0, ge=0, description="classifier-free guidance; 1 is none")
    rollout_steps: int | None = Field(None, ge=1, description="Euler steps in training; null: as in the evaluation")
    rollout_guidance: float | None = Field(None, ge=0, description="guidance in training; null: as in the evaluation")
    rollout_size: int | None = Field(
        None, ge=1, description="side of the images in training, in pixels; null: as in the evaluation, the model's own"
    )
    rollout_guidance_interval: tuple[float, float] | None = Field(
        None,
        description="[low, high]: in training only the Euler steps that begin at such a noise level (1 to 0) are "
        "guided; null: all",
    )
    noise: Literal["group", "sample"] = Field(
        "group", description="group: the samples of a prompt share the initial noise; sample: each has its own"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the device multiplies it natively, else float32"
    )
    compile: bool = Field(
        False, description="compile the network's layers (torch.compile), which takes up to a minute at the start"
    )
    device: str = Field("${trainer.device}", description="torch device of the replicas")
    replicas: int | None = Field(None, ge=1, description="of the renderer; null: one per GPU of the run, on that GPU")
    gpus_per_replica: float = Field(0.0, ge=0, description="0: shares the GPUs with trainer and sampler")
    max_batch_size: int = Field(16, ge=1, description="images per batch")
    batch_wait_s: float = Field(0.05, ge=0, description="how long a batch waits for more images")
    threads: int | None = Field(None, ge=1, description="CPU threads per replica; null: all cores")

    def generation(self, full: bool) -> GenerationConfig:
        """How images are rendered: fully as in evaluations, or as rollouts may be."""
        if full:
            return GenerationConfig(steps=self.steps, guidance=self.guidance)
        return GenerationConfig(
            steps=self.steps if self.rollout_steps is None else self.rollout_steps,
            guidance=self.guidance if self.rollout_guidance is None else self.rollout_guidance,
            size=self.rollout_size,
            guidance_interval=self.rollout_guidance_interval or (0.0, 1.0),
        )

    @model_validator(mode="after")
    def _interval_makes_sense(self) -> RenderSettings:
        try:
            self.generation(full=False)
        except UserError as error:
            raise ValueError(f"rollout_{error}") from error
        return self


class EvalSettings(Settings):
    """The held-out evaluation of a run, before, during and after training: prompts, a rubric, seeds."""

    every: int | None = Field(None, ge=0, description="steps between evaluations; null or 0: only before and after")
    prompts: InputText | None = Field(
        None,
        description="a prompt file, or a source's name for its held-out side; null: the held-out side of "
        "prompts.source, or with prompts.file a share of that file, which is then not trained on",
    )
    held_out_share: float = Field(0.125, gt=0, lt=1, description="of prompts.file, by a hash of prompt and references")
    rewards: dict[str, Any] = Field(
        {}, description="entries as in reward.rewards; empty: the judge of a source, else the run's own rewards"
    )
    limit: int | None = Field(None, ge=1, description="prompts; null: all of a file, a source's usual number")
    images_per_prompt: int = Field(4, ge=1, description="each with a seed of its own")
    seed: int = Field(20_000, ge=0, description="of the first image; the others count up from it")


class PromptSettings(Settings):
    """What is trained on."""

    source: str = Field(
        "shapes",
        description="a built-in source: shapes, words, shapes-and-words, text, layout, planogram, posters, store, "
        "edits, geneval",
    )
    train: int = Field(4096, ge=1, description="prompts that the source makes; a small number may be learned by heart")
    shares: dict[str, NonNegativeInt] = Field(
        {},
        description="shapes, shapes-and-words, edits, geneval: how many prompts of a tag come in a round, where it "
        "differs from the source's: one of each in shapes, besides six words in shapes-and-words, one keep to two of "
        "each operation in edits, Flow-GRPO's ratio in geneval",
    )
    file: InputText | None = Field(None, description="a prompt file of your own in place of the source")
