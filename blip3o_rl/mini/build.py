"""Builds the mini model from nothing (`blip3o-rl mini build`).

Stages, in this order; each one resumes from its own checkpoint in the work folder:
    vae     DC-AE on images of all worlds
    tatok   TA-Tok on images of all worlds, by vector-quantized autoencoding
    data    tokens and latents of a fixed set of pairs, computed once
    sft     the package's own supervised fine-tuning, policy and renderer together
    policy  the policy alone, which learns longest
    finish  both together again, with some wrong captions
    save    the model folder, in float16
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from transformers.utils import WEIGHTS_NAME

from blip3o_rl.data.synthetic import edits, layouts, scene_prompts, scenes, shelves, words
from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts, worlds
from blip3o_rl.mini.autoencoders import train_image_tokenizer, train_vae
from blip3o_rl.mini.images import save_grid, to_pixels
from blip3o_rl.mini.pairs import DATA, mismatch, prepare_data
from blip3o_rl.mini.training import train_phase
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.rendering import render
from blip3o_rl.model.token_layout import encode_edit_prompt, encode_prompt
from blip3o_rl.report.checkpoints import latest
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.sft.losses import Batch, collate, image_states
from blip3o_rl.sft.model import LossConfig, SFTModel
from blip3o_rl.sft.trainer import generator_for

STAGES = ("vae", "tatok", "data", "sft", "policy", "finish", "save")
BATCHES = {"text": {2: 40, 1: 16, 0: 4}, "edit": {2: 24}}
"""Images per step, by kind and scale."""
KINDS = ("text", "text", "text", "edit")
SCALES = {"text": (2, 2, 2, 2, 2, 2, 2, 1, 1, 0), "edit": (2,)}
"""Kind and scale of a step, chosen evenly from these lists."""
HELD_OUT = (
    scene_prompts.held_out_prompts,
    words.held_out_words,
    layouts.held_out_prompts,
    shelves.held_out_prompts,
)
"""Prompts of the grid of images at each checkpoint, next to edits."""
COMMON: dict[str, Any] = {
    "policy_lr": 1e-3,
    "renderer_lr": 1e-3,
    "noise_draws": 2,
    "place_weight": 1.0,
    "high_noise": 0.5,
    "trainable": "all",
}


PHASES: dict[str, dict[str, Any]] = {
    "sft": {"align_batches": 300},
    "policy": {"diffusion_weight": 0.0},
    "finish": {"policy_lr": 4e-4},
}
"""Parts of the supervised training; each starts from the weights of those before it. Values: changes of `COMMON`."""
MISMATCHED = {"finish": 0.25}
"""Share of the images that get the prompt of another image of their tag, as captions found in the wild do.

