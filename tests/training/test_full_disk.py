"""A full disk ends a run with one line, and costs the checkpoint that was being written and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clusters
import pytest
import torch

from blip3o_rl import machine
from blip3o_rl.errors import UserError
from blip3o_rl.report import checkpoints
from blip3o_rl.training import checkpoints as training_checkpoints

MIB = 2**20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A run folder's checkpoints/ on a disk of 5 MiB."""
    with clusters.disk(tmp_path / "disk", str(5 * MIB)):
        (tmp_path / "disk" / "checkpoints").mkdir()
        yield tmp_path / "disk" / "checkpoints"


@pytest.fixture
def save(small: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What verl's trainer calls, with 2 MiB in a checkpoint that torch writes."""
    from verl.trainer.ppo.v1 import PPOTrainer

    def save_checkpoint(self: Any) -> None:
        checkpoint = small / f"global_step_{self.global_steps}"
        (checkpoint / "actor").mkdir(parents=True)
        torch.save(torch.zeros(2 * MIB // 4), checkpoint / "actor" / "model.pt")
        if self.global_steps == 13:
            raise ValueError("not of the disk")
        checkpoints.mark_complete(checkpoint, self.global_steps)

    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", save_checkpoint)
    training_checkpoints.save_within_room()

    def save(step: int, keep: int | None = 2) -> None:
        trainer = SimpleNamespace(default_local_dir=str(small), max_actor_ckpt_to_keep=keep)
        model = SimpleNamespace(model=SimpleNamespace(path=str(small)))
        config = SimpleNamespace(trainer=trainer, actor_rollout_ref=model)
        PPOTrainer._save_checkpoint(SimpleNamespace(config=config, global_steps=step))

    return save


def test_the_line_names_the_folder_and_both_sizes_and_nothing_half_written_is_left(save: Any, small: Path) -> None:
    save(1, keep=None)
    save(2, keep=None)
    with pytest.raises(UserError) as error:
        save(3, keep=None)
    assert str(error.value).startswith(f"{small}: the disk is full, a checkpoint needs 2.1 MB, 1.0 MB are free; make")
    assert [step for step, _ in checkpoints.all_of(small)] == [1, 2] and checkpoints.latest_step(small) == 2
    assert torch.load(small / "global_step_2" / "actor" / "model.pt").shape == (2 * MIB // 4,)


def test_the_first_one_is_measured_by_the_policy(save: Any, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "float32_gib", lambda folder: 2 * MIB / machine.GIB)
    (small.parent / "other").write_bytes(bytes(4 * MIB))
    with pytest.raises(UserError, match=r"a checkpoint needs 8.4 MB, 1.0 MB are free"):
        save(1)
    assert not checkpoints.all_of(small)


def test_checkpoints_of_the_process_before_make_room(save: Any, small: Path) -> None:
    for step in range(1, 8):
        save(step)
    assert [step for step, _ in checkpoints.all_of(small)] == [6, 7]


def test_another_failure_is_not_called_a_full_disk(save: Any, small: Path) -> None:
    save(12, keep=1)
    with pytest.raises(ValueError, match="not of the disk"):
        save(13, keep=1)
    assert checkpoints.latest_step(small) == 12
