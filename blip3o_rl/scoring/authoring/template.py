"""What `blip3o-rl rewards new` writes: `templates/`, a reward that works, and its calibration test.

The example rewards a share of red: a value that grows with every bit of progress, components that explain it, and no
way to win by doing too much (an all red image gets 0).
"""

from __future__ import annotations

import keyword
from importlib import resources

from blip3o_rl.errors import UserError


def reward_files(name: str) -> dict[str, str]:
    """File name -> text of `<name>.py` and `test_<name>.py`; UserError if it is no Python name."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"rewards new {name}: not a name for a Python function; use letters, digits and underscores")
    templates = resources.files(__package__) / "templates"
    return {
        template.replace("reward", name): (templates / template).read_text(encoding="utf-8").replace("NAME", name)
        for template in ("reward.py", "test_reward.py")
    }
