"""The jobs of a Ray cluster for `blip3o-rl submit` and `blip3o-rl jobs`: Ray's own client, its errors in one line."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.terminal import INTERRUPTED
from blip3o_rl.training import given_cluster

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
POLL_S = 0.5


def client(address: str | None) -> Any:
    """Ray's client for the cluster at `address`, else RAY_ADDRESS, else on this machine."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    address = address or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS
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


def submitted(client: Any) -> list[Any]:
    """Ray's details of the jobs that were submitted to a cluster, the newest first."""
    return sorted((job for job in client.list_jobs() if job.submission_id), key=lambda job: -(job.start_time or 0))


def info(client: Any, job: str) -> Any:
    """Ray's details of a job; raises `UserError` where there is none of that name, or the cluster does not answer."""
    try:
        return client.get_job_info(job)
    except (RuntimeError, OSError) as error:
        if str(error).startswith("Request failed with status code 404"):
            raise UserError(f"{job}: the cluster has no such job; see blip3o-rl jobs list") from error
        raise _lost(job, error) from error


def stop(client: Any, job: str) -> Any:
    """Asks a job to end (SIGTERM), waits until it has, and returns its details."""
    info(client, job)
    client.stop_job(job)
    while not (details := info(client, job)).status.is_terminal():
        time.sleep(POLL_S)
    return details


def follow(client: Any, job: str) -> int:
    """Shows a job's output until it ends, and returns its exit code; Ctrl-C and a lost connection leave it alone."""
    info(client, job)
    try:
        asyncio.run(_show(client, job))
    except KeyboardInterrupt:
        print(f"\nthe job goes on; {later(job)}")
        return INTERRUPTED
    except Exception as error:  # Ray's, requests' or aiohttp's
        raise _lost(job, error) from error
    return exit_code(info(client, job))


def _lost(job: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"{job}: the cluster's dashboard does not answer ({reason}); the job goes on; {later(job)}")


def later(job: str) -> str:
    """How to come back to a job."""
    return f"its output: blip3o-rl jobs logs --follow {job}; to stop it: blip3o-rl jobs stop {job}"


def exit_code(details: Any) -> int:
    """0 for a job that succeeded, else its driver's exit code (1 where Ray knows none)."""
    if str(details.status) == "SUCCEEDED":
        return 0
    if details.driver_exit_code is None and details.message:
        print(details.message, file=sys.stderr)
    return details.driver_exit_code or 1


async def _show(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)
