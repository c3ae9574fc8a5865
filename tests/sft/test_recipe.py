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
from safetensors.torch import load_file

from blip3o_rl.config.sft import compose_settings
from blip3o_rl.data.synthetic.scene_prompts import train_prompts
from blip3o_rl.data.synthetic.scenes import draw, realise
from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.token_layout import encode_prompt
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.sft import launch as sft_launch
from blip3o_rl.sft import worker as sft_worker
from blip3o_rl.sft.checkpoints import DataState

RECIPE = "recipes/sft"
SMALL = ["model.folder=mini", "model.scales=[2]", "train.batch_size=2", "train.accumulate=1", "train.warmup=0.5"]
SMALL += ["train.policy_lr=1e-3", "train.renderer_lr=1e-3", "run.processes=1", "data.threads=1"]
LONGER = " in front of a plain wall, seen from the front, with nothing else in the picture"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of 12 scenes of the mini model, with captions of different lengths; the last has no caption."""
    path = tmp_path_factory.mktemp("scenes") / "scenes.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number, line in enumerate(train_prompts(12, 0)):
            picture = io.BytesIO()
            Image.fromarray(draw(realise(rng, line), 96)).save(picture, "PNG")
            caption = line["prompt"] + LONGER * (number % 2)
            texts = {"txt": caption.encode()} if number < 11 else {}
            for kind, data in {"png": picture.getvalue(), **texts}.items():
                info = tarfile.TarInfo(f"{number:03d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def overrides(folder: Path, scenes: Path, *more: str) -> list[str]:
    return [*SMALL, f"run.folder={folder}", f"data.files=[{scenes}]", *more]


def lines(folder: Path, *names: str) -> list[list[Any]]:
    return [[line[name] for name in ("step", *names)] for line in RunFolder(folder).read_metrics()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted((folder / "model").rglob("*.safetensors")):
        part = file.parent.relative_to(folder / "model")
        found |= {f"{part}/{name}": value for name, value in load_file(file).items()}
    return found


def test_killed_and_resumed_makes_the_same_steps(tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["train.steps=4", "run.save_every=2", "train.trainable=caption", "train.gradient_checkpointing=true"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert sft_launch.launch(RECIPE, overrides(whole, scenes, *more)) == whole / "model"
    forward, calls = sft_worker.SFTModule.forward, []

    def killed_in_the_fourth(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(sft_worker.SFTModule, "forward", killed_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        sft_launch.launch(RECIPE, overrides(broken, scenes, *more))
    assert [step for (step,) in lines(broken)] == [1, 2, 3]
    (broken / "checkpoints" / "global_step_3").mkdir()  # what a kill while saving leaves: a folder without its mark
    sft_launch.resume(broken, [])

    same = ("sft/loss", "sft/tokens", "sft/flow", "sft/grad_norm", "sft/lr", "sft/scale")
    assert lines(broken, *same) == lines(whole, *same)
    assert [step for (step,) in lines(whole)] == [1, 2, 3, 4]
    trained, resumed = weights(whole), weights(broken)
    assert trained.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in trained.items())

    assert [step for step, _ in RunFolder(whole).checkpoint_steps()] == [2, 4]
    assert (whole / "loss.png").stat().st_size > 1000
    assert list((whole / "tensorboard").iterdir())
    with pytest.raises(UserError, match=r"has made 4 steps, train\.steps=4; raise train\.steps"):
        sft_launch.resume(whole, [])

    model_folder.check(whole / "model", model_folder.PARTS)
    check_what_was_trained(trained)


def check_what_was_trained(trained: dict[str, torch.Tensor]) -> None:
    base = model_folder.resolve("mini")
    renderer = model_folder.load_renderer(base).state_dict()
    for name, value in trained.items():
        part, _, key = name.removeprefix("renderer/").partition("/")
        if name.startswith("renderer/"):
            changed = not torch.equal(value.float(), renderer[f"{part}.{key}"])
            assert changed == (part == "connector" or (part == "transformer" and "caption" in key)), name
    policy = model_folder.load_policy(base).state_dict()
    changed = {name for name, value in policy.items() if not torch.equal(value, trained.get(f"policy/{name}", value))}
    assert "model.embed_tokens.weight" in changed and "model.norm.weight" in changed
    assert sum("layers." in name for name in changed) == sum("layers." in name for name in policy)


def test_the_condition_is_the_states_of_scale_token_and_image_tokens(tmp_path: Path, scenes: Path) -> None:
    """Prompts of different lengths in one batch, each compared with its own states when it is alone.

    The original takes the last rows of a right-padded batch that ends with `<im_end><|im_end|>\\n`: for the longest
    prompt they are shifted by three, for shorter ones by their padding, too. That slice must not agree.
    """
    settings = compose_settings(RECIPE, overrides(tmp_path / "run", scenes, "train.condition_drop=0.0"))
    worker = sft_worker.Worker(settings, RunFolder.create("sft", path=tmp_path / "run"))
    stream = worker._stream(DataState())
    examples = stream.take(4)
    stream.close()
    assert len({len(example.prompt) for example in examples}) > 1
    seen: list[torch.Tensor] = []
    worker.renderer.connector.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    batch = worker._encode(examples, scale=2)
    with torch.no_grad():
        worker.model(batch, torch.Generator().manual_seed(0))
    assert seen[0].shape[:2] == (4, 82)
    end = worker.tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    longest = max(len(example.prompt) for example in examples)
    for row, example in enumerate(examples):
        prompt = encode_prompt(worker.tokenizer, example.pair.caption, 2, worker.layout)
        tokens = worker.layout.to_ids(worker.image_tokenizer.tokenize([example.pair.square], 2))[0]
        ids = torch.tensor([*prompt, *tokens.tolist()])
        assert ids[len(prompt) - 1] == worker.layout.scale_token_id(2)
        with torch.no_grad():
            alone = worker.model.policy.model(input_ids=ids[None]).last_hidden_state[0, -82:]
        assert torch.allclose(seen[0][row], alone, atol=2e-4), example.pair.caption
        tail = [worker.layout.image_end_tag_id, *end, *[worker.tokenizer.pad_token_id] * (longest - len(prompt))]
        padded = torch.cat([ids, torch.tensor(tail)])[None]
        with torch.no_grad():
            original = worker.model.policy.model(input_ids=padded).last_hidden_state[0, -82:]
        assert not torch.allclose(seen[0][row], original, atol=0.1)


def test_accumulation_and_a_random_scale(tmp_path: Path, scenes: Path) -> None:
    """Two batches of two give the token loss of one batch of four; the scale follows from seed and step alone."""
    more = ["train.steps=3", "model.scales=[2,1]", "run.seed=5"]
    sft_launch.launch(RECIPE, overrides(tmp_path / "one", scenes, *more, "train.batch_size=4"))
    sft_launch.launch(RECIPE, overrides(tmp_path / "two", scenes, *more, "train.accumulate=2"))
    one, two = (lines(tmp_path / name, "sft/scale", "sft/pictures", "sft/tokens") for name in ("one", "two"))
    assert {scale for _, scale, _, _ in one} == {1, 2}
    assert [line[:3] for line in one] == [line[:3] for line in two]
    assert one[0][3] == pytest.approx(two[0][3], rel=1e-4)
    reported = (tmp_path / "one" / "logs" / "bad_pairs_0.jsonl").read_text().splitlines()
    assert [json.loads(line)["where"] for line in reported] == [f"{scenes}:011"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["train.stepz=3"], "override 'train.stepz=3': there is no key train.stepz; did you mean train.steps?"),
        (["train.steps=many"], "override 'train.steps=many': train.steps: Value 'many'"),
        (["model.scales=2"], "model.scales: must be a list, such as [2]"),
        (["fast"], "override 'fast': not of the form key=value"),
        (["train.steps=0"], "train.steps=0: must be at least 1"),
        (["train.condition_drop=2"], "train.condition_drop=2.0: is a share"),
        (["train.trainable=some"], "train.trainable=some: must be caption or all"),
        (["train.betas=[0.9]"], "train.betas=[0.9]: must be two numbers"),
        (["model.scales=[3]"], "scale=3: must be one of 0, 1, 2"),
        (["model.scales=[]"], "model.scales=[]: name at least one"),
        (["model.scales=[0]", "data.max_tokens=700"], "data.max_tokens=700: a picture of scale 0 alone has 729"),
        (["model.folder=/nowhere"], "model folder /nowhere: no such folder"),
        (["data.files=[]"], "data.files: empty"),
        (["data.files=/nowhere/*.tar"], "/nowhere/*.tar: there is no such file"),
    ],
)
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
    with pytest.raises(UserError, match=r"config\.yaml: there is no key train\.stepz; did you mean train\.steps\?"):
        compose_settings(tmp_path, [])
    with pytest.raises(UserError, match="no recipe of supervised fine-tuning"):
        compose_settings("recipes/shapes", [])


def test_the_recipe_has_the_published_hyper_parameters() -> None:
    train = compose_settings(RECIPE, []).train
    assert (train.policy_lr, train.renderer_lr, train.policy_lr * train.final_lr) == (5e-5, 5e-5, pytest.approx(1e-5))
    assert (train.warmup, train.weight_decay, train.betas, train.clip) == (0.01, 0.0, [0.9, 0.999], 1.0)
    assert train.batch_size * train.accumulate * 8 == 512
    assert (train.diffusion_weight, train.condition_drop, train.trainable) == (1.0, 0.1, "caption")


def test_too_many_bad_pairs_end_the_run_in_one_line(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(UserError, match=r"scenes\.tar:011: no caption .*data\.max_bad=0") as error:
        sft_launch.launch(RECIPE, overrides(tmp_path / "run", scenes, "train.steps=6", "data.max_bad=0"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "model").exists()


def one_pair(folder: Path) -> Path:
    """Many copies of one pair: whatever the processes draw, their batches are equal."""
    Image.fromarray(draw(realise(np.random.default_rng(1), train_prompts(1, 1)[0]), 64)).save(folder / "x.png")
    path = folder / "same.jsonl"
    path.write_text('{"image": "x.png", "caption": "a photo of a circle"}\n' * 40)
    return path


@pytest.mark.long
def test_two_processes_share_the_weights_and_make_the_steps_of_one(tmp_path: Path) -> None:
    """Real processes over gloo, sharded. With equal batches and no noise the losses are those of one process."""
    data = one_pair(tmp_path)
    more = ["train.steps=4", "run.save_every=2", "train.diffusion_weight=0.0"]
    sft_launch.launch(RECIPE, overrides(tmp_path / "one", data, *more))
    command = [sys.executable, "-c", "from blip3o_rl.cli.sft import sft; import typer; typer.run(sft)"]
    start = [*command, RECIPE, *overrides(tmp_path / "two", data, *more), "run.processes=2"]
    first = subprocess.Popen(start, start_new_session=True)
    while len(lines(tmp_path / "two")) < 3 and first.poll() is None:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run([*command, "--resume", str(tmp_path / "two")], check=True)
    one, two = lines(tmp_path / "one", "sft/tokens"), lines(tmp_path / "two", "sft/tokens")
    assert np.allclose(one, two, rtol=1e-3)
    assert two[-1][1] < two[0][1]
    trained, sharded = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert trained.keys() == sharded.keys()
    assert all(torch.allclose(value, sharded[name], atol=2e-3) for name, value in trained.items())
