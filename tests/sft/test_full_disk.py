"""A checkpoint that does not fit on the disk ends supervised fine-tuning with one line; the one before stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clusters
import pytest
import torch
from torch import nn

from blip3o_rl.errors import UserError
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder
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
