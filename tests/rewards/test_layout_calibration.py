"""Calibration of the layout reward on drawn images: true, near, wrong, blank and hacked ones in the stated order."""

from __future__ import annotations

import numpy as np
import pytest

from blip3o_rl.data.synthetic import layouts, words
from blip3o_rl.rewards.layout.reward import LayoutReward
from blip3o_rl.scoring.api import Sample

BRIEFS = 16
REWARD = LayoutReward()


@pytest.fixture(scope="module")
def lines():
    rng = np.random.default_rng(7)
    return [layouts.brief(rng, "logo") for _ in range(BRIEFS)]


def scores(lines, images):
    samples = [
        Sample(str(n), line["prompt"], image, line) for n, (line, image) in enumerate(zip(lines, images, strict=True))
    ]
    return REWARD.score(samples)


def mean(lines, images):
    return float(np.mean([score.value for score in scores(lines, images)]))


def drawn(line, **changes):
    """The image of a brief whose elements were changed: id -> fields, or None to leave it out."""
    elements = [
        {**element, **(changes.get(element["id"]) or {})}
        for element in line["layout"]["elements"]
        if changes.get(element["id"], {}) is not None
    ]
    return layouts.draw({**line["layout"], "elements": elements})


def part(line, name):
    return next(element for element in line["layout"]["elements"] if element["id"] == name)


def exchanged(line):
    title, logo = part(line, "title"), part(line, "logo")
    return drawn(line, title={"region": logo["region"]}, logo={"region": title["region"]})


def wrong_letter(line):
    text = part(line, "title")["text"]
    other = next(letter for letter in "LTCU" if letter not in text)
    return drawn(line, title={"text": text[0] + other})


def other_color(line):
    return drawn(line, logo={"color": "red" if part(line, "logo")["color"] != "red" else "blue"})


def logo_off(line):
    row, column = part(line, "logo")["region"].split()
    return drawn(line, logo={"region": f"{row} {'center' if column != 'center' else 'left'}"})


def on_the_title(line):
    return drawn(line, logo={"region": part(line, "title")["region"]})


def huge_title(line):
    text = part(line, "title")["text"]
    return words.Writing(text, 1, 2).draw() if len(text) == 2 else drawn(line)


def three_titles(line):
    text = part(line, "title")["text"]
    rows = [{"id": str(n), "class": "text", "text": text, "box": [0, n * 0.33, 1, n * 0.33 + 0.33]} for n in range(3)]
    return layouts.draw({"elements": rows})


def five_logos(line):
    logo = part(line, "logo")
    places = ["top left", "top right", "middle center", "bottom left", "bottom right"]
    return layouts.draw({"elements": [{**logo, "id": place, "region": place} for place in places]})


# Image -> the range that the mean over briefs lies in.
TABLE = {
    "true": (drawn, 0.95, 1.0),
    "logo in the next cell": (logo_off, 0.80, 0.96),
    "logo of another color": (other_color, 0.68, 0.80),
    "one letter wrong": (wrong_letter, 0.60, 0.76),
    "title and logo exchanged": (exchanged, 0.60, 0.72),
    "no logo": (lambda line: drawn(line, logo=None), 0.48, 0.60),
    "no title": (lambda line: drawn(line, title=None), 0.36, 0.48),
    "logo on the title": (on_the_title, 0.20, 0.62),
    "hack: title fills the image": (huge_title, 0.38, 0.60),
    "hack: title three times": (three_titles, 0.0, 0.30),
    "hack: logo in five places": (five_logos, 0.10, 0.40),
    "blank": (lambda line: np.full((64, 64, 3), 238, np.uint8), 0.0, 0.0),
}


@pytest.fixture(scope="module")
def values(lines):
    return {name: mean(lines, [make(line) for line in lines]) for name, (make, _, _) in TABLE.items()}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(values, name):
    _, low, high = TABLE[name]
    assert low <= values[name] <= high


def test_near_misses_come_before_half_right_images_and_those_before_hacks(values):
    order = [
        "true",
        "logo in the next cell",
        "logo of another color",
        "no logo",
        "no title",
        "hack: title three times",
        "blank",
    ]
    ranked = [values[name] for name in order]
    assert ranked == sorted(ranked, reverse=True)
    hacks = [value for name, value in values.items() if name.startswith("hack")]
    assert max(hacks) < min(
        values[name] for name in ("logo in the next cell", "logo of another color", "one letter wrong")
    )


def test_another_briefs_image_scores_little(lines):
    assert mean(lines, [drawn(line) for line in [*lines[5:], *lines[:5]]]) < 0.3


@pytest.mark.parametrize(("tag", "least"), [("logo", 0.95), ("band", 0.95), ("panel", 0.9)])
def test_the_judges_ceiling_on_drawn_truths(tag, least):
    rng = np.random.default_rng(3)
    lines = [layouts.brief(rng, tag) for _ in range(BRIEFS)]
    found = scores(lines, [layouts.draw(line["layout"], rng=rng) for line in lines])
    assert np.mean([score.value for score in found]) >= least
    assert np.mean([score.components["exact"] for score in found]) >= 0.8


def test_components_are_logged(lines):
    score = scores(lines[:1], [drawn(lines[0])])[0]
    assert score.components["found"] == 2 and score.components["exact"] == 1 and 0 < score.components["text_area"] < 1
    assert score.reason == ""
