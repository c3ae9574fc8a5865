"""The stages of the check, each a function of the model folder that returns what it measured.

Each runs in a process of its own (`runner`), so that a crash or too little memory ends one stage alone:

    python -m blip3o_rl.training.gpu_check.stages STAGE SIZE FOLDER      writes FOLDER/STAGE.json

`full` is the published model's size on a GPU; `tiny` is the packaged model, on whatever is here, so that the stages
themselves are tested without a GPU. What is compared has to agree, or the stage fails; times are only written down.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json, write_json
from blip3o_rl.model.folder import MINI, ModelFolder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training.planning.gpus import Gpu, of_device

PROMPT = 'a chalkboard in a café that says "FRESH BUTTER"'
REWARD = """
def brightness(image):
    return float(image.mean() / 255)
"""
RECIPE = """
defaults: [blip3o_ppo, _self_]
model: {{folder: "{model}", scale: {scale}}}
render: {{steps: {steps}}}
run: {{evaluate: false}}
prompts: {{source: text, train: 64}}
reward: {{rewards: {{brightness: {{path: "{reward}:brightness"}}}}}}
actor_rollout_ref:
  rollout: {{n: {group}}}
  actor: {{checkpoint: {{save_contents: [hf_model]}}}}
trainer: {{save_freq: -1}}
"""
MODEL_FILE = "model_folder.json"
"""In the folder of the stages; written when the model is whole."""
LORA = ("actor_rollout_ref.model.lora_rank=32", "actor_rollout_ref.model.lora_alpha=64")
KEPT = ("timing_s/", "rollout/", "rollout_corr/", "training/rollout", "actor/perf/max_memory", "actor/grad_norm",
        "actor/entropy", "actor/ppo_kl")  # fmt: skip
"""Beginnings of the names of the metrics of a step that are written down."""
STATES_AGREE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest relative difference (root mean square) of two implementations' hidden states; rounding, not an error."""


@dataclass(frozen=True)
class Size:
    """How much is done in a stage."""

    scale: int
    steps: int  # of the renderer
    group: int  # samples per prompt
    images: int  # of the stages without training


SIZES = {"full": Size(scale=0, steps=30, group=16, images=16), "tiny": Size(scale=2, steps=2, group=2, images=2)}


def model(folder: Path, size: str) -> dict[str, Any]:
    """The random model of the published size; `tiny` takes the packaged one."""
    if size == "tiny":
        write_json(folder / MODEL_FILE, {"folder": MINI})
        return {}
    from blip3o_rl.training.gpu_check.model import write_random
    from blip3o_rl.training.planning.plan import published

    path = write_random(folder / "model", published(), _device())
    write_json(folder / MODEL_FILE, {"folder": str(path)})
    return {"gib": sum(file.stat().st_size for file in path.rglob("*.safetensors")) / 2**30}


def generate(folder: Path, size: str) -> dict[str, Any]:
    """`blip3o-rl generate` with vLLM's engine next to the renderer."""
    chosen = SIZES[size]
    shutil.rmtree(folder / "images", ignore_errors=True)  # of an earlier check
    words = ["generate", PROMPT, f"--n={chosen.images}", f"--model={_model(folder)}", f"--out={folder / 'images'}"]
    words += [f"--steps={chosen.steps}", f"--scale={chosen.scale}", f"--batch-size={chosen.images}", "--backend=vllm"]
    seconds = _command(words, folder / "generate.log")
    found = list((folder / "images").glob("*seed*.png"))
    assert len(found) == chosen.images, f"{len(found)} images instead of {chosen.images}"
    return {"images": len(found), "seconds_in_all": seconds}


def capture(folder: Path, size: str) -> dict[str, Any]:
    """vLLM's hidden states, with CUDA graphs, against a plain transformers forward pass over the same tokens, in the
    same dtype."""
    from blip3o_rl.model.sampling import PolicySampler
    from blip3o_rl.model.token_layout import encode_prompt
    from blip3o_rl.rollout.offline import OfflineSampler
    from blip3o_rl.training.planning import counting, plan

    chosen, path, dtype = SIZES[size], _model(folder), _dtype()
    parts = ModelFolder(path)
    tokenizer = parts.load_tokenizer()
    prompts = [encode_prompt(tokenizer, PROMPT, chosen.scale, parts.layout)] * chosen.images
    with OfflineSampler(path, dtype, max_num_seqs=chosen.images, graphs=True) as sampler:
        start = time.perf_counter()
        tokens, states = sampler.rollouts(prompts, GenerationConfig(scale=chosen.scale))
        seconds = time.perf_counter() - start
    policy = parts.load_policy(dtype, _device())
    expected = PolicySampler(policy, tokenizer.pad_token_id).hidden_states(prompts, tokens, chosen.scale).cpu().float()
    difference = states.float() - expected
    relative = float(difference.square().mean().sqrt() / expected.square().mean().sqrt())
    assert relative < STATES_AGREE[dtype], f"states differ by {relative:.3g} of their size"
    weights = dtype.itemsize * counting.parameters(plan.of_folder(path))[0]
    return {
        "states_relative_difference": relative,
        "states_largest_difference": float(difference.abs().max()),
        # The weights are read once per token of all images.
        **_of_bound("tokens_per_s", tokens.numel() / seconds, lambda gpu: chosen.images * gpu.gb_s * 1e9 / weights),
    }


