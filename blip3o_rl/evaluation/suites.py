"""The built-in held-out evaluations of the mini model: for each, its prompts and who judges the pictures.

A suite has the name of the `prompts.source` whose training prompts it belongs to, so that a run trained on one is
scored on the other side of the same split. Prompts of one's own have no suite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blip3o_rl.data.synthetic.scene_prompts import held_out_prompts
from blip3o_rl.data.synthetic.scenes import Metadata
from blip3o_rl.data.synthetic.words import HELD_OUT, held_out_words
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.geneval.reward import GenEvalReward
from blip3o_rl.rewards.ocr.reward import OCRReward
from blip3o_rl.scoring.api import Reward


@dataclass(frozen=True)
class Suite:
    """One evaluation.

    Attributes:
        prompts: the first n held-out prompts; ValueError when there are fewer.
        default_prompts: how many are taken if nobody says.
        judge: makes the reward that scores the pictures, whatever was trained on.
        correct: the judge's part that is 1 where all of a picture is right.
    """

    prompts: Callable[[int], list[Metadata]]
    default_prompts: int
    judge: Callable[[], Reward]
    correct: str


SUITES: dict[str, Suite] = {
    "shapes": Suite(
        held_out_prompts,
        64,
        lambda: GenEvalReward(mode="partial", detector="scenes"),
        "correct",
    ),
    "words": Suite(held_out_words, HELD_OUT, OCRReward, "exact"),
}


def suite_of(name: str) -> Suite:
    """The suite of a name.

    Raises:
        UserError: there is none.
    """
    if name not in SUITES:
        raise UserError(f"eval {name}: there is no such suite; known: {', '.join(SUITES)}")
    return SUITES[name]
