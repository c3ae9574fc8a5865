"""`blip3o-rl jobs`: the jobs of a Ray cluster."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from blip3o_rl.cli.output import print_table, table

Address = Annotated[
    str | None, typer.Option(help="the cluster's dashboard; else RAY_ADDRESS, else http://127.0.0.1:8265")
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="as `submit` and `jobs list` name it")]


def list_jobs(address: Address = None) -> None:
    """Lists the jobs that were submitted, the newest first."""
    from blip3o_rl.training import jobs

    rows = table("job", "status", "started", "")
    for job in jobs.submitted(jobs.client(address)):
        started = f"{datetime.fromtimestamp(job.start_time / 1000):%Y-%m-%d %H:%M:%S}" if job.start_time else "-"
        rows.add_row(job.submission_id, str(job.status), started, job.entrypoint)
    print_table(rows)


def status(job: Job, address: Address = None) -> None:
    """Says how a job is, and exits with 0 unless it failed or was stopped."""
    from blip3o_rl.training import jobs

    details = jobs.info(jobs.client(address), job)
    print(f"{details.status}: {details.message}")
    raise typer.Exit(0 if not details.status.is_terminal() else jobs.exit_code(details))


def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", help="until it ends, and exit as it does")] = False,
    address: Address = None,
) -> None:
    """Prints what a job has printed."""
    from blip3o_rl.training import jobs

    client = jobs.client(address)
    if follow:
        raise typer.Exit(jobs.follow(client, job))
    jobs.info(client, job)
    print(client.get_job_logs(job), end="")


def stop(job: Job, address: Address = None) -> None:
    """Ends a job as SIGTERM does, and waits until it has ended."""
    from blip3o_rl.training import jobs

    print(jobs.stop(jobs.client(address), job).status)
