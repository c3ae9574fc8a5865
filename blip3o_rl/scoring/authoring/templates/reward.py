"""NAME: say in one sentence what it rewards, and how it could be fooled.

blip3o-rl rewards check NAME.py:NAME      tries it on images whose content is known
pytest test_NAME.py                       its calibration: good before bad, good before hacked
blip3o-rl train recipes/shapes reward.rewards.NAME.path=NAME.py:NAME reward.rewards.NAME.weight=1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from blip3o_rl.scoring.api import Score


def NAME(image: np.ndarray, prompt: str, metadata: Mapping[str, Any], wanted: float = 0.25) -> Score:
    """Scores one image.

    The names of the parameters decide what is passed; leave out what is not needed.
        image       uint8 [height, width, 3], RGB
        prompt      the text that the image was generated for
        metadata    the prompt file's line, a dictionary
        others      keyword arguments of the config: reward.rewards.NAME.wanted=0.4
    `images, prompts, metadatas` instead get whole batches and return a list; `async def` works, too. A class with
    `score(self, samples)` may have `setup(self)`, which is called once per process and loads weights.

    Raise an exception where there is no verdict. Never answer 0 instead: 0 says that the image is bad.
    """
    red, green, blue = (image[..., channel] for channel in range(3))
    share = float(((red > 150) & (green < 100) & (blue < 100)).mean())
    value = max(0.0, 1 - abs(share - wanted) / wanted)
    # Components are logged, each as a curve of its own; the reason is for whoever looks at the image.
    return Score(value, {"red_share": share}, f"red covers {share:.0%}, wanted {wanted:.0%}")


# Fields that every line of the prompt file must have; a file without them is refused before the run starts.
# NAME.required_metadata = ("target",)
