"""A disk without room for a checkpoint or for unpacked data ends supervised fine-tuning with one line."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

import clusters
import pytest
import torch
from torch import nn

from blip3o_rl.errors import UserError
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.sft.pairs import Fields, index
from blip3o_rl.sft.trainer import Batches, LossTrainer, arguments

MIB = 2**20


class Tiny(nn.Module):
    """A checkpoint of it takes 3 MiB: its weights and Adam's two averages."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(MIB // 4))

    def forward(self, number: float) -> dict[str, torch.Tensor]:
        return {"loss": (number * self.weight).mean()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": 1e-3}]


@pytest.mark.parametrize("room", [2, 5], ids=["the first", "the second"])
def test_a_checkpoint_that_does_not_fit_ends_the_run_with_one_line(room: int, tmp_path: Path) -> None:
    with clusters.disk(tmp_path / "run", str(room * MIB)):
        folder = RunFolder.create("tiny", path=tmp_path / "run")
        args = arguments(folder, 3, save_steps=1, save_total_limit=2)
        trainer = LossTrainer(Tiny(), Batches(3, lambda number: {"number": 1.0 + number}), args, folder)
        with pytest.raises(
            UserError, match=r"checkpoints: the disk is full, a checkpoint needs 3.. MB, .* are free; make"
        ):
            trainer.fit()
        saved = [step for step, _ in checkpoints.all_of(folder.checkpoints)]
        assert saved == ([] if room == 2 else [1]) and checkpoints.latest_step(folder.checkpoints) == len(saved)


def test_a_tar_that_does_not_fit_when_it_is_unpacked_ends_the_run_and_leaves_nothing(tmp_path: Path) -> None:
    packed, image = tmp_path / "a.tar.gz", tmp_path / "image"
    image.write_bytes(os.urandom(2 * MIB))
    with gzip.open(packed, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(image, "1.png")
    with clusters.disk(tmp_path / "data", str(MIB)):
        with pytest.raises(UserError, match=r"a\.tar\.gz: not unpacked to .*No space left on device") as error:
            index([packed], tmp_path / "data", Fields())
        assert "\n" not in str(error.value) and not list((tmp_path / "data").iterdir())
