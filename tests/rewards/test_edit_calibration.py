"""Calibration of the reward `edit` on scenes: what each combination pays right, spoiled, new and copied images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from blip3o_rl.data.sources import held_out_rows
from blip3o_rl.data.synthetic import edits, scenes, wrong_edits
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.rewards.edit.reward import MEASURES, EditReward
from blip3o_rl.rewards.edit.rules import COMBINATIONS
from blip3o_rl.scoring.api import RewardError, Sample, Score
from blip3o_rl.scoring.build import build_rubric

CHANGING = edits.CHANGING
EDITS, RENDERED = 80, 30
EMPTY = np.full((64, 64, 3), scenes.BACKGROUND, np.uint8)


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(11)
    return [edits.sample(rng, CHANGING[number % len(CHANGING)], "supervised") for number in range(EDITS)]


def scores(cases, images, **options):
    samples = [
        Sample(str(n), edit.metadata["prompt"], image, edit.metadata, references=(scenes.draw(edit.before),))
        for n, (edit, image) in enumerate(zip(cases, images, strict=False))
    ]
    found = EditReward(**options).score(samples)
    assert [score for score in found if isinstance(score, RewardError)] == []
    return found


def mean(cases, images, component=None, **options):
    found = scores(cases, images, **options)
    return float(np.mean([score.components[component] if component else score.value for score in found]))


def regenerated(edit):
    """The right objects in other places."""
    return scenes.draw(wrong_edits.regenerated(_rng(edit), edit))


def spoiled(edit):
    """The right edit, and another object has another color."""
    return scenes.draw(wrong_edits.spoiled(_rng(edit), edit, removed=0))


def _rng(edit):
    return np.random.default_rng([len(edit.metadata["prompt"]), *(round(999 * item.x) for item in edit.before.objects)])


MAKERS = {
    "ideal": lambda edit: scenes.draw(edit.after),
    "spoiled": spoiled,
    "regenerated": regenerated,
    "copy": lambda edit: scenes.draw(edit.before),
    "empty": lambda edit: EMPTY,
}


@pytest.fixture(scope="module")
def images(cases):
    return {name: [make(edit) for edit in cases] for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def renderings(cases):
    """The targets after the autoencoder's round trip, and rendered from their tokens."""
    pipe = Blip3oPipeline.from_pretrained("mini", editing=True)
    targets = [scenes.draw(edit.after) for edit in cases[:RENDERED]]
    pixels = torch.from_numpy(np.stack(targets)).permute(0, 3, 1, 2).float() / 127.5 - 1
    back = pipe.renderer.decode(pipe.renderer.encode_latents(pixels)).numpy()
    assert pipe.image_tokenizer is not None
    tokens = pipe.image_tokenizer.tokenize(targets, scale=2)
    captions = ["a photo of " + " and ".join(f"a {i.color} {i.shape}" for i in edit.after.objects) for edit in cases]
    config = GenerationConfig(scale=2, steps=10)
    redrawn = pipe.render_tokens(tokens, list(range(RENDERED)), captions[:RENDERED], config).images
    return {"round trip": list(back), "token redraw": list(redrawn)}


@pytest.fixture(scope="module")
def values(cases, images):
    """Combination -> image -> mean value, all from one pass, since the parts are the same."""
    parts = {
        kind: [(s.components["instruction"], s.components["consistency"]) for s in scores(cases, drawn)]
        for kind, drawn in images.items()
    }
    return {
        name: {kind: float(np.mean([combine(*pair) for pair in pairs])) for kind, pairs in parts.items()}
        for name, combine in COMBINATIONS.items()
    }


def test_the_default_puts_them_in_order(cases, values, renderings):
    found = {**values["product"], **{name: mean(cases, drawn) for name, drawn in renderings.items()}}
    ranked = [found[name] for name in ("ideal", "round trip", "token redraw", "spoiled", "regenerated")]
    assert ranked == sorted(ranked, reverse=True) and len(set(ranked)) == 5, found
    assert found["ideal"] == 1 and found["token redraw"] > 0.8
    assert found["spoiled"] < 0.5 and 0 < found["regenerated"] < 0.15
    assert found["copy"] == found["empty"] == 0


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_reward_combines_as_configured(cases, images, values, name):
    some = cases[:10]
    for kind in ("ideal", "spoiled", "copy"):
        parts = [(s.components["instruction"], s.components["consistency"]) for s in scores(some, images[kind])]
        expected = np.mean([COMBINATIONS[name](*pair) for pair in parts])
        assert mean(some, images[kind], combine=name) == pytest.approx(expected)


