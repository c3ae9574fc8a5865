"""UnifiedReward: judges that were trained to judge, behind an OpenAI-compatible endpoint.

Version 1.5 ends its answer with "Final Score: x", x from 1 to 5, and the value is x / 5 (Flow-GRPO). Version 2.0 gives
alignment, coherence and style, each 1 to 5, and the value is (mean - 1) / 4 (verl-omni). Unlike there, an answer
without these lines, or with a number outside 1 to 5, is a RewardError and not a 0 or a clipped value. The question is
in this package's own wording and asks for the published answer format; the README says how to use the authors'.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from blip3o_rl.config.base import validate
from blip3o_rl.rewards.preference.chat import ChatJudge, ChatSettings, excerpt
from blip3o_rl.scoring.api import RewardError, Score

AXES = ("Alignment", "Coherence", "Style")
QUESTIONS = {
    "1.5": """Rate a generated image against the caption it was generated from. Two things count: whether objects, \
their attributes and their relations are as the caption says, and whether the image is clear, detailed, well colored \
and pleasing to look at.
Give one score from 1 to 5 after 'Final Score:'.
Text Caption: [{prompt}]""",
    "2.0": """Rate a generated image against the caption it was generated from, on three axes, each from 1 to 5:
- Alignment Score: does the content match the caption?
- Coherence Score: is the image free of glitches, distortions and contradictions?
- Style Score: is it pleasing to look at, whatever the caption says?

Answer in this format:

Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z

Text Caption: [{prompt}]""",
}
MODELS = {"1.5": "CodeGoat24/UnifiedReward-7b-v1.5", "2.0": "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b"}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


class UnifiedSettings(ChatSettings):
    """As published: images of 512 pixels (Flow-GRPO), the version's hub id as the model's name."""

    version: Literal["1.5", "2.0"] = Field("1.5", description="1.5: value in [0.2, 1]; 2.0: value in [0, 1]")
    model: str = Field("", description="name under which the server serves the model; empty is the version's hub id")
    side: int | None = Field(512, ge=1, description="images are resized to side x side; null sends them as they are")
    max_tokens: int = Field(1024, ge=1, description="limit of the answer; an answer that reaches it is an error")

    @field_validator("version", mode="before")
    @classmethod
    def _text(cls, version: Any) -> str:
        return str(version)  # YAML reads an unquoted 2.0 as a number


class UnifiedReward(ChatJudge):
    """UnifiedReward (Wang et al. 2025, arXiv 2503.05236); the options are the fields of `UnifiedSettings`.

    Components: `raw`, the score or the mean on the scale 1 to 5; version 2.0 also `alignment`, `coherence`, `style`.
    """

    name = "unifiedreward"

    def __init__(self, **options: Any):
        settings = validate(UnifiedSettings, options, "")
        self.version = settings.version
        model = settings.model or MODELS[self.version]
        super().__init__(settings.model_copy(update={"model": model}), QUESTIONS[self.version])

    def read(self, answer: str) -> Score:
        if self.version == "1.5":
            final = labeled(answer, "Final Score")
            return Score(final / 5, {"raw": final})
        axes = {axis.lower(): labeled(answer, f"{axis} Score") for axis in AXES}
        mean = sum(axes.values()) / len(axes)
        return Score((mean - 1) / 4, {"raw": mean, **axes})


def labeled(answer: str, label: str) -> float:
    """The number from 1 to 5 after "<label>:" or "<label> (1-5):"; bold marks and a full stop are ignored."""
    numbers = re.findall(rf"{re.escape(label)}(?:\s*\(1-5\))?[*\s]*:[*\s]*(\S+)", answer)
    found = {number.rstrip(".*") for number in numbers}
    if len(found) != 1:
        problem = "has several values after" if found else "has no"
        raise RewardError(f"the answer {problem} '{label}:': {excerpt(answer)}")
    number = found.pop()
    if not NUMBER.fullmatch(number) or not 1 <= float(number) <= 5:
        raise RewardError(f"'{excerpt(number)}' after '{label}:' is no number from 1 to 5")
    return float(number)
