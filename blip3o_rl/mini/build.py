"""Builds the mini model from nothing: autoencoder, image tokenizer, then policy and renderer together.

    python -m blip3o_rl.mini.build --out weights

Stages, in this order; each one resumes from its own checkpoint in the work folder:
    vae     DC-AE on scenes
    tatok   TA-Tok on scenes, by vector-quantised autoencoding
    data    tokens and latents of a fixed set of scenes, computed once
    sft     the package's own supervised fine-tuning, policy and renderer together
    save    the model folder, in float16
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from PIL import Image
from rich.progress import track

from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts
from blip3o_rl.mini.prompts import held_out_prompts, train_prompts
from blip3o_rl.mini.scenes import TAGS, all_metadata, draw, realise
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.token_layout import encode_prompt
from blip3o_rl.training.autoencoding import (
    PixelDecoder,
    autoencoder_loss,
    revive_entries,
    seed_codebook,
    tokenizer_loss,
)
from blip3o_rl.training.loop import fit, generator_for, save_atomically
from blip3o_rl.training.sft import Batch, SFTConfig, collate, image_states, train

DATA = "data.pt"
SCENE_SEED = 10**7
STAGES = ("vae", "tatok", "data", "sft", "save")
SHARE_OF_SCALE = {2: 1.0, 1: 0.4, 0: 0.15}
"""Part of the scenes that is tokenised at each scale."""
BATCH_OF_SCALE = {2: 40, 1: 16, 0: 4}
SCALE_DRAW = (2, 2, 2, 2, 2, 2, 2, 1, 1, 0)
"""Scale of a supervised step, drawn evenly from this list."""


def scene_batch(n: int, sides: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    """`n` scenes of random training prompts, drawn at each of `sides`: [n, 3, side, side] in [-1, 1]."""
    rng = np.random.default_rng(seed)
    scenes = [realise(rng, line) for line in train_prompts(n, seed)]
    return [to_pixels(np.stack([draw(scene, side) for scene in scenes])) for side in sides]


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_grid(pictures: torch.Tensor, file: Path, columns: int = 16) -> None:
    """Writes pictures [B, 3, H, W] in [-1, 1] as one PNG, for a person to look at."""
    rows = [torch.cat(list(row), dim=2) for row in pictures.split(columns) if len(row) == columns]
    grid = ((torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5).round().byte()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).resize((grid.shape[2] * 2, grid.shape[1] * 2), 0).save(file)


def train_vae(work: Path, steps: int, batch: int = 32) -> None:
    """Trains the autoencoder and leaves it, with its scaling factor, in `work/vae/model`."""
    folder = work / "vae"
    torch.manual_seed(0)
    vae = parts.make_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)

    def step_loss(step: int) -> dict[str, torch.Tensor]:
        pixels = scene_batch(batch, (parts.IMAGE_SIZE,), seed=step)[0].to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            return autoencoder_loss(vae, pixels, generator_for(1, step))

    def look(step: int) -> None:
        with torch.no_grad():
            pixels = scene_batch(16, (parts.IMAGE_SIZE,), seed=10**6)[0]
            shown = vae.decode(vae.encode(pixels).latent).sample
        save_grid(torch.cat([pixels, shown]), folder / "reconstructions.png")

    fit(folder, {"vae": vae}, optimizer, step_loss, steps=steps, warmup=50, save_every=200, on_save=look)
    with torch.no_grad():
        latents = vae.encode(scene_batch(256, (parts.IMAGE_SIZE,), seed=10**6 + 1)[0]).latent
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    vae.to(memory_format=torch.contiguous_format).save_pretrained(folder / "model")


def train_image_tokenizer(work: Path, steps: int, batch: int = 32, unquantised: int = 150) -> None:
    """Trains TA-Tok and leaves it in `work/tatok/model`.

    The first `unquantised` steps let the vectors find their place; then the codebook is seeded from them. Scale 2,
    which the mini model is mostly used at, is drawn in two of three steps.
    """
    folder = work / "tatok"
    torch.manual_seed(1)
    tokenizer = parts.make_image_tokenizer()
    vq = tokenizer.bottleneck.regularizer
    vq.embedding_proj.requires_grad_(False)
    decoder = PixelDecoder(tokenizer.config.bottleneck_dim, parts.NUM_IMAGE_TOKENS, parts.IMAGE_SIZE)
    sides = (parts.TOKENIZER_INPUT, parts.IMAGE_SIZE)
    trained = [p for p in (*tokenizer.parameters(), *decoder.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)

    def vectors_of_all_scales(seed: int) -> torch.Tensor:
        pixels = scene_batch(64, sides[:1], seed)[0]
        with torch.no_grad():
            vectors = [tokenizer.features(pixels, scale).flatten(0, 1) for scale in (0, 1, 2)]
        fewest, generator = len(vectors[2]), generator_for(5, seed)
        return torch.cat([v[torch.randperm(len(v), generator=generator)[:fewest]] for v in vectors])

    def step_loss(step: int) -> dict[str, torch.Tensor]:
        generator = generator_for(2, step)
        if step == unquantised:
            seed_codebook(tokenizer, decoder, vectors_of_all_scales(step), generator)
        elif step > unquantised and step % 50 == 0 and step < 0.7 * steps:
            revive_entries(tokenizer, decoder, vectors_of_all_scales(step), generator)
        scale = (2, 2, 2, 2, 1, 0)[int(torch.randint(6, (), generator=generator))]
        pixels, target = scene_batch(batch, sides, seed=step)
        with torch.autocast("cpu", torch.bfloat16):
            return tokenizer_loss(tokenizer, decoder, pixels, target, scale, quantise=step >= unquantised)

    def look(step: int) -> None:
        pixels, target = scene_batch(16, sides, seed=10**6)
        with torch.no_grad():
            entries = tokenizer.codebook()
            shown = [decoder(entries[tokenizer.encode(pixels, scale)]) for scale in (2, 1, 0)]
        save_grid(torch.cat([target, *shown]), folder / "reconstructions.png")

    modules: dict[str, torch.nn.Module] = {"tokenizer": tokenizer, "decoder": decoder}
    fit(folder, modules, optimizer, step_loss, steps=steps, warmup=50, save_every=100, on_save=look)
    tokenizer.requires_grad_(True).eval().save_pretrained(folder / "model")


def prepare_data(work: Path, scenes: int) -> None:
    """Tokens, latents and prompts of a fixed set of scenes, into `work/data.pt`."""
    tokenizer = TATok.from_pretrained(work / "tatok" / "model").eval()
    vae = AutoencoderDC.from_pretrained(work / "vae" / "model").eval()
    sides, chunk = (parts.TOKENIZER_INPUT, parts.IMAGE_SIZE), 64
    prompts: list[str] = []
    latents: list[torch.Tensor] = []
    tokens: dict[int, list[torch.Tensor]] = {scale: [] for scale in SHARE_OF_SCALE}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in track(range(0, scenes, chunk), "tokens and latents"):
            prompts += [line["prompt"] for line in train_prompts(chunk, SCENE_SEED + start)]
            pixels, target = scene_batch(chunk, sides, SCENE_SEED + start)
            latents.append((vae.encode(target).latent * vae.config.scaling_factor).half())
            for scale, share in SHARE_OF_SCALE.items():
                if start < share * scenes:
                    tokens[scale].append(tokenizer.encode(pixels, scale).short())
    data = {"prompts": prompts, "latents": torch.cat(latents), "tokens": {s: torch.cat(t) for s, t in tokens.items()}}
    save_atomically(data, work / DATA)


def train_policy_and_renderer(work: Path, steps: int) -> None:
    """The supervised stage.

    At each checkpoint the model so far is written to `work/sft/model`, with a grid of pictures beside it.
    """
    data = torch.load(work / DATA, weights_only=True)
    torch.manual_seed(3)
    tokenizer, layout = parts.make_tokenizer([line["prompt"] for tag in TAGS for line in all_metadata(tag)])
    policy = parts.make_policy(tokenizer, layout)
    renderer = parts.make_renderer(AutoencoderDC.from_pretrained(work / "vae" / "model"))
    unique = sorted(set(data["prompts"]))
    encoded = {(p, s): encode_prompt(tokenizer, p, s, layout) for p in unique for s in SHARE_OF_SCALE}

    def batch_of(rows: torch.Tensor, scale: int) -> Batch:
        prompts = [encoded[data["prompts"][row], scale] for row in rows.tolist()]
        indices = data["tokens"][scale][rows].long()
        return collate(prompts, indices, data["latents"][rows], layout, tokenizer.pad_token_id)

    def next_batch(step: int) -> Batch:
        generator = generator_for(4, step)
        scale = SCALE_DRAW[int(torch.randint(len(SCALE_DRAW), (), generator=generator))]
        rows = torch.randint(len(data["tokens"][scale]), (BATCH_OF_SCALE[scale],), generator=generator)
        return batch_of(rows, scale)

    def look(step: int) -> None:
        policy.eval()
        save_model(work / "sft" / "model", policy, tokenizer, renderer, work / "tatok" / "model")
        with torch.inference_mode():
            states = image_states(policy, batch_of(torch.arange(16), 2))
            true = renderer.decode(data["latents"][:16].float())
        forced = renderer.render(states, list(range(16)), steps=8)
        prompts = [line["prompt"] for line in held_out_prompts(32)]
        free = Blip3oPipeline(policy, tokenizer, renderer)(prompts, list(range(32)), scale=2, steps=8).images
        save_grid(to_pixels(np.concatenate([true.numpy(), forced, free])), work / "sft" / "samples.png")
        policy.train()

    config = SFTConfig(
        steps=steps,
        policy_lr=1e-3,
        renderer_lr=1e-3,
        noise_draws=2,
        place_weight=1.0,
        high_noise=0.5,
        align_steps=300,
        trainable="all",
        weight_decay=0.01,
        warmup=60,
        save_every=100,
    )
    train(policy, renderer, next_batch, work / "sft", config, on_save=look)


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
    scenes: int = 18_000,
    sft_steps: int = 1700,
) -> Path:
    """Builds the mini model; about an hour on two CPU cores.

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
        prepare_data(work, scenes)
    if "sft" in stages:
        train_policy_and_renderer(work, sft_steps)
    if "save" in stages:
        shutil.copytree(work / "sft" / "model", out, dirs_exist_ok=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the mini model from nothing.")
    parser.add_argument("--out", required=True, help="model folder to write")
    parser.add_argument("--work", default="runs/mini_build", help="checkpoints and sample grids; keep it to resume")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    arguments = parser.parse_args()
    build(arguments.out, arguments.work, arguments.stages)


if __name__ == "__main__":
    main()
