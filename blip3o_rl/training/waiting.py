"""Waits for verl's trainer, shows what is going on meanwhile, and says in one line why a run has ended.

verl says nothing until its first step has ended, which takes minutes on a GPU, and waits for ever for the samples of an
actor that has died. The names of its Ray actors show what it has started and who is missing.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.report.progress import Progress
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import capacity, given_cluster

POLL_S = 0.5
END_S = 30.0
NEEDED = (capacity.AGENT_LOOP, "TransferQueueController")
"""Starts of the names of the actors without which verl's trainer would wait for samples for ever."""
DIED = re.compile(r"Actor\w*Error|\bdied\b")
"""In an error: an actor is gone, which a lost node may be the reason of."""
STARTING = {
    "WorkerDict": "loading policy and reference",
    "blip3o_server": "starting vLLM",
    capacity.AGENT_LOOP: "starting agent loops and the first step",
}
"""Part of an actor's name -> the phase that begins with it, in the order in which verl 0.9.1 starts them."""


def wait(done: Any, record: Any, evaluations: Any, lock: Any, folder: RunFolder, shown: Progress) -> None:
    """Waits for the reference `done` of the trainer's task.

    Args:
        record: the recorder, which knows of warnings and of failed rewards.
        evaluations: their actor, or None.
        lock: what `capacity.take_lock` gave.
        shown: gets phases and warnings.

    Raises:
        UserError: the trainer, an actor that it needs or a node of the cluster died, or a reward, a monitor or an
            evaluation ended the run.
    """
    nodes = _living_nodes() if given_cluster.address() else set()
    try:
        _watch(done, record, evaluations, lock, folder, shown)
    except UserError as error:
        if len(nodes) > 1 and DIED.search(str(error)) and (lost := _lost(nodes)):
            raise UserError(f"the cluster has lost its node {', '.join(sorted(lost))}: {error}") from error
        raise


def _living_nodes() -> set[str]:
    import ray

    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _lost(nodes: set[str]) -> set[str]:
    """Those of some nodes that are gone. Ray takes a node for lost only when it has not answered for a while."""
    until = time.monotonic() + END_S
    while not (lost := nodes - _living_nodes()) and time.monotonic() < until:
        time.sleep(POLL_S)
    return lost


def _watch(done: Any, record: Any, evaluations: Any, lock: Any, folder: RunFolder, shown: Progress) -> None:
    import ray

    needed: set[str] = set()
    begun: set[str] = set()
    while True:
        ready, _ = ray.wait([done], timeout=POLL_S)
        names = set(ray.util.list_named_actors())
        needed |= {name for name in names if name.startswith(NEEDED)}
        lock = capacity.release(lock, names)
        if not ready and (lost := needed - names):
            ready, _ = ray.wait([done], timeout=END_S)  # verl ends them, too, when it has ended
            if not ready:
                raise UserError(f"{', '.join(sorted(lost))} died; {_remedy(folder)}")
        try:
            failure, warnings = ray.get([record.failure.remote(), record.warnings.remote()])  # with a failure's warning
            evaluating, failed = ray.get(evaluations.state.remote()) if evaluations else ("", "")
        except ray.exceptions.RayError as error:
            raise UserError(f"the recorder of rollouts or evaluations died; {_remedy(folder)}") from error
        for warning in warnings:
            shown.note(warning)
        starting = _newly_begun(names, begun)
        if text := evaluating or starting:
            shown.phase(text)
        elif shown.step:
            shown.phase("")
        if failure := failure or failed:
            raise UserError(
                f"the run was ended: {failure}; images of failed rewards in {folder.failed}, {_remedy(folder)}"
            )
        if ready:
            return _end(done, folder)


def save_and_end(done: Any, record: Any, grace: float, folder: RunFolder, shown: Progress) -> None:
    """After SIGTERM: lets the trainer save and end after its present step, for at most `grace` seconds.

    Raises:
        UserError: it has failed meanwhile, for example because the disk is full.
    """
    import ray

    shown.note(f"SIGTERM: saving after this step, which may take {grace:g} s (run.grace_s)")
    record.end_after_step.remote()
    ready, _ = ray.wait([done], timeout=grace)
    if ready:
        _end(done, folder)
    else:
        shown.note(f"nothing was saved within {grace:g} s; raise run.grace_s")


def _newly_begun(names: Iterable[str], begun: set[str]) -> str:
    """The newest phase that the actors show and `begun` lacks, "" for none; adds it to `begun`."""
    new = [text for part, text in STARTING.items() if text not in begun and any(part in name for name in names)]
    begun.update(new)
    return new[-1] if new else ""


def _end(done: Any, folder: RunFolder) -> None:
    """Raises `UserError` if the trainer's task, which has ended, has failed."""
    import ray

    try:
        ray.get(done)
    except UserError as error:  # the trainer's own, in Ray's wrapping
        raise UserError(f"the run was ended: {error.args[0]}; {_remedy(folder)}") from error
    except ray.exceptions.RayError as error:
        write_text(trainer_error(folder), str(error))
        last = [line for line in str(error).splitlines() if line.strip()][-1].strip()
        raise UserError(f"the trainer stopped: {last}; see trainer_error.txt; {_remedy(folder)}") from error


def trainer_error(folder: RunFolder) -> Path:
    """Where the whole error goes with which the trainer has stopped."""
    return folder.logs / "trainer_error.txt"


def _remedy(folder: RunFolder) -> str:
    return f"logs in {folder.logs}; go on with {shlex.join(['blip3o-rl', 'train', '--resume', str(folder.path)])}"
