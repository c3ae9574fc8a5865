"""Starts supervised fine-tuning: settings, checks, run folder, processes.

    blip3o-rl sft recipes/sft data.files=[pairs.tar]                  one process a GPU of this machine
    torchrun --nnodes 4 ... -m blip3o_rl.cli.main sft recipes/sft ...   several machines; accelerate launch does as well

A process that finds itself started by torchrun or accelerate (they set RANK) is one of the workers; otherwise this
module starts them. What is wrong with settings, model or data is said before. A worker that fails ends the others.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf

from blip3o_rl.config.sft import Settings, check, compose_settings, load_settings
from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.report.run_folder import RunFolder

FAILURE = "user_error.txt"
"""In the run's logs: what a worker process found that the user can mend."""


def launch(recipe: str, overrides: list[str]) -> Path:
    """Runs a recipe to its last step.

    Returns:
        The trained model folder.

    Raises:
        UserError: something the user can mend, before or (bad data, a loss that is not finite) during the run.
    """
    settings = compose_settings(recipe, overrides)
    check(settings)

    def create() -> str:
        folder = RunFolder.create(str(settings.run.recipe), path=settings.run.folder)
        write_text(folder.overrides, "\n".join([recipe, *overrides]) + "\n")
        return str(folder.path)

    return _start(settings, create)


def resume(path: Path, overrides: list[str]) -> Path:
    """Continues a run from its last complete checkpoint, with its own settings and the overrides on top.

    Raises:
        UserError: no run of supervised fine-tuning, one that is finished, or a bad override.
    """
    folder = RunFolder.open(path)
    settings = load_settings(folder.config, overrides)
    done = max((step for step, _ in folder.checkpoint_steps()), default=0)
    if done > settings.train.steps or (done == settings.train.steps and (folder.path / "model").exists()):
        raise UserError(
            f"{folder.path}: has made {done} steps, train.steps={settings.train.steps}; raise train.steps to go on "
            "(and move its model folder away)"
        )
    if (folder.path / "model").exists():
        raise UserError(f"{folder.path / 'model'}: is there from before; move it away, the run writes a new one")
    check(settings)
    return _start(settings, lambda: str(folder.path))


def _start(settings: Settings, create: Callable[[], str]) -> Path:
    if "RANK" in os.environ:
        folder = RunFolder(_agreed(create))
        _write_settings(settings, folder)
        _train(folder, settings)
        return folder.path / "model"
    processes = settings.run.processes or max(1, torch.cuda.device_count())
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(f"run.processes={processes}: this machine has {torch.cuda.device_count()} GPUs, one a process")
    folder = RunFolder(create())
    _write_settings(settings, folder)
    if processes == 1:
        _train(folder, settings)
    else:
        _spawn(folder, processes)
    return folder.path / "model"


def _write_settings(settings: Settings, folder: RunFolder) -> None:
    settings.run.folder = str(folder.path)
    if int(os.environ.get("RANK", 0)) == 0:
        write_text(folder.config, OmegaConf.to_yaml(OmegaConf.create(asdict(settings))))


def _agreed(create: Callable[[], str]) -> str:
    """The run folder that the first process made, on all of them."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=not torch.cuda.is_available())
    made: list[str | None] = [create() if state.is_main_process else None]
    agreed = broadcast_object_list(made)[0]
    assert agreed is not None
    return agreed


def _train(folder: RunFolder, settings: Settings) -> None:
    from blip3o_rl.sft.worker import Worker

    Worker(settings, folder).run()


def _spawn(folder: RunFolder, processes: int) -> None:
    """Starts the workers on this machine and waits; when one fails, the others are ended."""
    from torch import multiprocessing

    (folder.logs / FAILURE).unlink(missing_ok=True)
    arguments = (str(folder.path), processes, _free_port())
    context = multiprocessing.start_processes(_worker, arguments, nprocs=processes, join=False, start_method="spawn")
    try:
        while not context.join():
            pass
    except multiprocessing.ProcessExitedException as error:
        if (folder.logs / FAILURE).is_file():
            raise UserError((folder.logs / FAILURE).read_text().strip()) from error
        raise
    except KeyboardInterrupt:
        for process in context.processes:
            process.terminate()
        raise


def _worker(rank: int, path: str, processes: int, port: int) -> None:
    """Entry of a spawned worker."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folder = RunFolder(path)
    try:
        _train(folder, load_settings(folder.config, []))
    except UserError as error:
        write_text(folder.logs / FAILURE, f"{error}\n")
        raise SystemExit(2) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