def test_the_anchors_are_those_of_the_packaged_model(cases, images, renderings):
    for measure in ("pixels", "structure"):
        low, high = (
            mean(cases, drawn, "kept", measures={"all": measure})
            for drawn in (images["regenerated"], renderings["round trip"])
        )
        assert low == pytest.approx(MEASURES[measure][0], abs=0.06), measure
        assert high == pytest.approx(MEASURES[measure][1], abs=0.03), measure


def test_what_the_other_combinations_do_wrong(values):
    assert values["mean"]["copy"] == pytest.approx(0.5)  # pays doing nothing, more than for a new image
    assert values["mean"]["copy"] > values["mean"]["regenerated"] and values["mean"]["empty"] > 0
    assert values["geometric"]["regenerated"] > 1.3 * values["product"]["regenerated"]  # a wrong part costs less
    assert values["gate"]["spoiled"] < 0.1 and values["gate"]["regenerated"] < 0.05  # no step from worse to better
    assert values["consistency"]["copy"] == 1 and values["instruction"]["regenerated"] > 0.4
    for name in ("product", "geometric", "min", "gate", "instruction"):
        assert values[name]["copy"] == 0 and values[name]["ideal"] == pytest.approx(1)


def test_min_and_gate_do_not_see_that_the_better_part_changes():
    half, more = (0.3, 0.6), (0.3, 0.9)
    assert COMBINATIONS["min"](*half) == COMBINATIONS["min"](*more)
    assert COMBINATIONS["product"](*half) < COMBINATIONS["product"](*more)
    assert COMBINATIONS["gate"](1, 0.7) == COMBINATIONS["gate"](1, 0.1) == 0


@pytest.mark.parametrize("operation", ["keep", "impossible"])
def test_where_nothing_is_asked_a_copy_is_right(operation):
    rng = np.random.default_rng(2)
    cases = [edits.sample(rng, operation, "supervised") for _ in range(10)]
    assert mean(cases, [scenes.draw(edit.after) for edit in cases]) == 1
    assert mean(cases, [regenerated(edit) for edit in cases]) < 0.25
    assert mean(cases, [EMPTY for _ in cases]) == 0
    (score, *_) = scores(cases, [scenes.draw(edit.after) for edit in cases])
    assert score.components["exact"] == 1 and "near_copy" not in score.components


def test_two_at_once_is_partly_right_if_one_is_done():
    rng = np.random.default_rng(3)
    cases = [edits.sample(rng, "compose") for _ in range(30)]
    cases = [edit for edit in cases if len(edit.after.objects) == 2]
    removed = [{(c["class"], c["color"]) for c in edit.metadata["edit"]["exclude"] if "box" in c} for edit in cases]
    one = [
        scenes.draw(scenes.Scene(tuple(i for i in edit.before.objects if (i.shape, i.color) not in gone)))
        for edit, gone in zip(cases, removed, strict=True)
    ]
    assert len(cases) > 10 and mean(cases, [scenes.draw(edit.after) for edit in cases], "exact") == 1
    found = scores(cases, one)
    assert all(0.15 < score.components["instruction"] < 0.6 and not score.components["success"] for score in found)


def _first_gone(edit):
    return next(item for item in edit.before.objects if item not in edit.after.objects)


def changed(edit, **how):
    """The scene before with its edited object changed."""
    old = _first_gone(edit)
    items = (replace(item, **how) if item is old else item for item in edit.before.objects)
    return scenes.draw(scenes.Scene(tuple(items)))


def test_hacks_of_a_removal_earn_little():
    rng = np.random.default_rng(4)
    cases = [edits.sample(rng, "remove", "supervised") for _ in range(20)]

    def free(edit, name, values):
        return next(v for v in values if v not in [getattr(item, name) for item in edit.before.objects])

    recolored = [changed(edit, color=free(edit, "color", scenes.COLORS)) for edit in cases]
    reshaped = [changed(edit, shape=free(edit, "shape", scenes.SHAPES)) for edit in cases]
    smaller = [changed(edit, size=0.1) for edit in cases]
    assert mean(cases, recolored) < 0.05 and mean(cases, reshaped) < 0.5
    assert mean(cases, recolored, "success") == mean(cases, reshaped, "success") == 0
    assert mean(cases, smaller, "success") < 0.5
    blurred = [smudge(edit) for edit in cases]
    assert mean(cases, blurred, "success") == 0


