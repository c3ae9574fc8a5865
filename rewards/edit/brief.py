"""What an edit asks for, and where it may change the image. Checked when prompts are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import Field

from blip3o_rl.config.base import Strict
from blip3o_rl.rewards.briefs import Brief, Color, Place
from blip3o_rl.rewards.geneval.metadata import RELATIONS

Operation = Literal[
    "add", "remove", "recolor", "replace", "move", "keep", "compose", "impossible",
    "adjust", "background", "style", "extract", "action", "text",
]  # fmt: skip
"""Those of the synthetic scenes, and ImgEdit's and GEdit's further ones."""
OPERATIONS: tuple[str, ...] = get_args(Operation)
KEEPING = ("keep", "impossible")
"""Operations that ask for nothing: the reference itself is right."""


class Clause(Strict):
    """Things of one class, and of one color if that is given."""

    kind: str = Field(alias="class", description="a class of the detector")
    count: int = Field(1, ge=1)
    color: Color | None = None


class Include(Clause):
    """So many of them are to be there afterwards."""

    position: tuple[RELATIONS, int] | None = Field(None, strict=False, description="relation to an earlier clause")
    box: Place | None = None


class Exclude(Clause):
    """Fewer than `count` of them are to be there afterwards."""

    box: Place | None = Field(None, description="where they were, on a plain background that is to show again")


class EditBrief(Brief):
    """The metadata field `edit`."""

    operation: Operation
    include: list[Include] = Field([], description="what the instruction makes or changes, and what it refers to")
    exclude: list[Exclude] = []
    boxes: list[Place] = Field([], description="where the edited objects were")
    mask: str | None = Field(None, description="image of the reference's size, white where it may change")

    @property
    def asks(self) -> bool:
        """Whether anything is to change."""
        return bool(self.include or self.exclude)

    def _problems(self) -> Iterator[str]:
        if self.asks and self.operation in KEEPING:
            yield f"operation: {self.operation} asks for no change; remove include and exclude"
        for number, clause in enumerate(self.include):
            if clause.position and not 0 <= clause.position[1] < number:
                index = clause.position[1]
                yield f"include.{number}.position: refers to clause {index}; it must be an earlier one, counted from 0"
