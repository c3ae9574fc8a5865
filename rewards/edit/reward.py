"""The edit reward: an observer for what was asked, a measure for what was to stay, combined as one Reward.

The observer sees reference and output, never the instruction. Operations that change every pixel (style, background)
are measured by their structure whatever the measure of the others is. No pixels of a target are ever compared: there
are many right edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from blip3o_rl.data.references import load_image
from blip3o_rl.errors import UserError, check_names, choice
from blip3o_rl.monitoring.image_statistics import DUPLICATE_BELOW, pixel_distances
from blip3o_rl.rewards.briefs import observer_of, read_brief, unseen
from blip3o_rl.rewards.edit import consistency, rules
from blip3o_rl.rewards.edit.brief import KEEPING, OPERATIONS, Clause, EditBrief
from blip3o_rl.rewards.edit.consistency import Measure, Pair
from blip3o_rl.rewards.observation import Observation, Observer
from blip3o_rl.rewards.pixels import covers
from blip3o_rl.scoring.api import Found, RewardError, Sample, Score

MEASURES: dict[str, tuple[float, float]] = {"pixels": (0.09, 0.99), "structure": (0.1, 0.96), "dinov2": (0.0, 1.0)}
"""Measure -> its anchors by default: K of a regenerated image, and of an autoencoder's round trip. Measured for the
packaged model's scenes; dinov2's are those of no normalization."""
STRUCTURAL = ("style", "background")


class EditReward:
    """Scores an edit: I+ for what the metadata field `edit` asks for, K+ for the rest of the first reference.

    Args:
        observer: arguments of `observation.open_observer` (detector, checkpoint ..), or an Observer.
        combine: product, geometric, min, mean, gate; or instruction or consistency alone.
        measures: operation -> pixels, structure or dinov2, where it differs from structure for style and background
            and pixels for all others; "all" stands for every operation.
        anchors: measure -> (K of a regenerated image, K of a round trip), where they differ from MEASURES.
        checkpoint: folder or hub id of a Dinov2Model, for the measure dinov2.
        device: of that network.

    Range: [0, 1]. Components: consistency (K+), kept (K), regenerated, exact; and where something is to change
    instruction (I+), success, near_copy. near_copy and regenerated are there for the operation, too (near_copy_add).
    """

    required_metadata: tuple[str, ...] = ("edit", "references")
    optional_metadata: tuple[str, ...] = ("target",)
    example_metadata: ClassVar[Mapping[str, Any]] = {
        "prompt": "add a red circle",
        "references": ["scene.png"],
        "edit": {"operation": "add", "include": [{"class": "circle", "color": "red"}]},
    }

    def __init__(
        self,
        observer: Observer | Mapping[str, Any] | None = None,
        combine: str = "product",
        measures: Mapping[str, str] | None = None,
        anchors: Mapping[str, Sequence[float]] | None = None,
        checkpoint: str | None = None,
        device: str = "auto",
        name: str = "",
    ):
        self.combine = rules.COMBINATIONS[choice(combine, rules.COMBINATIONS, "combine")]
        self.measures = _measures(measures or {})
        self.anchors = {**MEASURES, **_anchors(anchors or {})}
        self.name = name or "edit"
        if ("dinov2" in self.measures.values()) != (checkpoint is not None):
            raise UserError("checkpoint: is for the measure dinov2; give both, or neither")
        self._measure: dict[str, Measure] = {"pixels": consistency.pixels, "structure": consistency.structure}
        if checkpoint is not None:
            from blip3o_rl.rewards.edit.features import Dinov2

            self._measure["dinov2"] = Dinov2(checkpoint, device)
        self.observer = observer_of(observer, read=False)

    def check_metadata(self, metadata: Mapping[str, Any]) -> str:
        """Why this prompt cannot be scored; empty if it can. Called for every prompt when the data is loaded."""
        try:
            brief = self._brief(metadata)
        except UserError as error:
            return str(error)
        if not brief.asks and brief.operation not in KEEPING and self.combine is not rules.COMBINATIONS["consistency"]:
            return f"edit: {brief.operation} has no clause; say in include or exclude what is to change"
        clauses: dict[str, Clause] = {f"include.{n}": clause for n, clause in enumerate(brief.include)}
        clauses |= {f"exclude.{n}": clause for n, clause in enumerate(brief.exclude)}
        found = (unseen(self.observer, f"edit.{where}", c.kind, c.color) for where, c in clauses.items())
        return next(filter(None, found), "")

    def score(self, samples: Sequence[Sample]) -> list[Score | RewardError]:
        """One Score per sample. A RewardError where there is no reference, or where the reference already is as asked:
        no image could gain on it."""
        rows = [row for row, sample in enumerate(samples) if sample.references]
        sizes = {row: samples[row].image.shape[:2] for row in rows}
        references = {row: consistency.resized(samples[row].references[0], size) for row, size in sizes.items()}
        seen = self.observer.observe([*(samples[row].image for row in rows), *references.values()])
        found: list[Score | RewardError] = [RewardError("has no reference image")] * len(samples)
        edits = {
            row: _Edit(self._brief(samples[row].metadata), samples[row], references[row], after, before)
            for row, after, before in zip(rows, seen, seen[len(rows) :], strict=False)
        }
        kept = self._kept(edits)
        for row, edit in edits.items():
            found[row] = self._score_of(edit, kept[row])
        return found

    def _kept(self, edits: Mapping[int, _Edit]) -> dict[int, float]:
        """K of each edit."""
        kept: dict[int, float] = {}
        for name, measure in self._measure.items():
            rows = [row for row, edit in edits.items() if self.measures[edit.brief.operation] == name]
            kept |= dict(zip(rows, measure([edits[row].pair() for row in rows]), strict=True))
        return kept

    def _score_of(self, edit: _Edit, kept: float) -> Score | RewardError:
        brief = edit.brief
        consistent = rules.between(kept, *self.anchors[self.measures[brief.operation]])
        components = {
            "consistency": consistent,
            "kept": kept,
            "exact": float(consistent > rules.KEPT),
            **_shares("regenerated", consistent < rules.REGENERATED, brief),
        }
        if not brief.asks:
            return Score(consistent, components, f"kept {consistent:.2f}", edit.found)
        before, after = rules.quality(edit.terms_before), rules.quality(edit.terms_after)
        if before >= 1:
            return RewardError(f"the reference already is what {brief.operation} asks for")
        instruction = rules.between(after, before, 1.0)
        success = min(min(clause) for clause in edit.terms_after) >= rules.DONE
        copied = pixel_distances([edit.reference, edit.image])[0] < DUPLICATE_BELOW
        components |= {"instruction": instruction, "success": float(success), **_shares("near_copy", copied, brief)}
        components["exact"] *= success
        reason = f"done {instruction:.2f}, kept {consistent:.2f}"
        return Score(self.combine(instruction, consistent), components, reason, edit.found)

    def _brief(self, metadata: Mapping[str, Any]) -> EditBrief:
        return read_brief(EditBrief, metadata, "edit")


class _Edit:
    """An output, what was asked, and what the observer saw in it and in the reference."""

    def __init__(
        self, brief: EditBrief, sample: Sample, reference: np.ndarray, after: Observation, before: Observation
    ):
        self.brief, self.image, self.reference = brief, sample.image, reference
        self.target = sample.metadata.get("target")
        self.found = tuple(Found(thing.label, thing.box) for thing in after.things)
        cleared = [consistency.cleared(self.image, reference, clause.box) for clause in brief.exclude]
        self.terms_before = rules.terms(brief, before.objects, [1.0 for _ in brief.exclude])
        self.terms_after = rules.terms(brief, after.objects, cleared)
        made = rules.changed(brief, self.terms_before, after.objects)
        stays = rules.staying(brief, before.objects)
        self.new = [thing.box for thing in made if not any(covers(thing.box, other.box) for other in stays)]

    def pair(self) -> Pair:
        """Reference and output, and where they are to agree."""
        mask, shape = None, self.reference.shape[:2]
        if self.brief.mask is not None:
            mask = consistency.resized(load_image(self.brief.mask), shape).mean(axis=2) > 127
        elif isinstance(self.target, str):
            mask = consistency.difference(self.reference, consistency.resized(load_image(self.target), shape))
        outside = consistency.outside(shape, [*self.brief.boxes, *self.new], mask)
        return Pair(self.reference, self.image, outside)


def _shares(name: str, value: bool, brief: EditBrief) -> dict[str, float]:
    return {name: float(value), f"{name}_{brief.operation}": float(value)}


def _measures(given: Mapping[str, str]) -> dict[str, str]:
    check_names(given, (*OPERATIONS, "all"), "measures", "operation")
    for operation, measure in given.items():
        choice(measure, MEASURES, f"measures.{operation}")
    usual = {operation: "structure" if operation in STRUCTURAL else "pixels" for operation in OPERATIONS}
    whole = dict.fromkeys(OPERATIONS, given["all"]) if "all" in given else usual
    return {**whole, **{operation: measure for operation, measure in given.items() if operation != "all"}}


def _anchors(given: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    check_names(given, MEASURES, "anchors", "measure")
    found = {}
    for measure, pair in given.items():
        if len(pair) != 2 or not 0 <= pair[0] < pair[1] <= 1:
            raise UserError(f"anchors.{measure}: is {pair!r}; write two numbers, 0 <= regenerated < round trip <= 1")
        found[measure] = (pair[0], pair[1])
    return found
