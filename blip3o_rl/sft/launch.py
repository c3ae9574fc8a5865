"""Starts supervised fine-tuning: settings, checks, run folder, processes.

    blip3o-rl sft recipes/sft data.files=[pairs.tar]                    one process per GPU of this machine
    torchrun --nnodes 4 ... -m blip3o_rl.cli.main sft recipes/sft ...   several machines; accelerate launch does as well

A process that torchrun or accelerate started (they set RANK) is one of the workers; otherwise this module starts them,
as torchrun does. What is wrong with settings, model or data is reported before. A worker that fails ends the others.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from blip3o_rl.config import composition
from blip3o_rl.config.base import validate
from blip3o_rl.config.sft import SFT, SFTSettings
from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.report.checkpoints import latest_step
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.terminal import goes_on_with

PATIENCE = timedelta(hours=12)
"""How long processes wait for each other. The first one reads all data for its index, and the others wait."""


def launch(recipe: str, overrides: list[str]) -> Path:
    """Runs a recipe to its last step and returns the trained model folder.

    Raises:
        UserError: something the user can fix, before or (bad data, a loss that is not finite) during the run.
        KeyboardInterrupt: with the command that goes on with the run.
    """
    settings = compose_settings(recipe, overrides)
    from blip3o_rl.sft import preflight  # imports torch and datasets, so what needs neither comes first

    settings = preflight.check(settings)

    def create() -> RunFolder:
        folder = RunFolder.create(str(settings.run.recipe), path=settings.run.folder)
        write_text(folder.overrides, "\n".join([recipe, *overrides]) + "\n")
        return folder

    return _start(settings, create)


def resume(path: Path, overrides: list[str]) -> Path:
    """Continues a run from its last complete checkpoint, with its own settings and the overrides on top.

    Raises:
        UserError: no run of supervised fine-tuning, one that is finished, or a bad override.
    """
    folder = RunFolder.open(path)
    settings = load_settings(folder, overrides)
    done, steps, model = latest_step(folder.checkpoints), settings.train.steps, folder.path / "model"
    if done > steps or (done == steps and model.exists()):
        raise UserError(
            f"{folder.path}: has made {done} steps, train.steps={steps}; raise train.steps to go on (and move its "
            "model folder away)"
        )
    if model.exists():
        raise UserError(f"{model}: is there from before; move it away, the run writes a new one")
    from blip3o_rl.sft import preflight

    return _start(preflight.check(settings), lambda: folder)


def compose_settings(recipe: str | Path, overrides: list[str]) -> SFTSettings:
    """The settings of a recipe with its overrides.

    Raises:
        UserError: unknown recipe, a recipe of another kind, an unknown key, or a value that is not allowed.
    """
    return _validated(composition.compose(SFT, recipe, overrides))


def load_settings(folder: RunFolder, overrides: list[str]) -> SFTSettings:
    """The settings that a run wrote down, with overrides on top.

    Raises:
        UserError: the run is of another kind, or an override is wrong.
    """
    written = composition.read_yaml(folder.config)
    if set(written) != set(SFTSettings.model_fields):
        raise UserError(f"{folder.config}: is of no run of supervised fine-tuning; give a run folder of blip3o-rl sft")
    return _validated(composition.compose_stored(SFT, written, str(folder.config), overrides))


def _validated(config: object) -> SFTSettings:
    return validate(SFTSettings, composition.resolved(config), "")


def _start(settings: SFTSettings, create: Callable[[], RunFolder]) -> Path:
    def prepare() -> str:
        folder = create()
        values = settings.model_dump(mode="json")
        values["run"]["folder"] = str(folder.path)
        write_text(folder.config, OmegaConf.to_yaml(OmegaConf.create(values)))
        return str(folder.path)

    from blip3o_rl.sft.preflight import processes_here

    started_here = "RANK" not in os.environ
    folder = RunFolder(prepare() if started_here else _from_first_process(prepare))
    with goes_on_with("blip3o-rl", "sft", "--resume", str(folder.path)):
        if started_here and processes_here(settings) > 1:
            _spawn(folder, processes_here(settings))
        else:
            _work(str(folder.path))
    return folder.path / "model"


def _process_group() -> Any:
    """That of the run's processes. The Trainer's own, which is used only where there is none, ends after half an hour
    of waiting."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def _from_first_process(make: Callable[[], str]) -> str:
    from accelerate.utils import broadcast_object_list

    state = _process_group()
    return str(broadcast_object_list([make() if state.is_main_process else None])[0])


def _spawn(folder: RunFolder, processes: int) -> None:
    """Starts the workers on this machine and waits; when one fails, the others are ended."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
    )
    try:
        elastic_launch(config, _work)(str(folder.path))
    except SignalException as error:
        for number, handler in handlers.items():  # the agent has put its own in their place
            signal.signal(number, handler)
        signal.raise_signal(error.sigval)
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        kind, _, text = str(failure.message).partition(": ")
        if kind == UserError.__name__:
            raise UserError(text) from error
        raise


def _work(path: str) -> None:
    """A worker process."""
    from diffusers.utils.logging import disable_progress_bar as quiet_diffusers
    from transformers.utils.logging import disable_progress_bar as quiet_transformers

    from blip3o_rl.sft.run import fine_tune

    quiet_diffusers()
    quiet_transformers()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _process_group()
    folder = RunFolder(path)
    fine_tune(load_settings(folder, []), folder)
