"""A run that trains adapters: trained, resumed, exported merged, evaluated. Four minutes on two cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import watch
from safetensors.torch import load_file

from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.report.run_folder import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]

REPOSITORY = Path(__file__).parents[2]
RANK, ALPHA = 4, 8
WORDS = [
    *("train", "recipes/shapes", "data.train_batch_size=2", "actor_rollout_ref.rollout.n=4", "render.steps=2"),
    *(f"actor_rollout_ref.model.lora_rank={RANK}", f"actor_rollout_ref.model.lora_alpha={ALPHA}"),
    *("actor_rollout_ref.actor.optim.lr=0.01", "trainer.save_freq=1"),
    *("eval.limit=4", "eval.images_per_prompt=1"),
]


def run(folder: Path, *words: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "blip3o_rl.cli.main", *words]
    done: subprocess.CompletedProcess[str] = watch.run(command, REPOSITORY, env | {"COLUMNS": "200"}, folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_adapters_are_trained_resumed_merged_and_evaluated(tmp_path: Path) -> None:
    target = tmp_path / "run"
    run(tmp_path, *WORDS, f"run.folder={target}", "trainer.total_training_steps=2")
    run(tmp_path, "train", "--resume", str(target), "trainer.total_training_steps=3")
    folder = RunFolder.open(target)
    _, *lines = folder.read_metrics()  # the first is of the evaluation before training
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        # The sampler adds the adapter's product, the trainer multiplies it as well: both in float32.
        assert line["training/rollout_probs_diff_max"] < 1e-4
        assert line["rollout/probs_diff"] < 1e-5
        assert line["actor/grad_norm"] > 0
    assert lines[0]["actor/kl_loss"] < 1e-6 < lines[2]["actor/kl_loss"], "the reference is the policy without adapters"

    saved = load_file(folder.checkpoints / "global_step_3" / "actor" / "huggingface" / "model.safetensors")
    before = ModelFolder("mini").load_policy().state_dict()
    trained = ModelFolder(target / "model").load_policy().state_dict()
    (name,) = [name for name in before if name.endswith("layers.0.self_attn.q_proj.weight")]
    part = f"base_model.model.{name.removesuffix('.weight')}"
    assert torch.equal(saved[f"{part}.base_layer.weight"], before[name]), "the base is frozen"
    product = saved[f"{part}.lora_B.default.weight"] @ saved[f"{part}.lora_A.default.weight"]
    assert product.abs().max() > 1e-4
    torch.testing.assert_close(trained[name], before[name] + ALPHA / RANK * product)
    assert torch.equal(trained["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    for file in (folder.eval_before, folder.eval_after):
        assert json.loads(file.read_text())

    run(tmp_path, "export", str(target), str(tmp_path / "exported"))
    exported = ModelFolder(tmp_path / "exported").load_policy().state_dict()
    assert all(torch.equal(exported[name], value) for name, value in trained.items())
