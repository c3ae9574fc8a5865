"""The layout reward: observer and rules, as one Reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.briefs import BriefReward, Verdict, unseen
from blip3o_rl.rewards.layout import rules
from blip3o_rl.rewards.layout.brief import LayoutBrief
from blip3o_rl.rewards.observation import TEXT, Observation, Observer
from blip3o_rl.rewards.pixels import PANEL


class LayoutReward(BriefReward):
    """Scores how well an image is the layout that the metadata field `layout` describes.

    Args:
        reach: distance from the asked region at which a place is worth nothing, in sides of the image.
        observer, weights, terms, sharpness: see `BriefReward`.

    Range: [0, 1]. Components: the terms of `rules` that the brief asks for, cover, exact (text, presence and region
    are all 1), found (how many elements), text_area.
    """

    field = "layout"
    brief = LayoutBrief
    WEIGHTS: ClassVar[Mapping[str, float]] = {
        **{"text": 0.35, "presence": 0.2, "region": 0.3, "overlap": 0.1, "margin": 0.05},
        **{"contrast": 0.05, "palette": 0.05, "hierarchy": 0.05, "order": 0.05, "align": 0.05, "under": 0.1},
    }
    example_metadata: ClassVar[Mapping[str, Any]] = {
        "prompt": 'a photo of a design with the text "HE" at the top left',
        "layout": {"elements": [{"id": "title", "class": "text", "text": "HE", "region": "top left"}]},
    }

    def __init__(
        self,
        observer: Mapping[str, Any] | Observer | None = None,
        weights: Mapping[str, float] | None = None,
        terms: list[str] | tuple[str, ...] | None = None,
        sharpness: float = 1.0,
        reach: float = rules.REACH,
        name: str = "",
    ):
        if not reach > 0:
            raise UserError(f"reach: is {reach!r}; set a number above 0")
        super().__init__(observer, weights, terms, sharpness, name)
        self.reach = reach

    def unknown(self, brief: LayoutBrief) -> str:
        if self.observer.reader is None and any(element.kind == TEXT for element in brief.elements):
            return "layout.elements: has a text, and the observer does not read; set observer.read: true"
        places = ((f"layout.elements.{n}", element) for n, element in enumerate(brief.elements) if element.kind != TEXT)
        return next(filter(None, (unseen(self.observer, w, e.kind, e.color, (TEXT, PANEL)) for w, e in places)), "")

    def judge(self, brief: LayoutBrief, seen: Observation) -> Verdict:
        terms = rules.terms(brief, seen, self.reach)
        cover = (terms["text"] + terms["presence"]) / 2
        paid = {term: value if term in rules.REQUIRED else cover * value for term, value in terms.items()}
        exact = all(terms[term] > 1 - 1e-6 for term in rules.REQUIRED if term in terms)
        return Verdict(terms, paid, exact, {"cover": cover, "found": float(len(seen.things))})
