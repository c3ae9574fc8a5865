"""What `blip3o-rl rewards new` writes: a reward that works, and its calibration test.

The example rewards a share of red, because that shows in a few lines what a reward should have: a value that grows
with every bit of progress, parts that explain it, and no way to win by doing too much (an all red picture gets 0).
"""

from __future__ import annotations

import keyword

from blip3o_rl.errors import UserError


def files(name: str) -> dict[str, str]:
    """File name -> text of `<name>.py` and `test_<name>.py`.

    Args:
        name: of the reward, its function and the file.

    Raises:
        UserError: the name is no Python name.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"rewards new {name}: no name for a Python function; use letters, digits and underscores")
    return {f"{name}.py": REWARD.replace("NAME", name), f"test_{name}.py": TEST.replace("NAME", name)}


REWARD = '''"""NAME: say in one sentence what it rewards, and how it could be fooled.

    blip3o-rl rewards check NAME.py:NAME      tries it on pictures whose content is known
    pytest test_NAME.py                       its calibration: good before bad, good before hacked
    blip3o-rl train recipes/shapes reward.rewards.NAME.path=NAME.py:NAME reward.rewards.NAME.weight=1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from blip3o_rl.scoring.api import Score


def NAME(image: np.ndarray, prompt: str, metadata: Mapping[str, Any], wanted: float = 0.25) -> Score:
    """Scores one picture.

    The names of the parameters decide what is passed; leave out what is not needed.
        image       uint8 [height, width, 3], RGB
        prompt      the text that the picture was drawn for
        metadata    the prompt file's line, a dictionary
        others      keyword arguments of the config: reward.rewards.NAME.wanted=0.4
    `images, prompts, metadatas` instead get whole batches and return a list; `async def` works, too. A class with
    `score(self, samples)` may have `setup(self)`, which is called once a process and loads weights.

    Raise an exception where there is no verdict. Never answer 0 instead: 0 says that the picture is bad.
    """
    red, green, blue = (image[..., channel] for channel in range(3))
    share = float(((red > 150) & (green < 100) & (blue < 100)).mean())
    value = max(0.0, 1 - abs(share - wanted) / wanted)
    # Parts are logged, each as a curve of its own; the reason is for whoever looks at the picture.
    return Score(value, {"red_share": share}, f"red covers {share:.0%}, wanted {wanted:.0%}")


# Fields that every line of the prompt file must have; a file without them is refused before the run starts.
# NAME.required_metadata = ("target",)
'''

TEST = '''"""Calibration of NAME: the order it must give to a good, a bad and a hacked picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.authoring.check import check
from blip3o_rl.scoring.build import build_rubric

CONFIG = {"NAME": {"path": f"{Path(__file__).with_name('NAME.py')}:NAME"}}
PROMPT = "a photo of a red square"
METADATA: dict = {"prompt": PROMPT}


def picture(red_side: int) -> np.ndarray:
    """A red square on white, 64 px."""
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:red_side, :red_side] = (220, 40, 40)
    return image


def value(image: np.ndarray) -> float:
    result = build_rubric(CONFIG).score([Sample("test", PROMPT, image, METADATA)])[0]
    assert not result.failed, result.reason
    return result.value


GOOD, NEARLY, BAD, HACKED = picture(32), picture(24), picture(0), picture(64)


def test_a_good_picture_comes_first():
    assert value(GOOD) > value(NEARLY) > value(BAD)


def test_overdoing_it_does_not_pay():
    assert value(HACKED) < value(NEARLY)


def test_it_keeps_the_rules():
    assert check(build_rubric(CONFIG).entries[0], METADATA).problems == []
'''
