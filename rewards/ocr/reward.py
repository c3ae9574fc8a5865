"""The OCR reward: a text reader and the rules, as one Reward.

The value is the rules' score in the chosen mode. The components are the same in every mode: when the original score
rises, the strict one and the share of the image that text covers say whether it was hacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blip3o_rl.errors import UserError, choice
from blip3o_rl.rewards.ocr import rules
from blip3o_rl.rewards.ocr.paddle import PaddleReader
from blip3o_rl.rewards.ocr.rapid import RapidReader
from blip3o_rl.rewards.ocr.reader import TextLine, TextReader, reading_order, text_area
from blip3o_rl.scoring.adapters import known_arguments
from blip3o_rl.scoring.api import Found, Sample, Score

READERS: dict[str, Callable[..., TextReader]] = {"rapid": RapidReader, "paddle": PaddleReader}


class OCRReward:
    """Scores how well the text in an image is the text that its prompt quotes.

    Args:
        mode: strict (default) or original; see `rules`.
        reader: "rapid", "paddle", or a TextReader.
        reader_options: keyword arguments of the reader named by `reader`.
        min_confidence: lines below it do not count in the strict score, 0..1. The original score takes every line.
        confidence_weighting: right characters count as much as their confidence (strict only).

    Range: [0, 1]. Components: original and strict (the two scores; strict as configured), exact (1 if the image says
    the wanted text and nothing else, else 0), text_area (share of the image covered by text).
    """

    required_metadata: tuple[str, ...] = ()
    optional_metadata: tuple[str, ...] = ("text",)
    example_metadata: Mapping[str, Any] = {"prompt": 'a sign that says "OPEN"'}

    def __init__(
        self,
        mode: str = "strict",
        reader: str | TextReader = "rapid",
        reader_options: Mapping[str, Any] | None = None,
        min_confidence: float = 0.5,
        confidence_weighting: bool = False,
        name: str = "",
    ):
        if not 0 <= min_confidence <= 1:
            raise UserError(f"min_confidence: is {min_confidence!r}; set a number from 0 to 1")
        if confidence_weighting and mode == "original":
            raise UserError("confidence_weighting: the mode original has none; use mode: strict or leave it out")
        self.name = name or "ocr"
        self.mode = choice(mode, rules.MODES, "mode")
        self.min_confidence = min_confidence
        self.confidence_weighting = confidence_weighting
        self.reader = _reader(reader, dict(reader_options or {}))

    def check_metadata(self, metadata: Mapping[str, Any]) -> str:
        """Why this prompt cannot be scored; empty if it can."""
        try:
            rules.wanted_texts(metadata["prompt"], metadata, self.mode)
        except ValueError as error:
            return str(error)
        return ""

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One Score per sample; the reader sees all images at once."""
        wanted = []
        for sample in samples:
            try:
                wanted.append(rules.wanted_texts(sample.prompt, sample.metadata, self.mode))
            except ValueError as error:
                raise ValueError(f"prompt {sample.prompt!r}: {error}") from error
        read = self.reader.read([sample.image for sample in samples])
        return [self._score(*row) for row in zip(samples, wanted, read, strict=True)]

    def _score(self, sample: Sample, wanted: list[str], lines: list[TextLine]) -> Score:
        clear = reading_order([line for line in lines if line.confidence >= self.min_confidence])
        height, width = sample.image.shape[:2]
        components = {
            "original": rules.original(wanted[0], [line.text for line in lines]),
            "strict": rules.strict(wanted, clear, self.confidence_weighting),
            "exact": float(rules.strict(wanted, clear) == 1),
            "text_area": text_area(lines, height, width),
        }
        counted = [line.text for line in (lines if self.mode == "original" else clear)]
        found = tuple(Found(line.text, line.box(height, width)) for line in lines)
        return Score(components[self.mode], components, f"wanted {_quoted(wanted)}, read {_quoted(counted)}", found)


def _quoted(texts: Sequence[str]) -> str:
    """The texts for the log, each in quotation marks, 100 characters at most."""
    joined = " ".join(f'"{text}"' for text in texts) or "nothing"
    return joined if len(joined) <= 100 else joined[:97] + "..."


def _reader(reader: str | TextReader, options: dict[str, Any]) -> TextReader:
    if not isinstance(reader, str):
        if options:
            raise UserError(f"reader_options: a reader object takes none, remove {', '.join(options)}")
        return reader
    make = READERS[choice(reader, READERS, "reader")]
    return make(**known_arguments(make, options, "reader_options"))
