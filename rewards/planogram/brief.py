"""A planogram brief: products and the shelves they stand on. Checked when prompts are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StrictInt, model_validator

from blip3o_rl.config.base import Strict
from blip3o_rl.rewards.briefs import Brief, Color, close_colors

MAX_OF_A_CLASS = 16
"""Facings of a class that a detector can count (GenEval's cap)."""
Positive = Annotated[StrictInt, Field(ge=1)]


class Product(Strict):
    """What a product looks like, and what its price label says."""

    kind: str = Field(alias="class", description="a class of the detector")
    color: Color | None = None
    name: str | None = None
    upc: str | None = None
    brand: str | None = None
    size_mm: list[Annotated[float, Field(gt=0)]] | None = Field(None, min_length=2, max_length=2)
    price: str | None = Field(None, pattern=r"^\d+[.,]\d\d$")


class Item(Strict):
    """A product with its facings (wide, or [wide, high] or [wide, high, deep]), or a number of empty slots."""

    product: str | None = None
    facings: Positive | Annotated[list[Positive], Field(min_length=1, max_length=3)] = 1
    empty: Positive | None = None

    @model_validator(mode="after")
    def _one(self) -> Item:
        if (self.product is None) == (self.empty is None) or (self.empty and "facings" in self.model_fields_set):
            raise ValueError("is neither a product with its facings nor a number of empty slots; write one of them")
        return self

    @property
    def wide(self) -> int:
        return self.empty or (self.facings if isinstance(self.facings, int) else self.facings[0])

    @property
    def high(self) -> int:
        return 1 if isinstance(self.facings, int) or len(self.facings) < 2 else self.facings[1]


class PlanogramBrief(Brief):
    """The metadata field `planogram`. Depth is kept and not judged: an image shows none."""

    count_from: Literal["top", "bottom"]
    products: dict[str, Product] = Field(min_length=1)
    shelves: list[Annotated[list[Item], Field(min_length=1)]] = Field(min_length=1)
    slots: Positive | None = Field(None, description="facings that a shelf has room for")
    width_mm: float | None = Field(None, gt=0, description="width of a shelf")
    empty: Literal["forbid", "allow"] = Field("forbid", description="gaps that the plan does not have")
    mirror: Literal["forbid", "allow"] = Field("forbid", description="rows from right to left")
    prices: bool = Field(False, description="price labels below the products are read")

    @property
    def rows(self) -> list[list[Item]]:
        """The shelves from the top down."""
        return self.shelves[:: 1 if self.count_from == "top" else -1]

    @property
    def plans_empty_slots(self) -> bool:
        return any(item.empty for row in self.shelves for item in row)

    def _problems(self) -> Iterator[str]:
        looks: dict[tuple[str, str | None], str] = {}
        for key, product in self.products.items():
            look = (product.kind, product.color)
            if look in looks:
                yield f"products.{key}: is a {' '.join(filter(None, look[::-1]))} like {looks[look]}; change one"
            looks[look] = key
        colors = {f"products.{key}.color": product.color for key, product in self.products.items() if product.color}
        if problem := close_colors(colors):
            yield problem
        counts: Counter[str] = Counter()
        for n, row in enumerate(self.shelves):
            for m, item in enumerate(row):
                if item.product is None:
                    continue
                if item.product not in self.products:
                    yield f"shelves.{n}.{m}: there is no product '{item.product}'; known: {', '.join(self.products)}"
                counts[self.products[item.product].kind] += item.wide * item.high
            if self.slots and sum(item.wide for item in row) > self.slots:
                yield f"shelves.{n}: has {sum(item.wide for item in row)} facings side by side; slots is {self.slots}"
            sizes = [(item.wide, self.products[item.product].size_mm) for item in row if item.product]
            width = sum(wide * size[0] for wide, size in sizes if size)
            if self.width_mm and width > self.width_mm + 1e-6:
                yield f"shelves.{n}: its products are {width:g} mm wide; width_mm is {self.width_mm:g}"
        for kind, count in counts.items():
            if count > MAX_OF_A_CLASS:
                yield f"shelves: {count} facings of class {kind}; {MAX_OF_A_CLASS} can be counted, split the plan"
        if not counts:
            yield "shelves: there is no product on them; add one"
        if self.prices and not any(product.price for product in self.products.values()):
            yield "prices: no product has a price; add some or remove it"
