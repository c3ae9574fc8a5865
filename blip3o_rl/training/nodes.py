"""The nodes of a given cluster: do all of them see the run's files, and what have the run's processes logged there?

Processes on other nodes read the model, and write rollouts and checkpoints, under the paths that the launcher uses. A
node that sees another disk there would lose them, so each is asked before anything starts. Ray keeps a process's log on
its own node; at the end each node copies what it has.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.report.run_folder import RunFolder

ANSWER_S = 120
"""For a node's first process to start and answer."""


def require_shared(folder: RunFolder, model: Path) -> None:
    """Raises `UserError` where a node of the connected cluster does not see the run folder or the model folder."""
    probe, text = folder.path / ".probe", secrets.token_hex(8)
    write_text(probe, text, sync=True)
    try:
        answers = on_other_nodes(_seen, str(probe), text, str(model))
    finally:
        probe.unlink()
    for node, (sees_run, sees_model) in answers.items():
        if not sees_run:
            raise UserError(
                f"run.folder: node {node} does not see {folder.path}; give a folder on a file system that all nodes "
                "share, run.folder=/shared/..."
            )
        if not sees_model:
            raise UserError(
                f"model.folder: node {node} has no {model}; put the model on a file system that all nodes share, or "
                "install this package on each node in the same place"
            )


def keep_logs(folder: RunFolder, applications: Sequence[str]) -> None:
    """Copies what this job's processes and its Serve applications have logged on each node to the run folder."""
    import ray

    try:
        arguments = (str(folder.logs), ray.get_runtime_context().get_job_id(), list(applications))
        _copy_logs(*arguments)
        on_other_nodes(_copy_logs, *arguments)
    except Exception as error:  # a full disk, or a cluster without a node or its head; the run's own end must be heard
        with suppress(OSError):
            write_text(folder.logs / "missing_logs.txt", f"{error}\n")


def on_other_nodes(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Calls a function of this package on each living node but this: the node's host name and address -> its answer.

    Raises:
        UserError: a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    answers, asked = {}, {}
    for node in ray.nodes():
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
        if node["Alive"] and node["NodeID"] != own:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[name] = task.options(scheduling_strategy=place).remote(*arguments)
    for name, answer in asked.items():
        try:
            answers[name] = ray.get(answer, timeout=ANSWER_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            raise UserError(f"node {name} does not work: {last}; is this package installed there?") from error
    return answers


def _seen(probe: str, text: str, model: str) -> tuple[bool, bool]:
    file = Path(probe)
    return file.is_file() and file.read_text() == text, Path(model).is_dir()


def _copy_logs(target: str, job: str, applications: list[str]) -> None:
    import ray

    node: Any = ray._private.worker._global_node
    session = Path(node.get_logs_dir_path())
    for file in session.glob(f"worker-*-{job}-*"):
        if file.stat().st_size:
            shutil.copy2(file, Path(target) / file.name)
    for app in applications:
        for file in (session / "serve").glob(f"*{app}*"):
            shutil.copy2(file, Path(target) / f"serve-{file.name}")
