"""Supervised fine-tuning as a product: settings, a tiny real run, resuming, what is trained, several processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sft_runs import kill_in_the_fourth_step, weights

from blip3o_rl.data.synthetic.scene_prompts import train_prompts
from blip3o_rl.data.synthetic.scenes import draw, realise
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import PARTS, ModelFolder
from blip3o_rl.model.token_layout import encode_prompt
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.sft import launch as sft_launch
from blip3o_rl.sft.launch import compose_settings
from blip3o_rl.sft.model import SFTModel
from blip3o_rl.sft.run import SFTTrainer

RECIPE = "recipes/sft"
SMALL = ["model.folder=mini", "model.scales=[2]", "train.batch_size=2", "train.gradient_accumulation=1"]
SMALL += ["train.policy_lr=1e-3", "train.renderer_lr=1e-3", "train.warmup_ratio=0.5", "run.processes=1"]
SMALL += ["data.workers=0"]
LONGER = " in front of a plain wall, seen from the front, with nothing else in the image"
SAME = ("sft/loss", "sft/tokens", "sft/flow", "sft/grad_norm", "sft/lr", "sft/scale", "sft/epoch")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of 12 scenes of the mini model, with captions of different lengths; the last has no caption."""
    path = tmp_path_factory.mktemp("scenes") / "scenes.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number, line in enumerate(train_prompts(12, 0)):
            image = io.BytesIO()
            Image.fromarray(draw(realise(rng, line), 96)).save(image, "PNG")
            caption = line["prompt"] + LONGER * (number % 2)
            texts = {"txt": caption.encode()} if number < 11 else {}
            for kind, data in {"png": image.getvalue(), **texts}.items():
                info = tarfile.TarInfo(f"{number:03d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def overrides(folder: Path, scenes: Path, *more: str) -> list[str]:
    return [*SMALL, f"run.folder={folder}", f"data.files=[{scenes}]", *more]


def lines(folder: Path, *names: str) -> list[list[Any]]:
    return [[line[name] for name in ("step", *names)] for line in RunFolder(folder).read_metrics()]


def test_killed_and_resumed_makes_the_same_steps(tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["train.steps=4", "run.save_every=2", "train.trainable=caption", "train.gradient_checkpointing=true"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert sft_launch.launch(RECIPE, overrides(whole, scenes, *more)) == whole / "model"
    kill_in_the_fourth_step(monkeypatch)
    with pytest.raises(KeyboardInterrupt, match=f"blip3o-rl sft --resume {broken}$"):
        sft_launch.launch(RECIPE, overrides(broken, scenes, *more))
    assert [step for (step,) in lines(broken)] == [1, 2, 3]
    (broken / "checkpoints" / "checkpoint-3").mkdir()  # what a kill while saving leaves: a folder without its state
    moved = broken.rename(tmp_path / "moved")
    sft_launch.resume(moved, [])

    assert lines(moved, *SAME) == lines(whole, *SAME)
    assert [step for (step,) in lines(whole)] == [1, 2, 3, 4]
    trained, resumed = weights(whole), weights(moved)
    assert trained.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in trained.items())

    assert checkpoints.latest_step(whole / "checkpoints") == 4
    assert sorted(path.name for path in (moved / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert list((whole / "tensorboard").iterdir())
    with pytest.raises(UserError, match=r"has made 4 steps, train\.steps=4; raise train\.steps"):
        sft_launch.resume(whole, [])

    model = ModelFolder(whole / "model", *PARTS)
    assert str(model.index["base"]).startswith("blip3o_rl.mini"), "where the weights began is remembered"
    check_what_was_trained(trained)


def check_what_was_trained(trained: dict[str, torch.Tensor]) -> None:
    base = ModelFolder("mini")
    renderer = base.load_renderer().state_dict()
    for name, value in trained.items():
        part, _, key = name.removeprefix("renderer/").partition("/")
        if name.startswith("renderer/"):
            changed = not torch.equal(value.float(), renderer[f"{part}.{key}"])
            assert changed == (part == "connector" or (part == "transformer" and "caption" in key)), name
    policy = base.load_policy().state_dict()
    changed = {name for name, value in policy.items() if not torch.equal(value, trained.get(f"policy/{name}", value))}
    assert "model.embed_tokens.weight" in changed and "model.norm.weight" in changed
    assert sum("layers." in name for name in changed) == sum("layers." in name for name in policy)


def test_the_condition_is_the_states_of_scale_token_and_image_tokens(tmp_path: Path, scenes: Path) -> None:
    """Prompts of different lengths in one batch, each compared with its own states when it is alone.

    Upstream takes the last rows of a right-padded batch that ends with `<im_end><|im_end|>\\n`: for the longest
    prompt they are shifted by three, for shorter ones by their padding, too. That slice must not agree.
    """
    settings = compose_settings(RECIPE, overrides(tmp_path, scenes, "train.condition_drop=0.0", "train.batch_size=4"))
    trainer = SFTTrainer(settings, RunFolder(tmp_path / "run"), lambda step, metrics: None)
    item = trainer.train_dataset[0]
    examples = item["examples"]
    prompts = [encode_prompt(trainer.tokenizer, example.text, 2, trainer.layout) for example in examples]
    lengths = [len(prompt) for prompt in prompts]
    assert len(set(lengths)) > 1
    seen: list[torch.Tensor] = []
    trainer.renderer.connector.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model = trainer.model.eval()
    with torch.no_grad():
        model(trainer.encode(item), 0, 0)
    assert seen[0].shape[:2] == (4, 82)
    end = trainer.tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    for row, (prompt, example) in enumerate(zip(prompts, examples, strict=True)):
        tokens = trainer.layout.to_ids(trainer.image_tokenizer.tokenize([example.square], 2))[0]
        ids = torch.tensor([*prompt, *tokens.tolist()])
        assert ids[len(prompt) - 1] == trainer.layout.scale_token_id(2)
        with torch.no_grad():
            alone = model.policy.model(input_ids=ids[None]).last_hidden_state[0, -82:]
        assert torch.allclose(seen[0][row], alone, atol=2e-4), row
        tail = [trainer.layout.image_end_tag_id, *end, *[trainer.tokenizer.pad_token_id] * (max(lengths) - len(prompt))]
        padded = torch.cat([ids, torch.tensor(tail)])[None]
        with torch.no_grad():
            upstream = model.policy.model(input_ids=padded).last_hidden_state[0, -82:]
        assert not torch.allclose(seen[0][row], upstream, atol=0.1)


def test_accumulation_and_a_random_scale(tmp_path: Path, scenes: Path) -> None:
    """Two batches of two give the token loss of one batch of four; the scale follows from seed and step alone."""
    more = ["train.steps=3", "model.scales=[2,1]", "run.seed=5"]
    sft_launch.launch(RECIPE, overrides(tmp_path / "one", scenes, *more, "train.batch_size=4"))
    accumulated = ["train.gradient_accumulation=2", "data.workers=1"]
    sft_launch.launch(RECIPE, overrides(tmp_path / "two", scenes, *more, *accumulated))
    one, two = (lines(tmp_path / name, "sft/scale", "sft/images", "sft/tokens") for name in ("one", "two"))
    assert {scale for _, scale, _, _ in one} == {1, 2}
    assert [line[:3] for line in one] == [line[:3] for line in two]
    assert one[0][3] == pytest.approx(two[0][3], rel=1e-4)
    reported = (tmp_path / "one" / "logs" / "bad_pairs_0.jsonl").read_text().splitlines()
    assert [json.loads(line)["where"] for line in reported] == [f"{scenes}:011"]


REFUSED = [
    (["train.stepz=3"], "train.stepz: there is no such key; did you mean 'steps'?"),
    (["trian.steps=3"], "override 'trian.steps=3': there is no key trian.steps; did you mean 'train.steps'?"),
    (["train.accumulate=3"], "train.accumulate: was renamed; write gradient_accumulation"),
    (["train.steps=many"], "train.steps=many: must be a valid integer"),
    (["model.scales=2"], "model.scales=2: must be a valid list"),
    (["fast"], "override 'fast': not of the form key=value"),
    (["train.steps=0"], "train.steps=0: must be greater than or equal to 1"),
    (["train.condition_drop=2"], "train.condition_drop=2: must be less than or equal to 1"),
    (["train.trainable=some"], "train.trainable=some: must be 'caption', 'editing' or 'all'"),
    (["train.betas=[0.9]"], "train.betas.1: is missing"),
    (["model.scales=[3]"], "model.scales.0=3: must be 0, 1 or 2"),
    (["model.scales=[]"], "model.scales=[]: list should have at least 1 item"),
    (["model.scales=[0]", "data.max_tokens=700"], "data.max_tokens=700: an image of scale 0 alone has 729"),
    (["model.folder=/nowhere"], "model folder /nowhere: no such folder"),
    (["data.files=[]"], "data.files: empty"),
    (["data.files=/nowhere/*.tar"], "/nowhere/*.tar: there is no such file"),
]


@pytest.mark.parametrize(("more", "words"), REFUSED)
def test_what_is_refused_before_anything_starts(tmp_path: Path, scenes: Path, more: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        sft_launch.launch(RECIPE, overrides(tmp_path / "run", scenes, *more))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_recipes_of_ones_own_and_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [blip3o_sft, _self_]\ntrain: {steps: 7}\n")
    assert compose_settings(tmp_path, []).train.steps == 7
    (tmp_path / "config.yaml").write_text("defaults: [blip3o_sft, _self_]\ntrain: {stepz: 7}\n")
    with pytest.raises(UserError, match=r"train\.stepz: there is no such key; did you mean 'steps'\?"):
        compose_settings(tmp_path, [])
    with pytest.raises(UserError, match="is no recipe for blip3o-rl sft"):
        compose_settings("recipes/shapes", [])


def test_the_recipe_has_the_published_hyper_parameters() -> None:
    train = compose_settings(RECIPE, []).train
    rates = (train.policy_lr, train.renderer_lr, train.policy_lr * train.min_lr_ratio)
    assert rates == (5e-5, 5e-5, pytest.approx(1e-5))
    assert (train.warmup_ratio, train.weight_decay, train.betas, train.max_grad_norm) == (0.01, 0.0, (0.9, 0.999), 1.0)
    assert train.batch_size * train.gradient_accumulation * 8 == 512
    assert (train.diffusion_weight, train.condition_drop, train.trainable) == (1.0, 0.1, "caption")


def test_too_many_bad_pairs_end_the_run_in_one_line(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(UserError, match=r"scenes\.tar:011: no caption .*data\.max_bad=0") as error:
        sft_launch.launch(RECIPE, overrides(tmp_path / "run", scenes, "train.steps=6", "data.max_bad=0"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "model").exists()


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = SFTModel.forward

    def broken(*arguments: Any, **more: Any) -> Any:
        return {name: value * float("nan") for name, value in forward(*arguments, **more).items()}

    monkeypatch.setattr(SFTModel, "forward", broken)
    with pytest.raises(UserError, match="step 1: the loss or its gradient is not finite"):
        sft_launch.launch(RECIPE, overrides(tmp_path / "run", scenes, "train.steps=2", "run.save_every=1"))
    assert checkpoints.latest(tmp_path / "run" / "checkpoints") is None


WAITING = """
import os
import torch
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.sft import launch, trainer
launch._process_group()
made = trainer.arguments(RunFolder("unused"), 1)
timeout = torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
os.write(1, f"{made.world_size} {timeout}\\n".encode())  # in one piece: two processes write
"""


@pytest.mark.slow
def test_processes_wait_for_the_index_however_long_it_takes(tmp_path: Path) -> None:
    """The Trainer takes the process group that is there."""
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(tmp_path / "waiting.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [f"2 {sft_launch.PATIENCE}"] * 2


@pytest.mark.long
def test_two_processes_killed_and_resumed_make_the_steps_of_one(tmp_path: Path, scenes: Path) -> None:
    """Real processes over gloo, with different images, noise and dropped conditions, against one with accumulation."""
    more = ["train.steps=4", "run.save_every=2", "model.scales=[2,1]", "train.condition_drop=0.5"]
    sft_launch.launch(RECIPE, overrides(tmp_path / "one", scenes, *more, "train.gradient_accumulation=2"))
    command = [sys.executable, "-c", "from blip3o_rl.cli.sft import sft; import typer; typer.run(sft)"]
    start = [*command, RECIPE, *overrides(tmp_path / "two", scenes, *more), "run.processes=2"]
    first = subprocess.Popen(start, start_new_session=True)
    while len(lines(tmp_path / "two")) < 3 and first.poll() is None:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run([*command, "--resume", str(tmp_path / "two")], check=True)
    one, two = lines(tmp_path / "one", *SAME), lines(tmp_path / "two", *SAME)
    assert np.allclose(one, two, rtol=1e-4), (one, two)
    trained, shared = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert trained.keys() == shared.keys()
    assert all(torch.allclose(value, shared[name], atol=1e-4) for name, value in trained.items())
