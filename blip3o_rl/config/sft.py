"""The settings of supervised fine-tuning: each field's type, default, bounds and meaning in one place.

A recipe names `blip3o_sft` in its `defaults` and says only what it changes. Where BLIP3o-NEXT's own scripts set a
value, it is theirs (4 nodes x 8 GPUs, 16 images per GPU: 512 per step).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blip3o_rl.config.base import InputText, PathText, Settings
from blip3o_rl.config.composition import Kind

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class RunSettings(Settings):
    """The run as a whole."""

    recipe: str | None = Field(None, description="set by the launcher: the recipe's name")
    folder: PathText | None = Field(None, description="null: `runs/<recipe>-<time>`")
    seed: int = Field(1, ge=0, description="of the order of the data, the noise and the dropped conditions")
    processes: int | None = Field(
        None, ge=1, description="on this machine; null: one per GPU, or one without a GPU. torchrun decides itself"
    )
    save_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints that are kept")
    save_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the final model folder; bfloat16 halves it and rounds what was learned"
    )


class SystemPromptSettings(Settings):
    """The system turn per task."""

    text_to_image: str | None = Field(None, description="system prompt of captions; null: as in the model folder")
    edit: str | None = Field(None, description="of instructions that change an image; null: as in the model folder")
    keep: str | None = Field(None, description="of images to reproduce; null: as in the model folder")
    subject: str | None = Field(None, description="of new images of a subject; null: as in the model folder")


class ModelSettings(Settings):
    """What is trained."""

    folder: InputText = Field(
        "mini", description="model to start from: a folder, its address, or a packaged one (`mini`)"
    )
    scales: list[Literal[0, 1, 2]] = Field(
        [0], min_length=1, description="0, 1, 2 for 729, 169, 81 tokens; of several, each step picks one at random"
    )
    editing: Literal["tokens", "latents"] | None = Field(
        None,
        description="makes a model that edits of one that does not: tokens, references in the prompt alone; latents, "
        "in the renderer's condition and input as well; null: as the model folder is",
    )
    system_prompts: SystemPromptSettings = SystemPromptSettings()


class TaskShares(Settings):
    """Shares of the steps."""

    text_to_image: Rate | None = Field(
        None, description="of rows with image and caption; shares need not add up to 1; all null: by the number of rows"
    )
    edit: Rate | None = Field(None, description="of rows with input image, output image and instruction")
    keep: Rate | None = Field(None, description="above 0, rows with an image alone are images to reproduce")
    subject: Rate | None = Field(None, description='of edits with "task": "subject"')


class DataSettings(Settings):
    """Image-text pairs, edits, and images to keep."""

    renamed = {"threads": "workers", "shuffle": "nothing, every pass shuffles all pairs"}

    files: PathText | list[PathText] = Field(
        [], description=".tar (webdataset) and .jsonl: paths or patterns, {000..009} included"
    )
    image_field: str = Field("image", description="of JSON lines: path of the image, relative to the file")
    caption_field: str = Field("caption", description="of JSON lines, and of .json members of a tar")
    crop: Literal["target", "both"] = Field(
        "target",
        description="target: only the autoencoder's input is cut to the center square, as upstream does; both: the "
        "image tokenizer's input, too",
    )
    shares: TaskShares = TaskShares()
    max_bad: int = Field(100, ge=0, description="bad pairs per process that are reported and left out")
    max_tokens: int = Field(
        2048, ge=1, description="prompt, with the tokens of references, and image tokens; a longer row is bad"
    )
    workers: int = Field(4, ge=0, description="processes that prepare batches, per training process; 0: none")


class TrainSettings(Settings):
    """Optimization."""

    renamed = {
        "accumulate": "gradient_accumulation",
        "clip": "max_grad_norm",
        "final_lr": "min_lr_ratio",
        "warmup": "warmup_ratio",
    }
    steps: int = Field(1000, ge=1, description="of the optimizer")
    batch_size: int = Field(16, ge=1, description="images per process at a time")
    gradient_accumulation: int = Field(
        1, ge=1, description="batches per step; images per step = batch_size x gradient_accumulation x processes"
    )
    policy_lr: Rate = Field(5e-5, description="learning rate of the policy")
    renderer_lr: Rate = Field(5e-5, description="learning rate of the renderer")
    min_lr_ratio: Share = Field(0.2, description="of the learning rate, where the cosine ends: 1e-5")
    warmup_ratio: float = Field(0.01, ge=0, lt=1, description="of the steps")
    weight_decay: Rate = Field(0.0, description="AdamW's")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="of policy and renderer together; larger gradients are scaled")
    diffusion_weight: Rate = Field(1.0, description="of the flow-matching error; 0 trains the policy alone")
    condition_drop: Share = Field(0.1, description="of the images, whose condition is the null one of inference")
    noise_draws: int = Field(1, ge=1, description="noise levels per image")
    trainable: Literal["caption", "editing", "all"] = Field(
        "caption",
        description="of the renderer: caption (connectors and SANA's caption layers), editing (patch embedding and "
        "output projection, too, as upstream trains edits) or all; the policy is always whole",
    )
    gradient_checkpointing: bool = Field(True, description="less memory, a slower step")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the computation: bfloat16 on a GPU, float32 on a CPU; weights and optimizer are float32"
    )


class SFTSettings(Settings):
    """All settings."""

    run: RunSettings = RunSettings()
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()


SFT = Kind(command="sft", base="blip3o_sft", own=SFTSettings)
