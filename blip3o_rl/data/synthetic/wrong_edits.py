"""Wrong results of an edit, as pairs that people collect have them: a model that learned from such pairs has habits.

`copy` changes nothing, `spoiled` does the edit and recolors or removes another object, `regenerated` has the right
objects in other places.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from blip3o_rl.data.synthetic import scenes
from blip3o_rl.data.synthetic.edits import Edit
from blip3o_rl.data.synthetic.scenes import COLORS, Scene
from blip3o_rl.data.synthetic.splits import pick

SHARES = {"copy": 0.4, "spoiled": 0.4, "regenerated": 0.2}
"""How often each comes among wrong results."""
REMOVED = 0.4
"""Share of the spoiled objects that are removed, where more than one is left; the others are recolored."""


def wrong(rng: np.random.Generator, edit: Edit) -> Scene:
    """A random wrong scene after an edit."""
    kind = rng.choice([*SHARES], p=[*SHARES.values()])
    if kind == "copy":
        return edit.before
    return spoiled(rng, edit) if kind == "spoiled" else regenerated(rng, edit)


def spoiled(rng: np.random.Generator, edit: Edit, removed: float = REMOVED) -> Scene:
    """The scene after, with a kept object removed (in a share of `removed`) or recolored."""
    kept = [item for item in edit.after.objects if item in edit.before.objects]
    other = pick(rng, kept)
    if len(edit.after.objects) > 1 and rng.random() < removed:
        return Scene(tuple(item for item in edit.after.objects if item is not other))
    used = {item.color for scene in (edit.before, edit.after) for item in scene.objects}
    color = pick(rng, [name for name in COLORS if name not in used])
    return Scene(tuple(replace(item, color=color) if item is other else item for item in edit.after.objects))


def regenerated(rng: np.random.Generator, edit: Edit) -> Scene:
    """The objects of the scene after, placed anew."""
    while (boxes := scenes.place(rng, len(edit.after.objects))) is None:
        pass
    objects = zip(edit.after.objects, boxes, strict=True)
    return Scene(tuple(scenes.placed(item.shape, item.color, box) for item, box in objects))