def render(folder: Path, size: str) -> dict[str, Any]:
    """The renderer alone, at the batch of the service: time against the GPU's peak rate, memory against the plan."""
    from blip3o_rl.model.rendering import render
    from blip3o_rl.training.planning import counting, plan

    chosen, path, device = SIZES[size], _model(folder), _device()
    renderer = ModelFolder(path).load_renderer(_dtype(), device)
    count, hidden = ModelFolder(path).layout.tokens_per_image(chosen.scale) + 1, renderer.connector.config.in_features
    states, seeds = torch.randn(chosen.images, count, hidden), list(range(chosen.images))
    config = GenerationConfig(steps=chosen.steps)
    if device == "cuda":
        render(renderer, states, seeds, GenerationConfig(steps=1))  # kernels are chosen in the first call
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    start = time.perf_counter()
    images = render(renderer, states, seeds, config)
    seconds = time.perf_counter() - start
    assert images.shape[0] == chosen.images and images.dtype == "uint8"
    sizes = plan.of_folder(path)
    step = counting.renderer_step(sizes, chosen.images, count, guided=True)
    denoising = counting.denoising(sizes, chosen.images, count, config)
    decoding = counting.decoding(sizes, chosen.images)
    flops = denoising + decoding.flops
    peak = (torch.cuda.max_memory_allocated() - before) / plan.GIB if device == "cuda" else None
    return {
        **_of_bound("images_per_s", chosen.images / seconds, lambda gpu: chosen.images * gpu.tflops * 1e12 / flops),
        "tflops": flops / seconds / 1e12,
        "activations_gib": peak,
        "planned_activations_gib": max(step.bytes, decoding.bytes) / plan.GIB,
    }


def train(folder: Path, size: str, name: str, images: int, steps: int, *overrides: str) -> dict[str, Any]:
    """A GRPO run of `steps` steps of `images` images: memory, seconds per stage, sampler against trainer."""
    from blip3o_rl.config.train import compose_recipe
    from blip3o_rl.training.planning import plan

    chosen, run = SIZES[size], folder / "runs" / name
    (recipe := folder / "recipe").mkdir(exist_ok=True)
    (reward := folder / "reward.py").write_text(REWARD)
    text = RECIPE.format(
        model=_model(folder), scale=chosen.scale, steps=chosen.steps, reward=reward, group=chosen.group
    )
    (recipe / "config.yaml").write_text(text)
    prompts = images // chosen.group if size == "full" else 2
    words = [f"data.train_batch_size={prompts}", f"trainer.total_training_steps={steps}", *overrides]
    seconds = _command(["train", str(recipe), f"run.folder={run}", *words], folder / f"{name}.log")
    measured = finished_steps(run)
    assert measured.get("steps") == steps, f"{measured.get('steps', 0)} of {steps} steps"
    failed = measured["last_step"]["rollout/failed"]
    assert failed == 0, f"{failed:.0%} of the rollouts failed"
    config = compose_recipe(recipe, words, "gpu")
    gpu = Gpu("this", torch.cuda.mem_get_info()[1] / plan.GIB if _device() == "cuda" else 80.0, 1, 1)
    phases = plan.Plan(config, plan.of_folder(_model(folder)), gpu).phases()
    planned = {name: sum(parts.values()) for name, parts in phases.items()}
    return {"seconds_in_all": seconds, "planned_gib": planned, **measured}


def finished_steps(run: Path) -> dict[str, Any]:
    """How many steps a run has finished, and what the last one measured; empty where it has finished none.

    `runner` asks as well, for a run that its limit has ended.
    """
    lines = RunFolder(run).read_metrics() if run.is_dir() else []
    finished = [line for line in lines if "timing_s/step" in line]  # a step's rollouts are written before its update
    if not finished:
        return {}
    last = {name: value for name, value in finished[-1].items() if name.startswith(KEPT)}
    return {"steps": len(finished), "last_step": last}


def train_16(folder: Path, size: str) -> dict[str, Any]:
    """Two GRPO steps of 16 images, with a weight sync between them."""
    return train(folder, size, "train-16", 16, 2)


def train_128(folder: Path, size: str) -> dict[str, Any]:
    """A GRPO step of 128 images, as recipe `text_3b` makes them."""
    return train(folder, size, "train-128", 128, 1)


def train_lora(folder: Path, size: str) -> dict[str, Any]:
    """Two GRPO steps of 16 images with adapters of rank 32."""
    return train(folder, size, "train-lora", 16, 2, *LORA)


def train_512(folder: Path, size: str) -> dict[str, Any]:
    """A GRPO step of 512 images."""
    return train(folder, size, "train-512", 512, 1)


STAGES: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "model": model,
    "generate": generate,
    "capture": capture,
    "render": render,
    "train-16": train_16,
    "train-128": train_128,
    "train-lora": train_lora,
    "train-512": train_512,
}
"""In the order in which they run; the later ones are left out first when time is short."""


def _of_bound(name: str, measured: float, bound: Callable[[Gpu], float]) -> dict[str, float]:
    """A rate by its name; for a GPU whose peaks are known, with the most that they allow and the share of it."""
    gpu = of_device(torch.cuda.get_device_name()) if _device() == "cuda" else None
    if gpu is None:
        return {name: measured}
    most = bound(gpu)
    return {name: measured, f"{name}_bound": most, f"{name}_share": measured / most}


def _model(folder: Path) -> str:
    return str(read_json(folder / MODEL_FILE)["folder"])


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def _command(words: list[str], log: Path) -> float:
    """Runs a command of this package and returns its seconds."""
    start = time.perf_counter()
    with log.open("w") as file:
        code = subprocess.run([sys.executable, "-m", "blip3o_rl.cli.main", *words], stdout=file, stderr=file).returncode
    if code:
        last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
        raise UserError(f"blip3o-rl {words[0]} ended with {code}: {''.join(last)}; all of it in {log}")
    return time.perf_counter() - start


if __name__ == "__main__":
    _stage, _size, _folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    (_folder / f"{_stage}.json").write_text(json.dumps(STAGES[_stage](_folder, _size)))
