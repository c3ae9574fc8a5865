"""What the machine must have before supervised fine-tuning starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blip3o_rl import machine
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import PARTS, ModelFolder
from blip3o_rl.sft import launch
from blip3o_rl.sft.launch import compose_settings
from blip3o_rl.sft.preflight import needs, processes_here


def needs_of(*overrides: str) -> machine.Needs:
    return needs(compose_settings("recipes/sft", list(overrides)), ModelFolder("mini", *PARTS).path)


def test_weights_are_counted_in_float32_whatever_they_are_stored_in(tmp_path: Path) -> None:
    """The packaged model is stored in float16."""
    base = ModelFolder("mini", *PARTS)
    policy = sum(parameter.numel() for parameter in base.load_policy().parameters())
    assert machine.float32_gib(base.path / "policy") * machine.GIB == 4 * policy
    assert machine.float32_gib(base.path / "nothing") == 0
    (tmp_path / "cut.safetensors").write_bytes((base.path / "policy" / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.safetensors: truncated"):
        machine.float32_gib(tmp_path)


def test_needs_grow_with_processes_workers_and_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one, two = needs_of("run.processes=1"), needs_of("run.processes=2")
    assert 1.6 < (two.memory_gib / one.memory_gib) < 2
    assert two.shared_gib == 2 * one.shared_gib and two.disk_gib == one.disk_gib
    batch = 2 * 16 * 3 * 64 * 64 * 4  # an edit has two images, and `mini` edits
    assert needs_of("data.workers=3", "run.processes=1").shared_gib == pytest.approx(3 * 2 * batch / machine.GIB)
    assert needs_of("data.workers=0").shared_gib == 0
    assert needs_of("run.keep=1").disk_gib < one.disk_gib
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert needs_of("run.processes=1").memory_gib < one.memory_gib, "gradients and optimizer are on the GPU"


def test_checkpoints_hold_what_is_trained_and_those_that_are_there_need_no_more_room(tmp_path: Path) -> None:
    """The caption layers are a thirtieth of SANA's weights in `mini`."""
    few = ("run.save_every=1", "train.steps=9", "run.keep=2", f"run.folder={tmp_path}")
    kinds = ("trainable=caption", "trainable=editing", "trainable=all", "diffusion_weight=0")
    caption, editing, whole, policy = (needs_of(*few, f"train.{kind}").disk_gib for kind in kinds)
    assert policy < caption < editing < whole
    sana = machine.float32_gib(ModelFolder("mini", *PARTS).path / "renderer/transformer")
    assert whole - caption == pytest.approx(9 * sana, rel=0.1)
    assert needs_of(*few, "run.save_every=9").disk_gib < caption, "it is saved once"
    for step in (1, 2):
        saved = tmp_path / "checkpoints" / f"checkpoint-{step}"
        saved.mkdir(parents=True)
        (saved / "trainer_state.json").write_text('{"global_step": 1}')
    one = needs_of(*few, "run.save_every=9").disk_gib
    assert needs_of(*few).disk_gib == one < caption


def test_processes_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes_here(compose_settings("recipes/sft", [])) == 2
    with pytest.raises(UserError, match=r"run\.processes=3: this machine has 2 GPUs"):
        processes_here(compose_settings("recipes/sft", ["run.processes=3"]))
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_here(compose_settings("recipes/sft", ["run.processes=3"])) == 4


@pytest.mark.parametrize(
    ("free", "words"),
    [
        ({"memory_gib": 0.5}, r"^memory: 0\.5 GiB free, about [\d.]+ GiB are needed; close other programs"),
        ({"disk_gib": 0.01}, "^disk: 0.0 GiB free"),
        ({"shared": 0.0}, "^/dev/shm: 0.0 GiB free.*shm-size"),
    ],
)
def test_a_machine_that_is_too_small_is_refused_before_the_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: dict[str, float], words: str
) -> None:
    found: dict[str, Any] = {"memory_gib": 64.0, "disk_gib": 64.0} | free
    monkeypatch.setattr(machine, "memory_gib", lambda: found["memory_gib"])
    monkeypatch.setattr(machine, "disk_gib", lambda folder: found["disk_gib"])
    if "shared" in free:
        usage = machine.shutil.disk_usage("/")._replace(free=0)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    more = ["model.folder=mini", "model.scales=[2]", f"run.folder={tmp_path / 'run'}", "data.files=[/nowhere.tar]"]
    with pytest.raises(UserError, match=words):
        launch.launch("recipes/sft", more)
    assert not (tmp_path / "run").exists()
