"""Which task a step trains: text to image, edit, keep or subject, by shares.

All batches of a step have one task, so that all processes of a run do the same work. Steps are spread over the tasks
by multiples of the golden ratio: every stretch of steps has the shares as nearly as it can, and the task of a step
follows from the seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from blip3o_rl.config.sft import TaskShares
from blip3o_rl.errors import UserError
from blip3o_rl.model.token_layout import TASKS, Task

GOLDEN = (5**0.5 - 1) / 2


def shares_of(settings: TaskShares, rows: Mapping[Task, int]) -> dict[Task, float]:
    """Share of the steps per task; without settings, that of the task among the rows.

    Args:
        settings: what the user set.
        rows: usable rows per task.

    Raises:
        UserError: a task with a share has no rows, or one with rows has no share next to others that do.
    """
    given: dict[Task, float | None] = {task: getattr(settings, task) for task in TASKS}
    if all(share is None for share in given.values()):
        return {task: float(rows[task]) for task in TASKS if rows.get(task)}
    for task, share in given.items():
        if share and not rows.get(task):
            raise UserError(f"data.shares.{task}={share}: data.files has no usable row of it; add some, or set it to 0")
        if share is None and rows.get(task):
            raise UserError(
                f"data.shares.{task}: not set, and data.files has {rows[task]} rows of it; 0 leaves them out"
            )
    found = {task: share for task, share in given.items() if share}
    if not found:
        raise UserError("data.shares: all are 0, so there is nothing to train on; set one")
    return found


def task_of_step(step: int, seed: int, shares: Mapping[Task, float]) -> tuple[Task, int]:
    """The task of step 0, 1, ..., and how many steps before it have the same one."""
    tasks = list(shares)
    bounds = np.cumsum(list(shares.values()))
    points = (np.random.default_rng(seed).random() + GOLDEN * np.arange(step + 1)) % 1 * bounds[-1]
    chosen = np.searchsorted(bounds[:-1], points, side="right")
    return tasks[chosen[-1]], int((chosen[:-1] == chosen[-1]).sum())