A policy that learned from them often generates something else than its prompt asks for, although it has seen it. That
is what reinforcement learning can fix.
"""


def train_policy_and_renderer(work: Path, name: str, steps: int) -> None:
    """One of `PHASES`; leaves the model so far and a grid of images in `work/<name>` at each checkpoint."""
    data = torch.load(work / DATA, weights_only=True)
    torch.manual_seed(3)
    tokenizer, layout = parts.make_tokenizer(worlds.prompts_without_texts())
    policy = parts.make_policy(tokenizer, layout)
    renderer = parts.make_renderer(AutoencoderDC.from_pretrained(work / "vae" / "model"))
    model = SFTModel(policy, renderer, LossConfig(**COMMON | PHASES[name]))
    for earlier in takewhile(name.__ne__, PHASES):
        found = latest(RunFolder(work / earlier).checkpoints)
        assert found is not None, f"{work / earlier} has no checkpoint"
        model.load_state_dict(torch.load(found / WEIGHTS_NAME, weights_only=True), strict=False)
    wrong = MISMATCHED.get(name, 0.0)
    captions = {kind: mismatch(data[kind]["prompts"], data[kind]["tags"], wrong) for kind in data}

    def prompt(kind: str, row: int, scale: int) -> list[int]:
        caption = captions[kind][row]
        if kind == "text":
            return encode_prompt(tokenizer, caption, scale, layout)
        return encode_edit_prompt(tokenizer, caption, data[kind]["references"][row : row + 1].long(), scale, layout)

    def batch_of(kind: str, rows: torch.Tensor, scale: int) -> Batch:
        prompts = [prompt(kind, row, scale) for row in rows.tolist()]
        indices = data[kind]["tokens"][scale][rows].long()
        return collate(prompts, indices, data[kind]["latents"][rows], layout, tokenizer.pad_token_id)

    def make(step: int) -> dict[str, Any]:
        generator = generator_for(4, step)

        def choose(several: Sequence[Any]) -> Any:
            return several[int(torch.randint(len(several), (), generator=generator))]

        kind = choose(KINDS)
        scale = choose(SCALES[kind])
        rows = torch.randint(len(data[kind]["tokens"][scale]), (BATCHES[kind][scale],), generator=generator)
        return {"batch": batch_of(kind, rows, scale), "number": step, "seed": 0}

    def look() -> None:
        policy.eval()
        save_model(work / name / "model", policy, tokenizer, renderer, work / "tatok" / "model")
        grid = []
        with torch.inference_mode():
            for kind in data:
                states = image_states(policy, batch_of(kind, torch.arange(16), 2))
                forced = render(renderer, states, list(range(16)), GenerationConfig(steps=8))
                grid += [renderer.decode(data[kind]["latents"][:16].float()).numpy(), forced]
        prompts = [line["prompt"] for held_out in HELD_OUT for line in held_out(16)]
        rng = np.random.default_rng(0)
        asked = [edits.sample(rng, operation, held_out=True) for operation in (*edits.OPERATIONS * 3,)[:16]]
        given = [scenes.draw(edit.before, parts.IMAGE_SIZE) for edit in asked]
        references = [None] * len(prompts) + [[image] for image in given]
        prompts += [edit.metadata["prompt"] for edit in asked]
        pipeline = Blip3oPipeline.from_pretrained(work / name / "model", editing=True)
        config = GenerationConfig(scale=2, steps=8)
        free = pipeline(prompts, list(range(len(prompts))), config, references).images
        save_grid(to_pixels(np.concatenate([*grid, free, given])), work / name / "samples.png")

    train_phase(work / name, model, make, look, steps=steps, warmup=60)


def save_model(folder: Path, policy: Any, tokenizer: Any, renderer: Renderer, image_tokenizer: Path) -> None:
    """Writes a model folder in float16, leaving the given modules as they are."""
    half = copy.deepcopy(renderer).half()
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
    tatok_steps: int = 2400,
    images: int = 57_600,
    phase_steps: Mapping[str, int] = MappingProxyType({"sft": 1700, "policy": 3000, "finish": 400}),
) -> Path:
    """Builds the mini model; about two hours on two CPU cores, by the sum of its parts.

    Args:
        out: the model folder to write.
        work: checkpoints, data, metrics and sample grids; keep it to resume.
        stages: those to run; finished ones are not repeated.

    Returns:
        The model folder.
    """
    if unknown := set(stages) - set(STAGES):
        raise UserError(f"stages: {', '.join(unknown)} unknown; known are {', '.join(STAGES)}")
    work, out = Path(work), Path(out)
    work.mkdir(parents=True, exist_ok=True)
    if "vae" in stages and not (work / "vae" / "model").is_dir():
        train_vae(work, vae_steps)
    if "tatok" in stages and not (work / "tatok" / "model").is_dir():
        train_image_tokenizer(work, tatok_steps)
    if "data" in stages and not (work / DATA).is_file():
        prepare_data(work, images)
    for name in PHASES:
        if name in stages:
            train_policy_and_renderer(work, name, phase_steps[name])
    if "save" in stages:
        shutil.copytree(work / "finish" / "model", out, dirs_exist_ok=True)
    return out
