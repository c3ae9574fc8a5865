"""What a run was started with, stored so that it can be resumed from anywhere.

`config.yaml` holds the composed configuration before anything is derived from the machine or the installation: files by
absolute path, what ships with the package (`mini`) by its name. `inputs.json` holds the SHA-256 of those files.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from blip3o_rl.config.composition import read_yaml
from blip3o_rl.config.train import compose_run
from blip3o_rl.data.sources import SOURCES
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json, sha256, write_json, write_text
from blip3o_rl.model import folder as model_folder
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.stores import local, upload
from blip3o_rl.training import given_cluster

INPUTS = "inputs.json"


def store(config: DictConfig, folder: RunFolder) -> None:
    """Writes the configuration down, with its paths made absolute in place; of an address, its copy is the run's."""
    config.run.folder = str(folder.path)
    if config.model.folder not in model_folder.PACKAGED:
        config.model.folder = str(_kept(config.model.folder))
    inputs = []
    for group, key in (("prompts", "file"), ("eval", "prompts")):
        if config[group][key] is not None and config[group][key] not in SOURCES:
            inputs.append(_kept(config[group][key]))
            config[group][key] = str(inputs[-1])
    for entry in (*config.reward.rewards.values(), *config.eval.rewards.values()):
        if entry and entry.get("path") is not None:
            file, _, function = str(entry.path).rpartition(":")
            inputs.append(_kept(file))
            entry.path = f"{inputs[-1]}:{function}"
    write_json(folder.path / INPUTS, {str(file): sha256(file) for file in inputs})
    write_text(folder.config, OmegaConf.to_yaml(config))


def resumed(folder: RunFolder, overrides: list[str]) -> DictConfig:
    """The configuration to resume a run with."""
    config = composed(folder, overrides)
    config.run.folder = str(folder.path)
    return config


def composed(folder: RunFolder, overrides: list[str]) -> DictConfig:
    """A run's configuration with overrides on top."""
    if not folder.config.is_file():
        raise UserError(f"{folder.config}: missing, so the run cannot be continued as it was; start a new one")
    return compose_run(read_yaml(folder.config), str(folder.config), overrides)


def uploaded(folder: RunFolder) -> str:
    """Copies a run that has ended to where `run.upload` says, and returns the address; empty where it says nothing."""
    target = read_yaml(folder.config)["run"].get("upload")
    return upload(folder.path, target) if target else ""


def changed_inputs(folder: RunFolder) -> list[str]:
    """The files that have another content than when the run was started."""
    file = folder.path / INPUTS
    stored: dict[str, str] = read_json(file) if file.is_file() else {}
    return [path for path, digest in stored.items() if Path(path).is_file() and sha256(Path(path)) != digest]


def _kept(path: str) -> Path:
    """The absolute path; in a Ray job what travelled with it keeps its path in the working directory, which the next
    job of the run has elsewhere."""
    absolute, here = local(path).resolve(), Path.cwd().resolve()
    return absolute.relative_to(here) if given_cluster.in_job() and absolute.is_relative_to(here) else absolute
