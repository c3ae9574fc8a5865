"""`blip3o-rl submit`: the comfortable form of `ray job submit --working-dir . -- blip3o-rl train ...`.

The working directory travels with the job, without history, environments, models and earlier runs. Ray unpacks it in a
folder that it deletes again, so the run folder is given as an absolute path. A job that is stopped gets the time to end
its own processes, and `run.grace_s` for a checkpoint; Ray's own patience is 3 s.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blip3o_rl.config.composition import read_yaml
from blip3o_rl.config.reward import key_variables
from blip3o_rl.config.train import compose_recipe
from blip3o_rl.errors import UserError
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import jobs, stored

EXCLUDES = [".git", ".venv*", "models", "runs", "outputs", "build", "dist"]
EXCLUDES += [".mypy_cache", ".ruff_cache", ".pytest_cache"]
MAX_MIB = 100
"""Of the working directory; Ray's dashboard takes no larger upload."""
TAKE_DOWN_S = 60
"""For the processes of a stopped run."""


def new_run(recipe: str, overrides: list[str], runs: Path) -> tuple[list[str], DictConfig]:
    """The command of a run and its configuration; the run folder is `<runs>/<recipe>-<time>` unless it is named."""
    words = ["blip3o-rl", "train", recipe, *overrides]
    if not any(word.startswith("run.folder=") for word in overrides):
        words.append(f"run.folder={runs.absolute() / f'{Path(recipe).name}-{datetime.now():%Y%m%d-%H%M%S}'}")
    return words, compose_recipe(recipe, overrides)


def resumed_run(run: Path, overrides: list[str]) -> tuple[list[str], DictConfig]:
    """The command that continues a run, whose folder is seen here, too, and its configuration."""
    folder = RunFolder.open(run)
    return ["blip3o-rl", "train", "--resume", str(folder.path), *overrides], stored.composed(folder, overrides)


def submit(
    words: Sequence[str],
    config: DictConfig,
    address: str | None,
    follow: bool = True,
    variables: Sequence[str] = (),
    runtime_env: Path | None = None,
) -> int:
    """Submits a command as a job and, with `follow`, shows its output until it ends and returns its exit code.

    Args:
        variables: NAME=VALUE, or NAME with the value that it has here, for the job's processes.
        runtime_env: a YAML or JSON file with further fields of Ray's `runtime_env`.
    """
    environment = _runtime_env(config, variables, runtime_env)
    _check_size(Path(environment["working_dir"]), environment["excludes"])
    client = jobs.client(address)
    command = shlex.join(words)
    job = client.submit_job(entrypoint=command, runtime_env=environment)
    print(f"job {job}: {command}", flush=True)
    if follow:
        return jobs.follow(client, job)
    print(jobs.later(job))
    return 0


def _runtime_env(config: DictConfig, variables: Sequence[str], file: Path | None) -> dict[str, Any]:
    given: Any = {} if file is None else OmegaConf.to_container(read_yaml(file))
    if not isinstance(given, dict):
        raise UserError(f"--runtime-env {file}: must hold a mapping, such as {{env_vars: {{A: b}}}}")
    # Keys travel with the job; proxies do not, since the cluster's network is another one.
    names = key_variables(config.reward.rewards)
    keys = {name: os.environ[name] for name in names if name in os.environ}
    own = {"RAY_JOB_STOP_WAIT_TIME_S": str(round(config.run.grace_s) + TAKE_DOWN_S), **keys, **_variables(variables)}
    given = {name: value for name, value in given.items() if value is not None}
    return {"working_dir": ".", "excludes": EXCLUDES, **given, "env_vars": {**given.get("env_vars", {}), **own}}


def _variables(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals and name not in os.environ:
            raise UserError(f"--env {name}: is not set here; give --env {name}=VALUE, or set it")
        found[name] = value if equals else os.environ[name]
    return found


def _check_size(folder: Path, excludes: list[str]) -> None:
    """Refuses an upload that the cluster would refuse later, with what is large in it."""
    from ray._private.runtime_env import packaging

    if not folder.is_dir():  # an address, such as s3://bucket/code.zip
        return
    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            top = path.relative_to(folder).parts[0]
            sizes[top] = sizes.get(top, 0) + path.stat().st_size

    packaging._dir_travel(folder, [packaging._get_excludes(folder, excludes)], add, include_gitignore=True)
    if sum(sizes.values()) > MAX_MIB * 2**20:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        named = ", ".join(f"{name} {sizes[name] / 2**20:.0f} MiB" for name in largest)
        raise UserError(
            f"{folder.absolute()}: {sum(sizes.values()) / 2**20:.0f} MiB would travel with the job ({named}), at most "
            f"{MAX_MIB} may; name what is not needed in .rayignore, and give models and data by absolute paths"
        )
