"""A run on edits and text-to-image together, with real verl, vLLM, Ray and Ray Serve; about two minutes on two cores.

The models are the packaged one with an untrained reference connector: the arithmetic is that of editing models, what
they make of a reference is not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import watch
from editing import POLICY_ONLY, edit_row, editing_copy, write_rows

from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.io import read_json, read_lines
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.rollout.render_service import noise_seed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
REWARD = '''
import numpy as np

def kept(sample):
    """How much of the reference is kept, 0..1, after a look at whether it is the right one."""
    names = sample.metadata.get("references", [])
    if not names:
        assert sample.references == (), "text-to-image has no reference"
        return float(sample.image.mean() / 255)
    (reference,) = sample.references
    expected = np.random.default_rng(int(names[0].removesuffix(".png"))).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(reference, expected), "the reference of another prompt"
    return 1 - float(np.abs(sample.image.astype(int) - reference).mean() / 255)
'''


@pytest.mark.parametrize(
    "uses", [POLICY_ONLY, pytest.param({}, marks=pytest.mark.long)], ids=["policy only", "latents"]
)
def test_edits_and_text_to_image_are_trained_together(uses: dict[str, bool], tmp_path: Path) -> None:
    model, target = editing_copy("mini", tmp_path / "model", **uses), tmp_path / "run"
    for seed in (1, 2, 3):
        edit_row(tmp_path, "x", seed)
    edits = [{"prompt": "make the circle red", "references": [f"{seed}.png"]} for seed in (1, 2)]
    prompts = write_rows(tmp_path / "p.jsonl", {"prompt": "a photo of a red circle"}, *edits, {"prompt": "two squares"})
    held_out = write_rows(
        tmp_path / "e.jsonl", {"prompt": "a star"}, {"prompt": "make the circle red", "references": ["3.png"]}
    )
    (tmp_path / "mine.py").write_text(REWARD)
    words = [
        *("train", "recipes/shapes", f"model.folder={model}", f"run.folder={target}", f"prompts.file={prompts}"),
        *(f"eval.prompts={held_out}", "eval.images_per_prompt=1", "~reward.rewards.geneval"),
        *(f"reward.rewards.mine.path={tmp_path / 'mine.py'}:kept", "reward.rewards.mine.on_error=stop"),
        *("data.train_batch_size=4", "actor_rollout_ref.rollout.n=4", "render.steps=2", "run.images_every=1"),
        *("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4", "trainer.total_training_steps=2"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"}
    done = watch.run([str(BIN / "blip3o-rl"), *words], REPOSITORY, environment, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]

    folder = RunFolder.open(target)
    _, *lines = folder.read_metrics()  # the first is of the evaluation before training
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert abs(line["rollout_corr/log_ppl_diff_max"]) < 1e-3, "sampler and trainer disagree on an edit's prompt"
        assert line["rollout/failed"] == 0
        assert 0 < line["reward/mine"] < 1
    for step in (1, 2):
        rows = read_lines(folder.rollout_file(step))
        assert len(rows) == 16 and folder.grid(step).is_file()
        expected = {row.key: noise_seed(1, step, row.key, 0, "group") for row in read_prompts(prompts)}
        assert {row["seed"] for row in rows} == set(expected.values()), "each prompt and reference has its own noise"
        named = [tuple(row.get("references", ())) for row in rows]
        assert {name: named.count(name) for name in named} == {(): 8, ("1.png",): 4, ("2.png",): 4}
    for file in (folder.eval_before, folder.eval_after):
        images = read_json(file)["images"]
        assert [image["prompt"] for image in images] == ["a star", "make the circle red"]
        assert all(image["partial"] is not None for image in images)
        assert images[0]["references"] == [] and (folder.path / images[1]["references"][0]).is_file()
    assert folder.page.is_file()