def smudge(edit):
    """The object to be removed as stripes: no shape that the detector knows."""
    image = scenes.draw(edit.before).copy()
    left, top, right, bottom = (round(64 * edge) for edge in edit.metadata["edit"]["boxes"][0])
    image[top:bottom:2, left:right] = scenes.BACKGROUND
    return image


def test_hacks_of_an_addition_earn_little():
    rng = np.random.default_rng(5)
    cases, twice = [], []
    for edit in (edits.sample(rng, "add", "supervised") for _ in range(160)):
        new = edit.after.objects[-1]
        other = replace(new, x=1 - new.x, y=1 - new.y)
        if not _related(edit) and all(_apart(other, item) for item in edit.after.objects):
            cases.append(edit)
            twice.append(scenes.draw(scenes.Scene((*edit.after.objects, other))))
    assert len(cases) >= 10
    assert mean(cases, twice) < 0.1
    alone = [scenes.draw(scenes.Scene(edit.after.objects[-1:])) for edit in cases]
    assert mean(cases, alone) < 0.05


def _apart(a, b):
    return max(abs(a.x - b.x), abs(a.y - b.y)) > (a.size + b.size) / 2 + 0.05


def _related(edit):
    return len(edit.metadata["edit"]["include"]) > 1


def test_components_say_how_an_edit_failed(cases, images):
    copy, new, ideal = (scores(cases[:1], images[name][:1])[0] for name in ("copy", "regenerated", "ideal"))
    assert cases[0].metadata["tag"] == "add"
    assert copy.components["near_copy"] == copy.components["near_copy_add"] == 1 and copy.components["exact"] == 0
    assert new.components["regenerated"] == new.components["regenerated_add"] == 1
    assert ideal.components == {
        **dict.fromkeys(("consistency", "kept", "exact", "instruction", "success"), 1.0),
        **dict.fromkeys(("regenerated", "regenerated_add", "near_copy", "near_copy_add"), 0.0),
    }
    assert ideal.reason == "done 1.00, kept 1.00"


def test_a_rubric_checks_itself_and_logs_copies_per_operation():
    rows, rubric = held_out_rows("edits", 16, "x"), build_rubric({"edit": {}})
    rubric.check_prompts(rows)
    assert rubric.self_check(rows) == [] and rubric.self_check() == []
    images = [row.references[0].load() for row in rows]
    samples = [
        Sample(row.id, row.prompt, image, row.metadata, references=(image,))
        for row, image in zip(rows, images, strict=True)
    ]
    for row, score in zip(rows, rubric.score(samples), strict=True):
        tag, keeps = row.metadata["tag"], row.metadata["tag"] in ("keep", "impossible")
        assert score.value == score.components[f"edit/tag_{tag}"] == keeps
        assert score.components.get(f"edit/near_copy_{tag}") == (None if keeps else 1)
        assert len(score.found) == len({item.label for item in score.found}) >= 2


def test_every_reference_leaves_something_to_gain():
    rng = np.random.default_rng(6)
    cases = [edits.sample(rng, operation, "supervised") for operation in (*CHANGING, "compose") for _ in range(25)]
    found = scores(cases, [scenes.draw(edit.after) for edit in cases])
    assert all(isinstance(score, Score) and score.value > 0.99 and score.components["exact"] for score in found)


def test_what_cannot_be_scored_is_an_error_and_no_0(cases):
    edit = cases[0]
    alone = Sample("0", "x", scenes.draw(edit.after), edit.metadata)
    done = replace(alone, references=(scenes.draw(edit.after),))
    right = replace(alone, references=(scenes.draw(edit.before),))
    found = EditReward().score([alone, right, done])
    assert [type(score) for score in found] == [RewardError, Score, RewardError]
    assert "has no reference image" in str(found[0]) and "already is what add asks for" in str(found[2])


def test_an_addition_on_top_of_another_object_is_damage():
    rng = np.random.default_rng(7)
    cases = [edit for edit in (edits.sample(rng, "add", "supervised") for _ in range(120)) if not _related(edit)][:40]
    covering = []
    for edit in cases:
        new, old = edit.after.objects[-1], edit.before.objects[0]
        over = replace(new, x=old.x, y=old.y, size=1.3 * old.size)
        covering.append(scenes.draw(scenes.Scene((*edit.before.objects, over))))
    assert len(cases) >= 30
    assert mean(cases, [scenes.draw(edit.after) for edit in cases]) > 0.99
    assert mean(cases, covering) < 0.35
    assert mean(cases, covering, "exact") < 0.05
