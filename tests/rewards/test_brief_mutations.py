"""Every value of a good brief replaced by junk: judged, or refused in one line that names the field; never a traceback.
And what both rewards share: one observation for several entries, in threads of one rubric."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import numpy as np
import pytest

from blip3o_rl.rewards.observation import open_observer
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric

LAYOUT, LAYOUT_REWARD, PLANOGRAM, PLANOGRAM_REWARD = (
    runpy.run_path(str(Path(__file__).parent / f"test_{name}_brief.py"))[thing]
    for name in ("layout", "planogram")
    for thing in ("GOOD", "REWARD")
)
JUNK = [None, True, -1, 1e9, "", "x", [], [None], {}, {"x": 1}, float("nan"), [[[1]]]]


def places(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(value, path, junk):
    if not path:
        return junk
    value = copy.copy(value)
    value[path[0]] = replaced(value[path[0]], path[1:], junk)
    return value


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize(
    ("field", "good", "reward"),
    [("layout", LAYOUT, LAYOUT_REWARD), ("planogram", PLANOGRAM, PLANOGRAM_REWARD)],
    ids=["layout", "planogram"],
)
def test_junk_anywhere_is_one_line_with_the_field(field, good, reward, junk):
    refused = 0
    for path in places(good):
        found = reward.check_metadata({"prompt": "a", field: replaced(good, path, junk)})
        assert found == "" or (found.startswith(field) and "\n" not in found), (path, found)
        refused += found != ""
    assert refused > len(list(places(good))) / 2


def test_several_entries_observe_an_image_once(monkeypatch):
    observer = open_observer(read=False)
    calls = []
    original = observer.detector.detect
    monkeypatch.setattr(observer.detector, "detect", lambda images: calls.append(len(images)) or original(images))
    entries = {
        "order": {"name": "planogram", "terms": ["sequence"]},
        "number": {"name": "planogram", "terms": ["facings", "osa"]},
        "whole": {"name": "planogram"},
    }
    rng = np.random.default_rng(123)
    line = {"prompt": "a", "planogram": PLANOGRAM}
    images = rng.integers(0, 255, (6, 64, 64, 3), np.uint8)
    scores = build_rubric(entries).score([Sample(str(n), "a", image, line) for n, image in enumerate(images)])
    assert sum(calls) == 6 and all(set(entries) <= set(score.components) for score in scores)


def test_the_observer_gets_images_and_nothing_else(monkeypatch):
    seen = []
    observer = open_observer(read=False)
    monkeypatch.setattr(observer, "observe", lambda *given, **named: seen.append((given, named)) or [None])
    monkeypatch.setattr(PLANOGRAM_REWARD, "observer", observer)
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(AttributeError):
        PLANOGRAM_REWARD.score([Sample("a", "two red circles", image, {"prompt": "a", "planogram": PLANOGRAM})])
    assert seen == [(([image],), {})]
