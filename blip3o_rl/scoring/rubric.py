"""Several named rewards, one number per sample.

The value is the weighted sum, not divided by the weights (Flow-GRPO's `multi_score`): changing one weight leaves the
others' scale alone. The single values are kept for GDPO, which normalizes each within its group (`training.advantage`).
A held-out reward is scored and logged under `held_out/<name>`, but enters neither value nor values, and its failure is
logged (`held_out/<name>/failed`) without taking the sample from training. Single rewards and their failures are in
`entry`, rewards that wait for others in `gates`. Where prompts of several goals are mixed, a reward may be for some of
them only (`only_for`, by tag): it adds 0 to the others' images, which moves nothing since a group has one prompt.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from blip3o_rl.config.reward import KEY
from blip3o_rl.errors import UserError
from blip3o_rl.scoring import prompt_checks, sync
from blip3o_rl.scoring.api import Found, Reward, RewardError, Sample, Score
from blip3o_rl.scoring.entry import Outcome, RubricEntry
from blip3o_rl.scoring.gates import is_open, order

if TYPE_CHECKING:
    from blip3o_rl.data.prompts import PromptRow


@dataclass(frozen=True)
class RubricScore:
    """A sample's result.

    `components` are for the log, of the rewards that did score: "name" -> unweighted value, "name/x" -> component x,
    "name/tag_<tag>" -> the value again for the prompt's own tag, "name/open" -> 1 or 0 for a gated reward.
    """

    value: float  # weighted sum; NaN if a reward gave no score, so that using it by mistake shows
    reason: str = ""  # why it failed, or the rewards' reasons
    components: Mapping[str, float] = dataclasses.field(default_factory=dict)
    values: tuple[float, ...] = ()  # unweighted, of each trained reward in order, gates applied; empty if failed
    found: tuple[Found, ...] = ()  # what the rewards saw in the image

    @property
    def failed(self) -> bool:
        """Whether a reward gave no score; the sample is to be masked out of its group."""
        return math.isnan(self.value)


class Rubric:
    """Named rewards with weights, scored together.

    Raises:
        UserError: two rewards of one name, a gate that cannot work, or nothing to train on.
    """

    def __init__(self, entries: Sequence[RubricEntry]):
        self.entries = list(entries)
        for name, count in Counter(self.names).items():
            if count > 1:
                raise UserError(f"{KEY}.{name}: there are two rewards of this name; rename one")
        self._order = order(self.entries)
        if self.entries and all(entry.settings.held_out for entry in self.entries):
            raise UserError(f"{KEY}: all rewards are held out, which leaves nothing to train on; add one that is not")

    @classmethod
    def of(cls, reward: Reward) -> Rubric:
        """The rubric of a single reward with weight 1."""
        return cls([RubricEntry(reward.name, reward)])

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    @property
    def weights(self) -> dict[str, float]:
        """Name -> weight of the trained rewards: what `RubricScore.values` belong to, in order."""
        return {entry.name: entry.settings.weight for entry in self.entries if entry.settings.trained}

    def score(self, samples: Sequence[Sample]) -> list[RubricScore]:
        """`score_async` for callers without an event loop (and for those that happen to be inside one)."""
        return sync.run(self.score_async(samples))

    async def score_async(self, samples: Sequence[Sample]) -> list[RubricScore]:
        """One RubricScore per sample, in order. Rewards work concurrently, except those that wait for their gates.

        Raises:
            RewardError: if a reward with `on_error: stop` fails.
        """
        samples = list(samples)
        columns: dict[str, Column] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for entry in self._order:
                    columns[entry.name] = group.create_task(_column(entry, samples, columns))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0]  # noqa: B904 (it has a cause of its own)
        return [
            self._combine(sample, {name: task.result()[row] for name, task in columns.items()})
            for row, sample in enumerate(samples)
        ]

    def _combine(self, sample: Sample, outcomes: Mapping[str, Outcome | None]) -> RubricScore:
        components: dict[str, float] = {}
        values: dict[str, float] = {}
        reasons: list[str] = []
        failures: list[str] = []
        found: list[Found] = []
        for entry in self.entries:
            outcome = outcomes[entry.name]
            if not entry.is_for(sample.metadata):
                if entry.settings.trained:
                    values[entry.name] = 0.0
                continue
            if entry.settings.gates:
                components[f"{entry.log_name}/open"] = float(outcome is not None)
            if entry.settings.held_out and outcome is not None:
                components[f"{entry.log_name}/failed"] = float(isinstance(outcome, RewardError))
            if isinstance(outcome, RewardError):
                (reasons if entry.settings.held_out else failures).append(str(outcome))
                continue
            if isinstance(outcome, Score):
                components.update(_logged(entry.log_name, outcome, sample.metadata))
                found += outcome.found
                if outcome.reason:
                    reasons.append(f"{entry.name}: {outcome.reason}")
            if entry.settings.trained:
                values[entry.name] = entry.settings.otherwise if outcome is None else outcome.value
        if failures:
            return RubricScore(math.nan, "; ".join(failures), components, found=tuple(found))
        value = sum((self.weights[name] * value for name, value in values.items()), 0.0)
        return RubricScore(value, "; ".join(reasons), components, tuple(values.values()), tuple(found))

    def self_check(self, rows: Sequence[PromptRow] = ()) -> list[str]:
        """Scores two blank images with each reward, so that a broken one is found before any model is loaded. The
        prompt is the first row (where text-to-image and edits are mixed, the first of each), or the reward's
        `example_metadata`. A reward that is yet to be deployed is left out. Returns a line per reward with
        `on_error: skip_sample` that raised, which it may do on such an image.

        Raises:
            UserError: naming the reward and what it did.
        """
        remarks = []
        for entry in self._available():
            samples, known = _blank_samples(entry.reward, [row for row in rows if entry.is_for(row.metadata)])
            failures = [found for found in sync.run(entry.attempt(samples)) if isinstance(found, RewardError)]
            if not failures:
                continue
            found = f"{failures[0]}; found by scoring two blank 64x64 images before the run"
            # It raised while it scored, here or in a service: no timeout, no unusable number, no setup.
            raised = re.search(r"' raised \w+: ", str(failures[0]))
            if entry.settings.on_error != "skip_sample" or not raised:
                raise UserError(f"{found}: fix the reward or take it out") from failures[0]
            remarks.append(found if known else f"{found}, with no prompt or example_metadata to try")
        return remarks

    def check_prompts(self, rows: Iterable[PromptRow]) -> None:
        """Checks that each row has what each of its rewards needs; a reward that is yet to be deployed is left out.

        Raises:
            UserError: naming file, line, field and reward.
        """
        rows = list(rows)
        prompt_checks.check_tags_of_rows(rows, [entry for entry in self.entries if entry.settings.trained])
        prompt_checks.check_fields(rows, self._available())

    def check_tags(self, rows: Iterable[PromptRow]) -> None:
        """Checks that each reward is for some of the prompts.

        Raises:
            UserError: naming the reward and its tags.
        """
        prompt_checks.check_tags_of_rewards(rows, self.entries)

    def _available(self) -> list[RubricEntry]:
        return [entry for entry in self.entries if entry.available]


def _blank_samples(reward: Reward, rows: Sequence[PromptRow]) -> tuple[list[Sample], bool]:
    """Two blank images for the first prompt of each kind, or for the reward's example; and whether there is either."""
    blank = np.zeros((64, 64, 3), np.uint8)
    kinds = {bool(row.references): row for row in reversed(rows)}
    tried = [(row.metadata, tuple(image.load() for image in row.references)) for row in kinds.values()]
    example = getattr(reward, "example_metadata", None)
    if not tried:
        fields = example if example is not None else dict.fromkeys(reward.required_metadata, "")
        tried = [(fields, (blank,) if "references" in reward.required_metadata else ())]
    samples: list[Sample] = []
    for fields, references in (kind for kind in tried for _ in range(2)):
        prompt = str(fields.get("prompt", "a photo of a circle"))
        name = f"self-check-{len(samples)}"
        samples.append(Sample(name, prompt, blank.copy(), dict(fields), references=references))
    return samples, bool(rows) or example is not None


