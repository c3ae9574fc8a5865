"""What supervised fine-tuning leaves on the disk: checkpoints to resume from, and the trained model folder.

    checkpoints/global_step_N/weights/      trained weights and optimiser, by torch's distributed checkpoint
    checkpoints/global_step_N/data_R.json   process R: position in the data, bad pairs met so far
    checkpoints/global_step_N/complete.json written last; a folder without it does not count
    model/                                  the model folder of the last step

Frozen weights are in the model that the run began with and in no checkpoint. The weights are stored by name, so a run
can go on with another number of processes; its data then begin a new pass, because each process's share changes.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import state_dict as dcp_state

from blip3o_rl.checkpoint.staging import staged
from blip3o_rl.io import read_json, write_json
from blip3o_rl.model import folder as model_folder
from blip3o_rl.report.checkpoints import MARK, mark_complete
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.sft.pair_stream import Position

# One process saves and loads without a process group, on purpose.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

TRAINED = dcp_state.StateDictOptions(ignore_frozen_params=True)
LOADED = dcp_state.StateDictOptions(ignore_frozen_params=True, strict=False)
GATHERED = dcp_state.StateDictOptions(ignore_frozen_params=True, full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class DataState:
    """Where a process is in its data, and the bad pairs it met (where -> reason)."""

    position: Position = field(default_factory=Position)
    bad: dict[str, str] = field(default_factory=dict)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": dcp_state.get_model_state_dict(model, options=TRAINED),
        "optimizer": dcp_state.get_optimizer_state_dict(model, optimizer, options=TRAINED),
    }


def save(
    folder: RunFolder, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, data: DataState, keep: int
) -> None:
    """Writes the checkpoint of a step and deletes all but the newest `keep`; every process calls it."""
    state = PartialState()
    target = folder.checkpoints / f"global_step_{step}"
    if state.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    state.wait_for_everyone()
    dcp.save(_tensors(model, optimizer), checkpoint_id=target / "weights", no_dist=state.num_processes == 1)
    written = {"position": vars(data.position), "bad": data.bad}
    write_json(target / f"data_{state.process_index}.json", written)
    state.wait_for_everyone()
    if state.is_main_process:
        mark_complete(target, step, processes=state.num_processes)
        for _, old in folder.checkpoint_steps()[:-keep]:
            shutil.rmtree(old)


def restore(folder: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, DataState]:
    """Loads the newest complete checkpoint, if there is one; every process calls it.

    Returns:
        The finished steps, and where this process's data go on.
    """
    found = folder.checkpoint_steps()
    if not found:
        return 0, DataState()
    step, source = found[-1]
    state = PartialState()
    tensors = _tensors(model, optimizer)
    dcp.load(tensors, checkpoint_id=source / "weights", no_dist=state.num_processes == 1)
    dcp_state.set_model_state_dict(model, tensors["model"], options=LOADED)
    dcp_state.set_optimizer_state_dict(model, optimizer, tensors["optimizer"], options=LOADED)
    if read_json(source / MARK)["processes"] != state.num_processes:
        passes = [read_json(file)["position"]["epoch"] for file in source.glob("data_*.json")]
        return step, DataState(Position(max(passes) + 1))
    data = read_json(source / f"data_{state.process_index}.json")
    return step, DataState(Position(**data["position"]), data["bad"])


def write_model(folder: RunFolder, model: nn.Module, base: Path, tokenizer: Any, dtype: str) -> None:
    """Writes the trained model folder; every process calls it.

    Args:
        model: with the sub-modules `policy`, `connector` and `transformer`; their trained weights are taken.
        base: the model folder that the run began with; everything else is taken from it.
        dtype: `float32` or `bfloat16`, of the policy and the renderer.
    """
    state = PartialState()
    weights = dcp_state.get_model_state_dict(model, options=GATHERED)
    if state.is_main_process:
        precision = getattr(torch, dtype)
        policy, renderer = model_folder.load_policy(base, precision), model_folder.load_renderer(base, precision)
        parts = {"policy": policy, "connector": renderer.connector, "transformer": renderer.transformer}
        for name, part in parts.items():
            own = {key.partition(".")[2]: value for key, value in weights.items() if key.startswith(f"{name}.")}
            unexpected = part.load_state_dict(own, strict=False).unexpected_keys
            if not own or unexpected:
                raise ValueError(f"{name}: {len(own)} trained weights, unknown among them: {unexpected}")
        needed = sum(parameter.nbytes for part in (policy, renderer) for parameter in part.parameters())
        with staged(folder.path / "model", needed) as partial:
            model_folder.save(
                partial,
                policy=policy,
                tokenizer=tokenizer,
                renderer=renderer,
                image_tokenizer=base / "image_tokenizer",
                source=f"{folder.name}: supervised fine-tuning of {base.name}",
            )
    state.wait_for_everyone()
