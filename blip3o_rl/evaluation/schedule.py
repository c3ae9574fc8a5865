"""When a run is evaluated, and what each of its evaluations is: both ends, and every `eval.every` steps.

An evaluation that was killed is gone on with when the run is resumed from a checkpoint of the same step; those of later
steps are dropped, because the steps are made again with other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.config.train import TrainSettings
from blip3o_rl.evaluation.held_out import identity, settings_of
from blip3o_rl.evaluation.suite import Suite
from blip3o_rl.evaluation.verdicts import Verdicts, as_json, is_complete
from blip3o_rl.io import read_json
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.report import checkpoints
from blip3o_rl.report.evaluations import SCORE
from blip3o_rl.report.run_folder import RunFolder


def settings_of_run(settings: TrainSettings, suite: Suite) -> dict[str, Any]:
    """What the evaluations of two runs must have in common to be compared."""
    how = GenerationConfig(settings.model.scale, settings.render.steps, settings.render.guidance)
    return settings_of(suite, settings.eval.images_per_prompt, settings.eval.seed, how)


@dataclass(frozen=True)
class Schedule:
    """The evaluations of one run.

    Attributes:
        folder: of the run.
        seed: of the first image.
        every, last: steps between two evaluations, if there are some between the ends, and the run's last step.
        settings, model: of the results; `model` is what the run started from.
    """

    folder: RunFolder
    suite: Suite
    images_per_prompt: int
    seed: int
    every: int | None
    last: int
    settings: Mapping[str, Any]
    model: Mapping[str, Any]

    @classmethod
    def of(cls, settings: TrainSettings, suite: Suite, model: Path, folder: RunFolder) -> Schedule:
        chosen, last = settings.eval, settings.trainer.total_training_steps
        base = identity(model, backend="vllm", device=settings.trainer.device)
        made_with = settings_of_run(settings, suite)
        return cls(folder, suite, chosen.images_per_prompt, chosen.seed, chosen.every, last, made_with, base)

    @property
    def total(self) -> int:
        """Number of images of an evaluation."""
        return len(self.suite.rows) * self.images_per_prompt

    def output(self, step: int) -> Path:
        """The file of a step's result."""
        return self.folder.evaluation(step, self.last)

    def missing(self, step: int) -> bool:
        """Whether an evaluation belongs to a step and has no result yet."""
        due = step in (0, self.last) or bool(self.every) and step % (self.every or 1) == 0
        return due and not is_complete(self.output(step), self.settings, self._model(step))

    def open(self, step: int) -> Verdicts:
        """The files of a step's evaluation, begun or gone on with."""
        return Verdicts(self.output(step), self.settings, self._model(step), self.total)

    def keep_best(self, step: int) -> None:
        """Keeps the checkpoint of a step as the run's best, if it was evaluated and none is as good."""
        checkpoint, output = self.folder.checkpoints / f"global_step_{step}", self.output(step)
        if checkpoints.is_complete(checkpoint) and is_complete(output, self.settings, self._model(step)):
            checkpoints.keep_if_best(checkpoint, read_json(output)[SCORE], as_json(self.settings))

    def _model(self, step: int) -> dict[str, Any]:
        return {**self.model, "step": step}
