"""Builds the mini model from nothing (`blip3o-rl mini build`).

Stages, in this order; each one resumes from its own checkpoint in the work folder:
    vae     DC-AE on images of all worlds
    tatok   TA-Tok on images of all worlds, by vector-quantized autoencoding
    data    tokens and latents of a fixed set of pairs, computed once
    sft     the package's own supervised fine-tuning, policy and renderer together
    policy  the policy alone, which learns longest
    more    the same again, from a high learning rate
    finish  both together again: the renderer learns from the states that the policy has now
    edits   the same again, with more edits
    words   the same again, with more words
    letters once more, with still more words
    designs the policy alone, mostly edits and layouts
    render  both together, a part of each world
    spell   the policy alone, mostly words and layouts
    settle  both together, a part of each world
    repeat  the policy alone, mostly scenes and edits
    last    both together, a part of each world
    save    the model folder, in float16
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from blip3o_rl.mini.images import COLUMNS, save_grid, to_pixels
from blip3o_rl.mini.pairs import DATA, prepare_data
from blip3o_rl.mini.training import train_phase
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.rendering import render
from blip3o_rl.model.token_layout import TokenLayout, encode_edit_prompt, encode_prompt
from blip3o_rl.report.checkpoints import latest, step_of
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.sft.losses import Batch, collate, image_states
from blip3o_rl.sft.model import LossConfig, SFTModel
from blip3o_rl.sft.trainer import generator_for

BATCHES = {"text": {2: 40, 1: 16, 0: 4}, "edit": {2: 24}}
"""Images per step, by kind and scale."""
SCALES = {"text": (2, 2, 2, 2, 2, 2, 2, 1, 1, 0), "edit": (2,)}
"""The scale of a step is chosen evenly from these."""
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


@dataclass(frozen=True)
class Phase:
    """A part of the supervised training: steps, the kinds they choose from evenly, changes of `COMMON`.

    Kinds are those of the data, and worlds.
    """

    steps: int
    kinds: tuple[str, ...]
    changes: dict[str, Any]


ALONE = {"diffusion_weight": 0.0}
"""The policy without the renderer."""
GENTLE = {"policy_lr": 4e-4, "renderer_lr": 5e-4}
PHASES = {
    "sft": Phase(1700, ("text", "text", "text", "edit"), {"align_batches": 300}),
    "policy": Phase(3000, ("text", "text", "text", "edit"), ALONE),
    "more": Phase(3000, ("text", "text", "edit"), ALONE),
    "finish": Phase(500, ("text", "text", "edit"), {"policy_lr": 4e-4}),
    "edits": Phase(900, ("text", "edit"), {"policy_lr": 6e-4, "renderer_lr": 5e-4}),
    "words": Phase(1050, ("words", "words", "text", "edit"), GENTLE),
    "letters": Phase(700, ("words",) * 3 + ("text", "edit"), {"policy_lr": 6e-4, "renderer_lr": 5e-4}),
    "designs": Phase(2600, ("edit",) * 3 + ("layouts",) * 2 + ("words", "text"), ALONE),
    "render": Phase(500, ("words", "words", "layouts", "text", "edit"), GENTLE),
    "spell": Phase(2400, ("words", "layouts", "edit") * 2 + ("text",), ALONE),
    "settle": Phase(500, ("words", "words", "layouts", "text", "edit"), GENTLE),
    "repeat": Phase(900, ("scenes", "edit") * 2 + ("words", "layouts", "text"), ALONE),
    "last": Phase(350, ("words", "layouts", "scenes", "text", "edit"), GENTLE),
}
"""Each starts from the weights of those before it."""
STAGES = ("vae", "tatok", "data", *PHASES, "save")
PHASE_STEPS = MappingProxyType({name: phase.steps for name, phase in PHASES.items()})


class PairBatches:
    """Batches of a phase, from the prepared data: the same step gives the same batch."""

    def __init__(self, data: dict[str, dict[str, Any]], tokenizer: Any, layout: TokenLayout, kinds: Sequence[str]):
        """Args:
        data: what `prepare_data` wrote.
        kinds: those to choose from evenly.
        """
        self.data, self.tokenizer, self.layout, self.kinds = data, tokenizer, layout, kinds
        self.rows = {kind: torch.arange(len(data[kind]["prompts"])) for kind in data}
        self.rows |= {
            world: torch.tensor([row for row, of in enumerate(data["text"]["worlds"]) if of == world])
            for world in set(kinds) - set(data)
        }

    def prompt(self, kind: str, row: int, scale: int) -> list[int]:
        """Token ids of a row's prompt, its reference included."""
        data = self.data[kind]
        caption = data["prompts"][row]
        if kind == "text":
            return encode_prompt(self.tokenizer, caption, scale, self.layout)
        return encode_edit_prompt(self.tokenizer, caption, data["references"][row : row + 1].long(), scale, self.layout)

    def batch_of(self, kind: str, rows: torch.Tensor, scale: int) -> Batch:
        """The pairs `rows` as one batch."""
        prompts = [self.prompt(kind, row, scale) for row in rows.tolist()]
        data = self.data[kind]
        indices = data["tokens"][scale][rows].long()
        return collate(prompts, indices, data["latents"][rows], self.layout, self.tokenizer.pad_token_id)

    def make(self, step: int) -> dict[str, Any]:
        """Inputs of the model at this step."""
        generator = generator_for(4, step)

        def choose(several: Sequence[Any]) -> Any:
            return several[int(torch.randint(len(several), (), generator=generator))]

        chosen = choose(self.kinds)
        kind = chosen if chosen in self.data else "text"
        scale = choose(SCALES[kind])
        among = self.rows[chosen][self.rows[chosen] < len(self.data[kind]["tokens"][scale])]
        rows = among[torch.randint(len(among), (BATCHES[kind][scale],), generator=generator)]
        return {"batch": self.batch_of(kind, rows, scale), "number": step, "seed": 0}


