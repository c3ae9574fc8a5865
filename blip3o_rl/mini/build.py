"""Builds the mini model from nothing: autoencoder, image tokenizer, then policy and renderer together.

    blip3o-rl mini build --out weights

Stages, in this order; each one resumes from its own checkpoint in the work folder:
    vae     DC-AE on scenes
    tatok   TA-Tok on scenes, by vector-quantised autoencoding
    data    tokens and latents of a fixed set of pictures, scenes and words, computed once
    sft     the package's own supervised fine-tuning, policy and renderer together
    policy  the policy alone, which learns longest
    finish  both together again, with some wrong captions
    save    the model folder, in float16
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from rich.progress import track

from blip3o_rl.data.synthetic.scene_prompts import held_out_prompts, train_prompts
from blip3o_rl.data.synthetic.scenes import TAGS, Metadata, all_metadata, draw, realise
from blip3o_rl.data.synthetic.words import held_out_words, train_words, write
from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts
from blip3o_rl.mini.autoencoders import train_image_tokenizer, train_vae
from blip3o_rl.mini.images import save_grid, to_pixels
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.rendering import render
from blip3o_rl.model.token_layout import encode_prompt
from blip3o_rl.sft.loop import CHECKPOINT, generator_for, save_atomically
from blip3o_rl.sft.losses import Batch, SFTConfig, collate, image_states, train

DATA = "data.pt"
SCENE_SEED = 10**7
STAGES = ("vae", "tatok", "data", "sft", "policy", "finish", "save")
SHARES = {"single_object": 1, "two_object": 1, "counting": 1, "colors": 1, "position": 2, "color_attr": 2}
"""Parts of the scenes by tag; the tags with more prompts get more."""
WORDS_EVERY = 8
"""One of so many chunks of the data shows words."""
SHARE_OF_SCALE = {2: 1.0, 1: 0.4, 0: 0.15}
"""Part of the scenes that is tokenised at each scale."""
BATCH_OF_SCALE = {2: 40, 1: 16, 0: 4}
SCALE_DRAW = (2, 2, 2, 2, 2, 2, 2, 1, 1, 0)
"""Scale of a supervised step, drawn evenly from this list."""
MISMATCHED = 0.25
"""Part of the pictures with a wrong prompt in the last phase."""
COMMON_SETTINGS: dict[str, Any] = {
    "policy_lr": 1e-3,
    "renderer_lr": 1e-3,
    "noise_draws": 2,
    "place_weight": 1.0,
    "high_noise": 0.5,
    "trainable": "all",
    "weight_decay": 0.01,
    "warmup": 60,
    "save_every": 100,
}


def prepare_data(work: Path, pictures: int) -> None:
    """Tokens, latents, prompts and tags of a fixed set of scenes and words, into `work/data.pt`."""
    tokenizer = TATok.from_pretrained(work / "tatok" / "model").eval()
    vae = AutoencoderDC.from_pretrained(work / "vae" / "model").eval()
    chunk = 64
    lines: list[Metadata] = []
    latents: list[torch.Tensor] = []
    tokens: dict[int, list[torch.Tensor]] = {scale: [] for scale in SHARE_OF_SCALE}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in track(range(0, pictures, chunk), "tokens and latents"):
            rng = np.random.default_rng(SCENE_SEED + start)
            if start // chunk % WORDS_EVERY == WORDS_EVERY - 1:
                drawn = train_words(chunk, SCENE_SEED + start)
                paint = [write(rng, line).draw for line in drawn]
            else:
                drawn = train_prompts(chunk, SCENE_SEED + start, SHARES)
                paint = [partial(draw, realise(rng, line)) for line in drawn]
            pixels, target = (
                to_pixels(np.stack([picture(side) for picture in paint]))
                for side in (parts.TOKENIZER_INPUT, parts.IMAGE_SIZE)
            )
            lines += drawn
            latents.append((vae.encode(target).latent * vae.config.scaling_factor).half())
            for scale, share in SHARE_OF_SCALE.items():
                if start < share * pictures:
                    tokens[scale].append(tokenizer.encode(pixels, scale).short())
    data = {
        "prompts": [line["prompt"] for line in lines],
        "tags": [line["tag"] for line in lines],
        "latents": torch.cat(latents),
        "tokens": {scale: torch.cat(found) for scale, found in tokens.items()},
    }
    save_atomically(data, work / DATA)


@dataclass(frozen=True)
class Phase:
    """One part of the supervised training; `after` is the phase whose weights it starts from.

    `mismatched` is the part of the pictures that get the prompt of another picture of their tag. Captions found in the
    wild are like that, and a policy that learned from them doubts its prompt a little: it has seen what is asked for,
    and often draws something else. That is what reinforcement learning can mend.
    """

    after: str | None
    mismatched: float
    settings: dict[str, Any]


PHASES: dict[str, Phase] = {
    "sft": Phase(None, 0.0, {"align_steps": 300}),
    "policy": Phase("sft", 0.0, {"policy_alone": True}),
    "finish": Phase("policy", MISMATCHED, {"policy_lr": 4e-4}),
}


def mismatch(prompts: Sequence[str], tags: Sequence[str], part: float) -> list[str]:
    """The prompts, with a random `part` of them replaced by the prompt of another row of the same tag."""
    rng = np.random.default_rng(11)
    rows_of = {tag: np.flatnonzero([other == tag for other in tags]) for tag in set(tags)}
    return [
        prompts[int(rng.choice(rows_of[tag]))] if rng.random() < part else prompt
        for prompt, tag in zip(prompts, tags, strict=True)
    ]


def train_policy_and_renderer(work: Path, name: str, steps: int) -> None:
    """One of `PHASES`.

    At each checkpoint the model so far is written to `work/<name>/model`, with a grid of pictures beside it.
    """
    phase = PHASES[name]
    data = torch.load(work / DATA, weights_only=True)
    torch.manual_seed(3)
    tokenizer, layout = parts.make_tokenizer([line["prompt"] for tag in TAGS for line in all_metadata(tag)])
    policy = parts.make_policy(tokenizer, layout)
    renderer = parts.make_renderer(AutoencoderDC.from_pretrained(work / "vae" / "model"))
    captions = mismatch(data["prompts"], data["tags"], phase.mismatched)
    encoded = {(p, s): encode_prompt(tokenizer, p, s, layout) for p in set(captions) for s in SHARE_OF_SCALE}

    def batch_of(rows: torch.Tensor, scale: int) -> Batch:
        prompts = [encoded[captions[row], scale] for row in rows.tolist()]
        indices = data["tokens"][scale][rows].long()
        return collate(prompts, indices, data["latents"][rows], layout, tokenizer.pad_token_id)

    def next_batch(step: int) -> Batch:
        generator = generator_for(4, step)
        scale = SCALE_DRAW[int(torch.randint(len(SCALE_DRAW), (), generator=generator))]
        rows = torch.randint(len(data["tokens"][scale]), (BATCH_OF_SCALE[scale],), generator=generator)
        return batch_of(rows, scale)

    def look(step: int) -> None:
        policy.eval()
        save_model(work / name / "model", policy, tokenizer, renderer, work / "tatok" / "model")
        with torch.inference_mode():
            states = image_states(policy, batch_of(torch.arange(16), 2))
            true = renderer.decode(data["latents"][:16].float())
        forced = render(renderer, states, list(range(16)), GenerationConfig(steps=8))
        prompts = [line["prompt"] for line in (*held_out_prompts(32), *held_out_words(16))]
        free = Blip3oPipeline(policy, tokenizer, renderer)(
            prompts, list(range(48)), GenerationConfig(scale=2, steps=8)
        ).images
        save_grid(to_pixels(np.concatenate([true.numpy(), forced, free])), work / name / "samples.png")
        policy.train()

    config = SFTConfig(steps=steps, **(COMMON_SETTINGS | phase.settings))
    start = work / phase.after / CHECKPOINT if phase.after else None
    train(policy, renderer, next_batch, work / name, config, start=start, on_save=look)


def save_model(folder: Path, policy: Any, tokenizer: Any, renderer: Renderer, image_tokenizer: Path) -> None:
    """Writes a model folder in float16, leaving the given modules as they are."""
    half = Renderer(*(copy.deepcopy(getattr(renderer, part)).half() for part in ("connector", "transformer", "vae")))
    model_folder.save(
        folder,
        policy=copy.deepcopy(policy).half(),
        tokenizer=tokenizer,
        renderer=half,
        image_tokenizer=TATok.from_pretrained(image_tokenizer).half(),
        source="blip3o_rl.mini.build: trained on synthetic scenes",
    )


def build(
    out: str | Path,
    work: str | Path = "runs/mini_build",
    stages: Sequence[str] = STAGES,
    vae_steps: int = 2200,
    tatok_steps: int = 800,
    pictures: int = 34_000,
    phase_steps: Mapping[str, int] = MappingProxyType({"sft": 1700, "policy": 2050, "finish": 400}),
) -> Path:
    """Builds the mini model; about two hours on two CPU cores, by the sum of its parts.

    Args:
        out: the model folder to write.
        work: checkpoints, data, curves and sample grids; keep it to resume.
        stages: those to run; finished ones are not repeated.

    Returns:
        The model folder.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise UserError(f"stages: {', '.join(unknown)} unknown; known are {', '.join(STAGES)}")
    work, out = Path(work), Path(out)
    work.mkdir(parents=True, exist_ok=True)
    if "vae" in stages and not (work / "vae" / "model").is_dir():
        train_vae(work, vae_steps)
    if "tatok" in stages and not (work / "tatok" / "model").is_dir():
        train_image_tokenizer(work, tatok_steps)
    if "data" in stages and not (work / DATA).is_file():
        prepare_data(work, pictures)
    for name in PHASES:
        if name in stages:
            train_policy_and_renderer(work, name, phase_steps[name])
    if "save" in stages:
        shutil.copytree(work / "finish" / "model", out, dirs_exist_ok=True)
    return out
