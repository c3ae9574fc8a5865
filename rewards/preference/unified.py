"""UnifiedReward: judges that were trained to judge, behind an OpenAI-compatible endpoint.

Two generations with their published scalings. Version 1.5 ends its answer with "Final Score: x", x from 1 to 5, and
the value is x / 5 (Flow-GRPO). Version 2.0 gives alignment, coherence and style, each 1 to 5, and the value is
(mean - 1) / 4 (verl-omni). Unlike there, an answer without these lines, or with a number outside 1 to 5, is a
RewardError and not a 0 or a clipped value.

The question is in this package's words and asks for the published answer format. The models were trained on their
authors' wording: for figures that compare with published ones, save it to a file and set `question_file` (README).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.preference.chat import ChatClient, png_url
from blip3o_rl.rewards.preference.judge import excerpt, fill, read_question, verdicts
from blip3o_rl.scoring.api import RewardError, Sample, Score

SIDE = 512
"""Pixels to which Flow-GRPO resizes pictures before they are judged."""
AXES = ("Alignment", "Coherence", "Style")
QUESTIONS = {
    "1.5": """Rate a generated image against the caption it was generated from. Two things count: whether objects, \
their attributes and their relations are as the caption says, and whether the image is clear, detailed, well coloured \
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


class UnifiedReward:
    """UnifiedReward (Wang et al. 2025, arXiv 2503.05236).

    Args:
        version: "1.5", value in [0.2, 1]; or "2.0", value in [0, 1].
        model: the served model's name; by default the version's hub id.
        url: the endpoint up to and including the version.
        question_file: the question, with {prompt}; see the module's docstring.
        side: pictures are resized to side x side; None sends them as they are.
        api_key_env, request_timeout_s, request_retries, request_backoff_s, max_requests, max_tokens: see `ChatClient`.

    Parts: `raw`, the score or the mean on the scale 1 to 5; version 2.0 also `alignment`, `coherence`, `style`.
    """

    name = "unifiedreward"
    required_metadata: tuple[str, ...] = ()

    def __init__(
        self,
        version: str = "1.5",
        model: str | None = None,
        url: str = "http://127.0.0.1:8000/v1",
        question_file: str | None = None,
        side: int | None = SIDE,
        api_key_env: str = "",
        request_timeout_s: float = 30.0,
        request_retries: int = 2,
        request_backoff_s: float = 0.5,
        max_requests: int = 16,
        max_tokens: int = 1024,
    ):
        # YAML reads an unquoted 2.0 as a number.
        self.version = str(version)
        if self.version not in QUESTIONS:
            raise UserError(f"version: is {version!r}; use one of {', '.join(QUESTIONS)}")
        model = model or MODELS[self.version]
        self.client = ChatClient(
            url, model, api_key_env, request_timeout_s, request_retries, request_backoff_s, max_requests, max_tokens
        )
        self.question = read_question(question_file) if question_file else QUESTIONS[self.version]
        self.side = side

    async def score(self, samples: Sequence[Sample]) -> list[Score | RewardError]:
        """One Score a sample; a RewardError in the place of a sample without a usable answer."""
        questions = [(fill(self.question, s.prompt), png_url(s.image, self.side)) for s in samples]
        return verdicts(await self.client.ask(questions), self.read)

    def read(self, answer: str) -> Score:
        """The score in an answer, by the version's format.

        Raises:
            RewardError: if a line is missing, contradicts itself or has no number from 1 to 5.
        """
        if self.version == "1.5":
            final = labelled(answer, "Final Score")
            return Score(final / 5, {"raw": final})
        axes = {axis.lower(): labelled(answer, f"{axis} Score") for axis in AXES}
        mean = sum(axes.values()) / len(axes)
        return Score((mean - 1) / 4, {"raw": mean, **axes})


def labelled(answer: str, label: str) -> float:
    """The number from 1 to 5 after "<label>:" or "<label> (1-5):"; bold marks and a full stop around it do not matter.

    Raises:
        RewardError: if there is none, something else, or several that differ.
    """
    words = re.findall(rf"{re.escape(label)}(?:\s*\(1-5\))?[*\s]*:[*\s]*(\S+)", answer)
    found = {word.rstrip(".*") for word in words}
    if not found:
        raise RewardError(f"the answer has no '{label}:': {excerpt(answer)}")
    if len(found) > 1:
        raise RewardError(f"the answer has several values after '{label}:': {excerpt(answer)}")
    word = found.pop()
    if not NUMBER.fullmatch(word) or not 1 <= float(word) <= 5:
        raise RewardError(f"'{excerpt(word)}' after '{label}:' is no number from 1 to 5")
    return float(word)
