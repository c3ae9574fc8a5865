"""Waits for verl's trainer, shows what is going on meanwhile, and says in one line why a run has ended.

verl says nothing until its first step has ended, which takes minutes on a GPU, and waits for ever for the samples of an
actor that has died. The names of its Ray actors show what it has started and who is missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.report.progress import Progress
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import capacity

POLL_S = 0.5
END_S = 30.0
NEEDED = (capacity.AGENT_LOOP, "TransferQueueController")
"""Starts of the names of the actors without which verl's trainer would wait for samples for ever."""
STARTING = {
    "WorkerDict": "loading policy and reference",
    "blip3o_server": "starting vLLM",
    capacity.AGENT_LOOP: "starting agent loops and the first step",
}
"""Part of an actor's name -> the phase that begins with it, in the order in which verl 0.9.1 starts them."""


def wait(done: Any, record: Any, keeper: Any, turn: Any, folder: RunFolder, shown: Progress) -> None:
    """Waits for the reference `done` of the trainer's task.

    Args:
        record: the recorder, which knows of warnings and of failed rewards.
        keeper: the evaluations' actor, or None.
        turn: what `capacity.take_turn` gave.
        shown: gets phases and warnings.

    Raises:
        UserError: the trainer or an actor that it needs died, or a reward, a monitor or an evaluation ended the run.
    """
    import ray

    needed: set[str] = set()
    begun: set[str] = set()
    again = f"logs in {folder.logs}; go on with {shlex.join(['blip3o-rl', 'train', '--resume', str(folder.path)])}"
    while True:
        ready, _ = ray.wait([done], timeout=POLL_S)
        names = set(ray.util.list_named_actors())
        needed |= {name for name in names if name.startswith(NEEDED)}
        turn = capacity.pass_on(turn, names)
        if not ready and (lost := needed - names):
            ready, _ = ray.wait([done], timeout=END_S)  # verl ends them, too, when it has ended
            if not ready:
                raise UserError(f"{', '.join(sorted(lost))} died; {again}")
        try:
            failure, warnings = ray.get([record.failure.remote(), record.warnings.remote()])  # with a failure's warning
            evaluating, failed = ray.get(keeper.state.remote()) if keeper else ("", "")
        except ray.exceptions.RayError as error:
            raise UserError(f"the recorder of rollouts or evaluations died; {again}") from error
        for warning in warnings:
            shown.note(warning)
        starting = _newly_begun(names, begun)
        if text := evaluating or starting:
            shown.phase(text)
        elif shown.step:
            shown.phase("")
        if failure := failure or failed:
            raise UserError(f"the run was ended: {failure}; logs and images of failed rewards in {folder.path}")
        if ready:
            return _end(done, folder, again)


def _newly_begun(names: Iterable[str], begun: set[str]) -> str:
    """The newest phase that the actors show and `begun` lacks, "" for none; adds it to `begun`."""
    new = [text for part, text in STARTING.items() if text not in begun and any(part in name for name in names)]
    begun.update(new)
    return new[-1] if new else ""


def _end(done: Any, folder: RunFolder, again: str) -> None:
    """Raises `UserError` if the trainer has failed."""
    import ray

    try:
        ray.get(done)
    except UserError as error:  # the trainer's own, in Ray's wrapping
        raise UserError(f"the run was ended: {error.args[0]}; {again}") from error
    except ray.exceptions.RayError as error:
        write_text(folder.logs / "trainer_error.txt", str(error))
        last = [line for line in str(error).splitlines() if line.strip()][-1].strip()
        raise UserError(f"the trainer stopped: {last}; see trainer_error.txt; {again}") from error
