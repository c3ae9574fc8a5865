"""`blip3o-rl submit`: the comfortable form of `ray job submit --working-dir . -- blip3o-rl train ...`.

The working directory travels with the job, without history, environments and earlier runs. Ray unpacks it in a folder
that it deletes again, so the run folder is given as an absolute path.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from blip3o_rl.config.reward import key_variables
from blip3o_rl.config.train import compose_recipe
from blip3o_rl.errors import UserError
from blip3o_rl.terminal import INTERRUPTED
from blip3o_rl.training import given_cluster

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
EXCLUDES = [
    ".git",
    ".venv",
    ".venv-gpu",
    ".venv-cpu-pin",
    ".venv-mmdet",
    ".venv-paddle",
    "models",
    "runs",
    "outputs",
    "build",
    "dist",
]
EXCLUDES += [".mypy_cache", ".ruff_cache", ".pytest_cache"]


def entrypoint(recipe: str, overrides: list[str], runs: Path) -> str:
    """The job's command line. The run folder is `<runs>/<recipe>-<time>` unless the overrides name one."""
    words = ["blip3o-rl", "train", recipe, *overrides]
    if not any(word.startswith("run.folder=") for word in overrides):
        words.append(f"run.folder={runs.absolute() / f'{Path(recipe).name}-{datetime.now():%Y%m%d-%H%M%S}'}")
    return shlex.join(words)


def submit(recipe: str, overrides: list[str], address: str | None, runs: Path, follow: bool = True) -> int:
    """Submits the job and, with `follow`, shows its output until it ends and returns its exit code."""
    names = key_variables(compose_recipe(recipe, overrides).reward.rewards)
    # Keys travel with the job; proxies do not, since the cluster's network is another one.
    keys = {name: os.environ[name] for name in names if name in os.environ}
    client = _client(address or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS)
    command = entrypoint(recipe, overrides, runs)
    runtime_env = {"working_dir": ".", "excludes": EXCLUDES, "env_vars": keys}
    job = client.submit_job(entrypoint=command, runtime_env=runtime_env)
    print(f"job {job}: {command}", flush=True)
    later = f"its output: ray job logs --follow {job}; to stop it: ray job stop {job}"
    if not follow:
        print(later)
        return 0
    try:
        asyncio.run(_show(client, job))
    except KeyboardInterrupt:
        print(f"\nthe job goes on; {later}")
        return INTERRUPTED
    return exit_code(client.get_job_info(job))


def exit_code(details: Any) -> int:
    """0 for a job that succeeded, else its driver's exit code (1 where Ray knows none)."""
    if str(details.status) == "SUCCEEDED":
        return 0
    if details.driver_exit_code is None and details.message:
        print(details.message, file=sys.stderr)
    return details.driver_exit_code or 1


def _client(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)
    given_cluster.use_token()
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            f"--address {address}: this cluster asks for Ray's token; set RAY_AUTH_MODE=token (and RAY_AUTH_TOKEN_PATH "
            "where it is not in Ray's own place), or start the cluster with RAY_AUTH_MODE=disabled"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--address {address}: no Ray cluster answers there ({reason}); start one with "
            "`ray start --head --num-gpus=1`, or give the address of its dashboard"
        ) from error


async def _show(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)