def train_policy_and_renderer(work: Path, name: str, steps: int) -> None:
    """One of `PHASES`; leaves the model so far and a grid of images in `work/<name>` at each checkpoint."""
    data = torch.load(work / DATA, weights_only=True)
    torch.manual_seed(3)
    tokenizer, layout = parts.make_tokenizer(worlds.prompts_without_texts())
    policy = parts.make_policy(tokenizer, layout)
    renderer = parts.make_renderer(AutoencoderDC.from_pretrained(work / "vae" / "model"))
    model = SFTModel(policy, renderer, LossConfig(**COMMON | PHASES[name].changes))
    for earlier in takewhile(name.__ne__, PHASES):
        found = latest(RunFolder(work / earlier).checkpoints)
        assert found is not None, f"{work / earlier} has no checkpoint"
        model.load_state_dict(torch.load(found / WEIGHTS_NAME, weights_only=True), strict=False)
    batches = PairBatches(data, tokenizer, layout, PHASES[name].kinds)

    def look() -> None:
        policy.eval()
        save_model(work / name / "model", policy, tokenizer, renderer, work / "tatok" / "model")
        images = samples(work / name / "model", policy, renderer, batches)
        save_grid(to_pixels(images), work / name / "samples.png", COLUMNS)

    train_phase(work / name, model, batches.make, look, steps=steps, warmup=60)


@torch.inference_mode()
def samples(folder: Path, policy: Any, renderer: Renderer, batches: PairBatches) -> np.ndarray:
    """Rows of `COLUMNS` images [B, 64, 64, 3]: per kind the pairs and their tokens rendered, then held-out prompts
    and edits sampled by the model in `folder`, last the references of these edits.
    """
    grid = []
    for kind, data in batches.data.items():
        states = image_states(policy, batches.batch_of(kind, torch.arange(COLUMNS), 2))
        forced = render(renderer, states, list(range(COLUMNS)), GenerationConfig(steps=8))
        grid += [renderer.decode(data["latents"][:COLUMNS].float()).numpy(), forced]
    prompts = [line["prompt"] for held_out in HELD_OUT for line in held_out(COLUMNS)]
    rng = np.random.default_rng(0)
    asked = [edits.sample(rng, operation, "held_out") for operation in (*edits.OPERATIONS * 3,)[:COLUMNS]]
    given = [scenes.draw(edit.before, parts.IMAGE_SIZE) for edit in asked]
    references = [None] * len(prompts) + [[image] for image in given]
    prompts += [edit.metadata["prompt"] for edit in asked]
    pipeline = Blip3oPipeline.from_pretrained(folder, editing=True)
    free = pipeline(prompts, list(range(len(prompts))), GenerationConfig(scale=2, steps=8), references).images
    return np.concatenate([*grid, free, given])


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
    more_edits: int = 34_560,
    phase_steps: Mapping[str, int] = PHASE_STEPS,
) -> Path:
    """Builds the mini model; about seven hours on two CPU cores.

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
        prepare_data(work, images, more_edits)
    for name in PHASES:
        if name in stages and not _is_finished(work / name, phase_steps[name]):
            train_policy_and_renderer(work, name, phase_steps[name])
    if "save" in stages:
        shutil.copytree(work / [*PHASES][-1] / "model", out, dirs_exist_ok=True)
    return out


def _is_finished(phase: Path, steps: int) -> bool:
    newest = latest(RunFolder(phase).checkpoints)
    return newest is not None and step_of(newest) == steps
