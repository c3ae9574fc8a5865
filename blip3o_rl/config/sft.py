"""The settings of supervised fine-tuning: each field's type, default, bounds and meaning in one place.

A recipe names `blip3o_sft` in its `defaults` and says only what it changes. Where BLIP3o-NEXT's own scripts set a
value, it is theirs (4 nodes x 8 GPUs, 16 images per GPU: 512 per step).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blip3o_rl.config.base import PathText, Settings
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


class ModelSettings(Settings):
    """What is trained."""

    folder: PathText = Field("mini", description="model folder to start from")
    scales: list[Literal[0, 1, 2]] = Field(
        [0], min_length=1, description="0, 1, 2 for 729, 169, 81 tokens; of several, each step picks one at random"
    )


class DataSettings(Settings):
    """Image-text pairs."""

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
    max_bad: int = Field(100, ge=0, description="bad pairs per process that are reported and left out")
    max_tokens: int = Field(
        2048, ge=1, description="prompt and image tokens together; a pair with a longer caption is bad"
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
    condition_drop: Share = Field(0.1, description="of the images, whose hidden states are zeroed before the connector")
    noise_draws: int = Field(1, ge=1, description="noise levels per image")
    trainable: Literal["caption", "all"] = Field(
        "caption",
        description="of the renderer: caption (connector and SANA's caption layers) or all; the policy is always whole",
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
