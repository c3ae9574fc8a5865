"""Experiment trackers (`trainer.logger`): what they get to know about a run, and the image grids that they get.

verl's `Tracking` sends the numbers of each step from the trainer's process. It has no place for images of a step, so
the grids that the recorder writes are sent after them (`compat.verl.grids_to_trackers`). A tracker without an address
of its own keeps its files in the run folder. TensorBoard is not here: the recorder writes to it itself.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from blip3o_rl.errors import UserError
from blip3o_rl.report.run_folder import RunFolder

NAME = "rollouts"
OFFLINE = ("offline", "disabled", "dryrun")
"""Values of WANDB_MODE in which W&B needs no key."""


def _wandb(file: Path, caption: str, step: int) -> None:
    import wandb

    wandb.log({NAME: wandb.Image(str(file), caption=caption)}, step=step)


def _trackio(file: Path, caption: str, step: int) -> None:
    import trackio

    trackio.log({NAME: trackio.Image(str(file), caption=caption)}, step=step)


def _swanlab(file: Path, caption: str, step: int) -> None:
    import swanlab

    swanlab.log({NAME: swanlab.Image(str(file), caption=caption)}, step=step)


def _mlflow(file: Path, caption: str, step: int) -> None:
    import mlflow

    mlflow.log_artifact(str(file), NAME)


SENDERS: dict[str, Callable[[Path, str, int], None]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "swanlab": _swanlab,
    "mlflow": _mlflow,
}


class GridSender:
    """Sends each new grid of a run once. What lies there already, of the steps before a resume, was sent before."""

    def __init__(self, folder: Path):
        self.folder = RunFolder(folder)
        self._sent = {step for step, _ in self.folder.grids()}

    def send(self, trackers: Collection[str], step: int) -> None:
        """Sends the new grids to those of the trackers that take images; a failure is a warning in the log."""
        for of_step, file in self.folder.grids():
            if of_step in self._sent:
                continue
            self._sent.add(of_step)
            for name in SENDERS.keys() & set(trackers):
                try:
                    SENDERS[name](file, f"step {of_step}", step)
                except Exception as error:  # a lost image must not end a run
                    logging.getLogger(__name__).warning("%s did not take %s: %s", name, file, error)


def check(trackers: Collection[str]) -> None:
    """Refuses what would end a run when everything has been started.

    Raises:
        UserError: a tracker that is not installed, or W&B without a key.
    """
    for name in trackers:
        if name not in ("file", "console") and find_spec(name) is None:
            raise UserError(f"trainer.logger: the tracker {name} is not installed; pip install {name}, or leave it out")
    if "wandb" not in trackers or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in OFFLINE:
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        known = None
    if not known:
        raise UserError(f"trainer.logger: wandb has no key for {host}; wandb login, or set WANDB_MODE=offline")


def environment(trackers: Collection[str], folder: RunFolder) -> dict[str, str]:
    """What the trackers read in every process of a run: where they keep files, and what the user has set for them."""
    places = {
        "wandb": {"WANDB_DIR": str(folder.path)},
        "swanlab": {"SWANLAB_LOG_DIR": str(folder.path / "swanlog")},
        "mlflow": {"MLFLOW_TRACKING_URI": f"sqlite:///{folder.path / 'mlflow.db'}"},
        "trackio": {"TRACKIO_DIR": str(folder.path / "trackio")},
        "clearml": {},
    }
    found: dict[str, str] = {}
    for name in places.keys() & set(trackers):
        found |= places[name]
        found |= {key: value for key, value in os.environ.items() if key.startswith(f"{name.upper()}_")}
    return found
