"""What tests of supervised fine-tuning share: a run that is killed, and the weights that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blip3o_rl.sft.model import SFTModel


def kill_in_the_fourth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run is interrupted in its fourth batch; a run that is resumed after it is not."""
    forward, calls = SFTModel.forward, []

    def killed(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*arguments, **more)

    monkeypatch.setattr(SFTModel, "forward", killed)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Part/name -> weight of the model folder of a run."""
    found = {}
    for file in sorted((folder / "model").rglob("*.safetensors")):
        part = file.parent.relative_to(folder / "model")
        found |= {f"{part}/{name}": value for name, value in load_file(file).items()}
    return found
