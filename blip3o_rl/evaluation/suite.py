"""What an evaluation is: held-out prompts and the rubric that scores their images.

A named suite is the held-out side of a source with the source's judge. A run's own suite follows from its `eval` group;
with a prompt file of the user's, a share of that file is held out. A prompt's side follows from a hash of its text and
its references, so that it stays the same when the file grows or is sorted, and repetitions are never on both sides.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip3o_rl.config.reward import KEY, read_rewards, refuse_deployed
from blip3o_rl.config.train import TrainSettings
from blip3o_rl.data.prompts import PromptRow, read_prompts
from blip3o_rl.data.references import prompt_key
from blip3o_rl.data.sources import BENCHMARKS, SOURCES, held_out_rows, source_of, training_rows
from blip3o_rl.data.synthetic.splits import COUNTERFACTUAL
from blip3o_rl.errors import UserError, did_you_mean
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric
from blip3o_rl.stores import local

_WEIGHTS = ("checkpoint", "clip", "device", "service")
"""Keys of a reward that has a detector, which say where its networks are."""


@dataclass(frozen=True)
class Suite:
    """Prompts and who scores their images.

    Attributes:
        rows: the held-out prompts.
        rewards: the rubric that gives the score, as in `reward.rewards`.
        correct: its components that are 1 where all of an image is right, of which a prompt's images have one.
        reported: further rewards, those of a run, that are scored as well and do not change the score.
    """

    name: str
    rows: Sequence[PromptRow]
    rewards: Mapping[str, Any]
    correct: tuple[str, ...] = ()
    reported: Mapping[str, Any] = field(default_factory=dict)

    def asks(self, rewards: Mapping[str, Any]) -> bool:
        """Whether it asks these rewards."""
        return rewards in (self.rewards, self.reported)

    def rubric(self) -> Rubric:
        """The rubric that gives the score; it can score every prompt.

        Raises:
            UserError: it cannot be built, or cannot score a prompt.
        """
        if not self.rows:
            raise UserError(f"evaluation {self.name}: has 0 prompts; give at least one")
        for row in self.rows:
            if not isinstance(row.metadata.get(COUNTERFACTUAL) or {}, Mapping):
                raise UserError(f"{row.where}: {COUNTERFACTUAL} is no JSON object; write the fields that differ")
        rubric = build_rubric(self.rewards)
        rubric.check_prompts(self.rows)
        return rubric


def named(
    name: str,
    rows: Sequence[PromptRow],
    reported: Mapping[str, Any] | None = None,
    judge: Mapping[str, Mapping[str, Any]] | None = None,
) -> Suite:
    """The suite of a source or benchmark, on prompts of its kind.

    An image that the judge of a source cannot score ends the evaluation. Of a benchmark, whose judge may answer
    anything, it is counted as failed and left out of the means.

    Args:
        judge: keys of the judge's rewards that differ from the source's, such as where the detector's weights are.

    Raises:
        UserError: there is no such source, or its judge has no such reward.
    """
    if name in BENCHMARKS:
        judges, correct = BENCHMARKS[name], tuple[str, ...]()
    else:
        source = source_of(name, f"eval {name}")
        judges, correct = source.judge, source.correct
    changed = judge or {}
    for reward in changed:
        if reward not in judges:
            raise UserError(f"eval {name} {reward}: images are judged by {', '.join(judges)}; set its keys")
    entries = {}
    for reward, own in judges.items():
        mine = changed.get(reward, {})
        at_an_address = "url" in (mine.get("service") or {})  # which has the other keys
        on_error = "skip_sample" if name in BENCHMARKS else "stop"
        entries[reward] = {**({} if at_an_address else own), **mine, "on_error": on_error}
    return Suite(name, rows, entries, correct, reported or {})


def of_run(settings: TrainSettings, rewards: Mapping[str, Any]) -> tuple[list[PromptRow], Suite | None]:
    """The training prompts of a run, and its held-out suite; None with `run.evaluate=false`.

    Args:
        settings: of the run.
        rewards: its `reward.rewards`, as plain values.

    Raises:
        UserError: no prompts on a side, the same prompt on both, or rewards that cannot score the held-out ones.
    """
    read_rewards(rewards)
    chosen, prompts = settings.eval, settings.prompts
    rows = training_rows(prompts.model_dump(), settings.run.seed)
    if not settings.run.evaluate:
        return rows, None
    source = held_out_from(settings)
    if source in SOURCES:
        held_out = held_out_rows(source, chosen.limit, f"eval.limit={chosen.limit}")
    elif source is None:
        rows, held_out = _split(rows, chosen.held_out_share, f"prompts.file={prompts.file}")
    elif (file := local(source)).is_file():
        held_out = read_prompts(file)
    else:
        hint = did_you_mean(source, SOURCES)
        raise UserError(f"eval.prompts={source}: is no file and no suite{hint}; suites: {', '.join(SOURCES)}")
    if source != prompts.source or prompts.file is not None:  # a source keeps its own sides apart
        _check_apart(rows, held_out, source)
    held_out = held_out[: chosen.limit]
    name = source if source in SOURCES else Path(str(source or prompts.file)).stem
    if not chosen.rewards:
        if source not in SOURCES:
            return rows, Suite(name, held_out, rewards)
        return rows, named(name, held_out, None if chosen.prompts else rewards, _weights_of(name, rewards))
    try:
        read_rewards(chosen.rewards)
        refuse_deployed(chosen.rewards)
        suite = Suite(name, held_out, chosen.rewards, _correct(source, chosen.rewards))
        suite.rubric().self_check(held_out)
    except UserError as error:
        raise UserError(str(error).replace(KEY, "eval.rewards")) from error
    return rows, suite


def held_out_from(settings: TrainSettings) -> str | None:
    """The source or file of a run's held-out prompts; None where they are a share of `prompts.file`."""
    return settings.eval.prompts or (settings.prompts.source if settings.prompts.file is None else None)