Column: TypeAlias = "asyncio.Task[list[Outcome | None]]"
"""One reward's outcome for each sample; None where its gate is closed, or the prompt is not one of its own."""


async def _column(entry: RubricEntry, samples: Sequence[Sample], columns: Mapping[str, Column]) -> list[Outcome | None]:
    gates = {gate: await columns[gate] for gate in entry.settings.gates}
    asked = [
        entry.is_for(sample.metadata) and is_open(entry, {gate: column[row] for gate, column in gates.items()})
        for row, sample in enumerate(samples)
    ]
    outcomes = iter(await entry.score(list(itertools.compress(samples, asked))))
    return [next(outcomes) if open_ else None for open_ in asked]


def _logged(name: str, score: Score, metadata: Mapping[str, Any]) -> dict[str, float]:
    """A score as it is logged: the value, its components, and the value again under the prompt's tag."""
    logged = {name: score.value}
    if isinstance(metadata.get("tag"), str):
        logged[f"{name}/tag_{metadata['tag']}"] = score.value
    return {**logged, **{f"{name}/{component}": value for component, value in score.components.items()}}


def token_rewards(score: RubricScore, count: int, aggregation: str) -> list[float]:
    """A sample's rewards on its `count` tokens. Their sum is the score's value, which is what verl reports.

    With weighted_sum the value lies on the last token. With gdpo each reward's own value lies on a token, from the
    first on, and the last token makes up the difference to the weighted sum; `training.advantage` reads the first.
    """
    values = score.values if aggregation == "gdpo" else ()
    if count <= len(values):
        raise ValueError(f"{len(values)} rewards do not fit on {count} tokens")
    return [*values, *[0.0] * (count - len(values) - 1), score.value - sum(values)]
