"""Images of known content, for trying a reward: black, noise, a scene with its prompt, and the prompt in letters.

A reward for edits gets the scene as reference, so that one of the images is a copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blip3o_rl.data.synthetic import scenes
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.entry import RubricEntry
from blip3o_rl.scoring.prompt_checks import metadata_problem

SIDE = 256
NAMES = ("blank", "noise", "scene", "lettering")


def known_samples(entry: RubricEntry, metadata: Mapping[str, Any] | None = None, side: int = SIDE) -> list[Sample]:
    """One sample of `side` px per name in `NAMES`, its id, with a prompt and metadata that the reward can score.

    Raises:
        UserError: it can score neither the scene's prompt (with `metadata` on top) nor its own `example_metadata`.
    """
    rng = np.random.default_rng(0)
    scene_metadata, scene = scenes.sample(rng, "color_attr")
    fields = _fitting(entry, metadata, scene_metadata)
    prompt = str(fields.get("prompt", scene_metadata["prompt"]))
    references = (scenes.draw(scene, side),) if fields.get("references") else ()
    images = (
        np.zeros((side, side, 3), np.uint8),
        rng.integers(0, 256, (side, side, 3), np.uint8),
        scenes.draw(scene, side),
        lettering(prompt.split('"')[1] if prompt.count('"') >= 2 else prompt, side),
    )
    return [
        Sample(name, prompt, image, dict(fields), references=references)
        for name, image in zip(NAMES, images, strict=True)
    ]


def lettering(text: str, side: int) -> np.ndarray:
    """Black letters on white; uint8 [side, side, 3]."""
    image = Image.new("RGB", (side, side), "white")
    font = ImageFont.load_default(side / 10)
    ImageDraw.Draw(image).multiline_text((side / 12, side / 6), fill(text, 14), fill="black", font=font)
    return np.array(image)


def _fitting(
    entry: RubricEntry, metadata: Mapping[str, Any] | None, scene_metadata: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The first metadata that the reward can score: those given on top of the scene's, or its own example."""
    example = getattr(entry.reward, "example_metadata", None)
    edits = {"references": ["scene"]} if "references" in entry.reward.required_metadata else {}
    candidates = [{**scene_metadata, **edits, **(metadata or {})}]
    if metadata is None and example is not None:
        candidates.append(dict(example))
    problems = []
    for candidate in candidates:
        problems.append(metadata_problem(entry.reward, candidate))
        if not problems[-1]:
            return candidate
    raise UserError(
        f"reward '{entry.name}' cannot score the prompt of the check: {problems[0]}; give --metadata '{{\"field\": "
        "value}', or the class an attribute example_metadata"
    )
