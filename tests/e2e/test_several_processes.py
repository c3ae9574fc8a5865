"""A run with two trainer processes and two renderers on one machine, with two vLLM replicas or with one of two tensor
parallel ranks. Four minutes each on two cores."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import watch

from blip3o_rl.io import read_lines
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.model.policy import image_logits
from blip3o_rl.model.sampling import PolicySampler
from blip3o_rl.model.token_layout import encode_prompt
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training.log_probs import entropies

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]

REPOSITORY = Path(__file__).parents[2]
GROUPS, SAMPLES, STEPS = 4, 2, 2
REWARD = '''
def brightness(sample):
    """Mean brightness, and a line for every sample that was scored."""
    if sample.step is not None:  # else the check before the run
        with open("{calls}", "a") as file:
            file.write(sample.id + " ")
    return float(sample.image.mean() / 255)
'''


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_trainers_two_renderers_and_two_replicas_or_ranks(tmp_path: Path, ranks: int) -> None:
    target, calls, reward = tmp_path / "run", tmp_path / "calls.txt", tmp_path / "mine.py"
    reward.write_text(REWARD.replace("{calls}", str(calls)))
    words = [
        *("train", "recipes/shapes", f"run.folder={target}", "run.evaluate=false", "render.steps=2"),
        *("trainer.n_gpus_per_node=2", "render.replicas=2", "actor_rollout_ref.rollout.agent.num_workers=2"),
        *(f"data.train_batch_size={GROUPS}", f"actor_rollout_ref.rollout.n={SAMPLES}"),
        *(f"trainer.total_training_steps={STEPS}", "actor_rollout_ref.actor.optim.lr=1e-3"),
        f"reward.rewards.mine.path={reward}:brightness",
        f"actor_rollout_ref.rollout.tensor_model_parallel_size={ranks}",
    ]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = watch.run([sys.executable, "-m", "blip3o_rl.cli.main", *words], REPOSITORY, env, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]

    folder = RunFolder.open(target)
    lines = folder.read_metrics()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    rows = [row for step in range(1, STEPS + 1) for row in read_lines(folder.rollout_file(step))]
    scored = calls.read_text().split()
    assert sorted(scored) == sorted(row["id"] for row in rows), "every rollout is scored once"
    assert len(set(scored)) == GROUPS * SAMPLES * STEPS
    for line in lines:
        assert line["rollout/failed"] == 0
        assert line["training/rollout_probs_diff_max"] < 1e-4, "a replica has other weights than its trainer"

    # One process computes from the recorded tokens what the two made of their halves.
    first = [row for row in rows if row["step"] == 1]
    assert mean_entropy(first) == pytest.approx(lines[0]["actor/entropy"], rel=1e-4)
    assert lines[0]["actor/pg_loss"] == pytest.approx(0, abs=1e-4), "advantages of a group add up to 0"

    server = "".join(file.read_text() for file in folder.logs.glob("worker-*.out"))
    assert ("'--tensor_parallel_size',\n '2'" in server) == (ranks == 2)
    replicas = list(folder.logs.glob("serve-replica_*RenderService*"))
    assert len(replicas) == 2, "two renderers"
    assert ModelFolder(target / "model").path == target / "model"


def mean_entropy(rows: list[dict]) -> float:  # type: ignore[type-arg]
    """Of the packaged policy over the image vocabulary, nats per token."""
    folder = ModelFolder("mini")
    policy, tokenizer, layout = folder.load_policy(), folder.load_tokenizer(), folder.layout
    prompts = [encode_prompt(tokenizer, row["prompt"], 2, layout) for row in rows]
    states = PolicySampler(policy, tokenizer.pad_token_id).hidden_states(
        prompts, torch.tensor([row["tokens"] for row in rows]), 2
    )
    return float(entropies(image_logits(policy, states[:, :-1])).mean())
