"""Several trainer processes compute what one does: same losses, gradients and weights on the same rollouts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SAMPLES, PROMPT, IMAGE = 8, 20, 81
ADAPTERS = ["actor_rollout_ref.model.lora_rank=4"]


def rollouts(layout: Any, file: Path) -> None:
    """Prompts of several lengths, random image tokens, advantages and log-probs as after a few updates."""
    torch.manual_seed(0)
    tokens = torch.randint(0, layout.num_image_tokens, (SAMPLES, IMAGE)) + layout.image_start_token_id
    mask = torch.ones(SAMPLES, PROMPT + IMAGE, dtype=torch.int64)
    for row in range(SAMPLES):
        mask[row, :row] = 0
    uniform = -torch.log(torch.tensor(float(layout.num_image_tokens)))
    prompts = torch.randint(5, 50, (SAMPLES, PROMPT)) * mask[:, :PROMPT]
    fields = {
        "prompts": prompts,
        "input_ids": torch.cat([prompts, tokens], dim=1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "responses": tokens,
        "response_mask": torch.ones(SAMPLES, IMAGE, dtype=torch.int64),
        "advantages": torch.randn(SAMPLES, 1).expand(-1, IMAGE).clone(),
        "old_log_probs": uniform + 0.1 * torch.randn(SAMPLES, IMAGE),
        "ref_log_prob": uniform + 0.1 * torch.randn(SAMPLES, IMAGE),
    }
    torch.save(fields, file)


def trained(world: int, folder: Path, *overrides: str) -> dict[str, Any]:
    """What `world` processes made of the rollouts in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}
    result = folder / f"{world}-{len(overrides)}.pt"
    script = Path(__file__).with_name("trainer_process.py")
    command = [sys.executable, str(script), str(folder / "rollouts.pt"), str(result), "shapes", *overrides]
    logs = [(folder / f"{result.stem}-{rank}.log").open("w") for rank in range(world)]
    processes = [
        subprocess.Popen(command, env=common | {"RANK": str(rank)}, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world, Path(logs[0].name).read_text()[-3000:]
    return torch.load(result)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], pytest.param(ADAPTERS, marks=pytest.mark.long)], ids=["full", "lora"])
def test_two_trainer_processes_are_one(untrained: Any, tmp_path: Path, lora: list[str]) -> None:
    """FSDP2 over gloo. Sums are taken in another order, so the results agree to rounding."""
    rollouts(untrained.layout, tmp_path / "rollouts.pt")
    overrides = [
        f"actor_rollout_ref.model.path={untrained.folder / 'policy'}",
        "data.train_batch_size=2",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.actor.optim.lr=0.01",
        "actor_rollout_ref.actor.optim.total_training_steps=10",
        *lora,
    ]
    one, two = (trained(world, tmp_path, *overrides) for world in (1, 2))
    assert one["loss"][0] != one["loss"][1] and abs(one["loss"][0]) > 1e-3, "nothing was learned"
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert set(two["weights"]) == set(one["weights"])
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-4, rtol=1e-4)
