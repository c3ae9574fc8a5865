"""The planogram reward: observer and rules, as one Reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from blip3o_rl.rewards.briefs import BriefReward, Verdict, unseen
from blip3o_rl.rewards.observation import Observation
from blip3o_rl.rewards.planogram import rules
from blip3o_rl.rewards.planogram.brief import PlanogramBrief


class PlanogramReward(BriefReward):
    """Scores how well an image shows the shelves that the metadata field `planogram` describes.

    Range: [0, 1]. Components: the terms of `rules`, kpi_* (the rates of shop audits), exact (sequence, facings, osa and
    an asked price are all 1), rows (found / asked), commonest (share of the commonest product), foreign (share of
    products that are not in the plan).
    """

    field = "planogram"
    brief = PlanogramBrief
    reads = False
    WEIGHTS: ClassVar[Mapping[str, float]] = {"sequence": 0.65, "facings": 0.25, "osa": 0.1, "price": 0.1}
    example_metadata: ClassVar[Mapping[str, Any]] = {
        "prompt": "a photo of shelves: two red circles",
        "planogram": {
            "count_from": "top",
            "products": {"A": {"class": "circle", "color": "red"}},
            "shelves": [[{"product": "A", "facings": 2}]],
        },
    }

    def unknown(self, brief: PlanogramBrief) -> str:
        if brief.prices and self.observer.reader is None:
            return "planogram.prices: the observer does not read; set observer.read: true, or remove prices"
        if brief.plans_empty_slots and not rules.is_readable(brief):
            return (
                "planogram.shelves: no image can show these empty slots; put products on every shelf, one at each end "
                "of some shelf, and two side by side, or leave out the empty slots"
            )
        places = ((f"planogram.products.{key}", product) for key, product in brief.products.items())
        return next(filter(None, (unseen(self.observer, where, p.kind, p.color) for where, p in places)), "")

    def judge(self, brief: PlanogramBrief, seen: Observation) -> Verdict:
        terms, components = rules.terms(brief, seen)
        return Verdict(terms, terms, min(terms.values()) > 1 - 1e-9, components)