def _weights_of(source: str, rewards: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Where the weights of the judge's detectors lie, as far as the run's own rewards use the same ones."""
    found = {}
    for name, judge in SOURCES[source].judge.items():
        own = rewards.get(name) or {}
        if "detector" in judge and own.get("detector") == judge["detector"]:
            found[name] = {key: own[key] for key in _WEIGHTS if own.get(key) is not None}
    return found


def _correct(source: str | None, rewards: Mapping[str, Any]) -> tuple[str, ...]:
    """The components of a source's judge that the given rewards have, too."""
    known = SOURCES[source].correct if source in SOURCES else ()
    return tuple(name for name in known if "path" not in (rewards.get(name.split("/")[0], {"path": None}) or {}))


def _key(row: PromptRow) -> str:
    """A prompt's key without what makes no other prompt of it: case, the kind and number of spaces, and how Unicode
    writes a letter with an accent."""
    text = " ".join(unicodedata.normalize("NFKC", row.prompt).split()).casefold()
    return prompt_key(text, (reference.sha256 for reference in row.references))


def _split(rows: list[PromptRow], share: float, given: str) -> tuple[list[PromptRow], list[PromptRow]]:
    """Training and held-out prompts of a file; at least one prompt is on each side."""
    places = {key: hashlib.sha256(key.encode(errors="replace")).digest() for key in map(_key, rows)}
    if len(places) < 2:
        raise UserError(f"{given}: has 1 prompt, and none can be held out; add prompts, or set run.evaluate=false")
    ordered = sorted(places, key=places.__getitem__)
    count = sum(int.from_bytes(places[key][:8]) < share * 2**64 for key in ordered)
    held_out = set(ordered[: min(max(count, 1), len(ordered) - 1)])
    unique = {key: row for row in reversed(rows) if (key := _key(row)) in held_out}
    return [row for row in rows if _key(row) not in held_out], list(unique.values())[::-1]


def _check_apart(rows: Sequence[PromptRow], held_out: Sequence[PromptRow], source: str | None) -> None:
    trained = {_key(row) for row in rows}
    both = [row for row in held_out if _key(row) in trained]
    if both:
        raise UserError(
            f"eval.prompts={source}: {len(both)} of {len(held_out)} held-out prompts are trained on as well, the first "
            f"is {both[0].prompt[:60]!r} ({both[0].where}); take them out of one of the two"
        )
