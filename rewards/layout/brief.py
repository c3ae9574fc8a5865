"""A layout brief: which elements a design has and where. Checked when prompts are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from blip3o_rl.config.base import Strict
from blip3o_rl.data.synthetic.layouts import MARGIN, region_box
from blip3o_rl.rewards.briefs import Brief, Color, Fraction, Place, close_colors
from blip3o_rl.rewards.observation import TEXT
from blip3o_rl.rewards.ocr.rules import MAX_TEXTS, folded
from blip3o_rl.rewards.pixels import PANEL, Box

Edge = Literal["left", "center", "right", "top", "middle", "bottom"]


class Element(Strict):
    """One element; `region` or `box` says where, neither leaves it open."""

    id: str
    kind: str = Field(alias="class", description="text, panel, or a class of the detector")
    text: str | None = None
    color: Color | None = None
    region: str | None = Field(None, description="top left, bottom, center ..: of a 3 x 3 grid")
    box: Place | None = None
    size: list[Fraction] | None = Field(None, min_length=2, max_length=2, description="min, max of the longer side")
    rank: int | None = Field(None, ge=1, description="of a text in the hierarchy; 1 is the highest")

    @field_validator("region")
    @classmethod
    def _known(cls, region: str | None) -> str | None:
        if region is not None:
            region_box(region)
        return region

    @model_validator(mode="after")
    def _consistent(self) -> Element:
        if (self.text is None) == (self.kind == TEXT):
            raise ValueError(f"text of '{self.id}' belongs to class text, and only there; add or remove it")
        if self.text is not None and not folded(self.text):
            raise ValueError(f"text of '{self.id}' is blank; write what it says")
        if self.rank is not None and self.kind != TEXT:
            raise ValueError(f"rank of '{self.id}' is for texts; remove it")
        if self.box and self.region:
            raise ValueError(f"region and box of '{self.id}' both say where it is; keep one")
        if self.size and not 0 < self.size[0] <= self.size[1]:
            raise ValueError(f"size of '{self.id}' is no range; write [min, max] with 0 < min <= max")
        if self.size and self.size[0] > self.room + 1e-9:
            raise ValueError(f"size of '{self.id}': {self.size[0]} has no room there, at most {self.room:.2f}; fix it")
        return self

    @property
    def place(self) -> Box | None:
        """Where it is to be, as a box in fractions; None if that is open."""
        if self.box:
            return self.box[0], self.box[1], self.box[2], self.box[3]
        return region_box(self.region) if self.region else None

    @property
    def room(self) -> float:
        """The longest side that an element can have there: inside its box, or inside the image around its region."""
        left, top, right, bottom = self.place or (0.0, 0.0, 1.0, 1.0)
        if self.box:
            return max(right - left, bottom - top)
        centers = (min(max(0.5, low), high) for low, high in ((left, right), (top, bottom)))
        return max(2 * min(center, 1 - center) for center in centers)


class LayoutBrief(Brief):
    """The metadata field `layout`."""

    elements: list[Element] = Field(min_length=1)
    under: list[tuple[str, str]] = Field([], description="pairs of an element and the panel below it")
    order: list[str] = Field([], description="reading order")
    align: list[tuple[str, str, Edge]] = Field([], description="pairs of elements that share an edge or a middle line")
    margin: float = Field(MARGIN, gt=0, lt=0.5, description="least distance of text and objects from the border")
    background: Color | None = None
    contrast: bool = Field(False, description="text is to stand out from what is around it")
    palette: bool = Field(False, description="colors are to be met, not only named right")
    extra: Literal["forbid", "allow"] = "forbid"

    @field_validator("under", "align", mode="before")
    @classmethod
    def _pairs(cls, values: Any) -> Any:
        values = values if isinstance(values, list) else [values]
        return [tuple(value) if isinstance(value, list) else value for value in values]

    def _problems(self) -> Iterator[str]:
        ids: dict[str, Element] = {}
        looks: dict[tuple[str, str | None], str] = {}
        for number, element in enumerate(self.elements):
            where = f"elements.{number}"
            if element.id in ids:
                yield f"{where}.id: '{element.id}' is there twice; rename one"
            ids[element.id] = element
            look = (element.kind, folded(element.text) if element.text else element.color)
            if look in looks:
                what = "say the same" if element.kind == TEXT else "are of one class and color"
                yield f"{where}: '{element.id}' and '{looks[look]}' {what} and cannot be told apart; change one"
            looks[look] = element.id
        if len([element for element in self.elements if element.kind == TEXT]) > MAX_TEXTS:
            yield f"elements: there are over {MAX_TEXTS} texts; leave some out"
        named = [(f"under.{n}", pair) for n, pair in enumerate(self.under)] + [("order", self.order)]
        for where, names in [*named, *((f"align.{n}", three[:2]) for n, three in enumerate(self.align))]:
            for name in names:
                if name not in ids:
                    yield f"{where}: there is no element '{name}'; known: {', '.join(ids)}"
            if len(set(names)) < len(names):
                yield f"{where}: names an element twice; remove one"
        for number, (_, panel) in enumerate(self.under):
            if ids[panel].kind != PANEL:
                yield f"under.{number}: '{panel}' is no panel; give its class panel or another element"
        colors = {"background": self.background} if self.background else {}
        colors |= {f"elements.{n}.color": element.color for n, element in enumerate(self.elements) if element.color}
        if problem := close_colors(colors):
            yield problem
        if self.background and self.background in [element.color for element in self.elements if element.kind != TEXT]:
            yield f"background: is {self.background}, and so is an element; change one"
