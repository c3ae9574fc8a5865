"""The measures of consistency: what each notices, on drawn scenes, photographs and tiny networks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from blip3o_rl.data.images import png_uri, read_image
from blip3o_rl.data.synthetic import edits, scenes
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.edit import consistency
from blip3o_rl.rewards.edit.consistency import Pair
from blip3o_rl.rewards.edit.features import Dinov2
from blip3o_rl.rewards.edit.reward import EditReward
from blip3o_rl.scoring.api import Sample

MEASURES = {"pixels": consistency.pixels, "structure": consistency.structure}
PHOTOGRAPHS = sorted((Path(__file__).parent / "data" / "photographs").glob("*.jpg"))
ALL = np.ones((64, 64), bool)


def kept(measure, reference, output, outside=None):
    everywhere = np.ones(reference.shape[:2], bool) if outside is None else outside
    return MEASURES[measure]([Pair(reference, output, everywhere)])[0]


def scene(seed=0):
    return edits.sample(np.random.default_rng(seed), "remove", "supervised")


@pytest.mark.parametrize("measure", MEASURES)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_copy_is_1_noise_less_and_nothing_leaves_0_1(measure, seed):
    rng = np.random.default_rng(seed)
    one, two = rng.integers(0, 256, (2, 40, 56, 3), np.uint8)
    assert kept(measure, one, one) == pytest.approx(1)
    assert 0 <= kept(measure, one, two) < 0.6


@pytest.mark.parametrize("measure", MEASURES)
def test_an_empty_canvas_keeps_nothing(measure):
    assert kept(measure, scenes.draw(scene().before), np.full((64, 64, 3), 238, np.uint8)) < 0.1


def test_another_background_is_no_background():
    drawn = scenes.draw(scene().before)
    other = np.where((drawn == 238).all(axis=2, keepdims=True), np.uint8([30, 60, 200]), drawn)
    assert kept("pixels", drawn, other) < 0.5


@pytest.mark.parametrize("measure", MEASURES)
def test_the_edited_place_is_free_and_the_rest_is_not(measure):
    edit = scene(3)
    before, after = scenes.draw(edit.before), scenes.draw(edit.after)
    outside = consistency.outside((64, 64), edit.metadata["edit"]["boxes"], None)
    assert kept(measure, before, after, outside) == pytest.approx(1, abs=1e-2)
    assert kept(measure, before, after) < 0.9
    assert kept(measure, before, np.full_like(before, 238), outside) < 0.1


def test_structure_survives_other_colors_and_pixels_do_not():
    before = scenes.draw(scene(1).before)
    brighter = (before * 0.6 + 90).astype(np.uint8)
    assert kept("structure", before, brighter) > 0.85 > 0.5 > kept("pixels", before, brighter)
    assert kept("structure", before, before[::-1]) < 0.5


@pytest.mark.parametrize("file", PHOTOGRAPHS, ids=lambda file: file.stem)
def test_a_style_keeps_a_photographs_structure_and_another_photograph_does_not(file):
    image, other = (read_image(name) for name in (file, next(name for name in PHOTOGRAPHS if name != file)))
    image, other = (cv2.resize(photo, (256, 256), interpolation=cv2.INTER_AREA) for photo in (image, other))
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    posterized = image // 64 * 64 + 32
    assert min(kept("structure", image, style) for style in (gray, posterized)) > 0.8
    assert kept("structure", image, cv2.stylization(image)) > 0.35 > 0.15 > kept("structure", image, other)


def test_masks_and_boxes_are_grown_and_add_up():
    mask = np.zeros((64, 64), bool)
    mask[10:12, 10:12] = True
    free = ~consistency.outside((64, 64), [(0.5, 0.5, 0.75, 0.625)], mask)
    rows, columns = np.nonzero(free[:20])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 13, 8, 13)
    rows, columns = np.nonzero(free[20:])
    assert (rows.min() + 20, rows.max() + 20, columns.min(), columns.max()) == (30, 41, 30, 49)


def score(brief, image, reference, target=None, **options):
    edit = {"prompt": "x", "references": ["a.png"], "edit": brief, "target": target}
    return EditReward(**options).score([Sample("0", "x", image, edit, references=(reference,))])[0]


def test_a_mask_or_a_target_says_where_it_may_change(tmp_path):
    edit = scene(4)
    before, after = scenes.draw(edit.before), scenes.draw(edit.after)
    clauses = {name: edit.metadata["edit"][name] for name in ("operation", "exclude")}
    assert score(clauses, after, before).components["kept"] < 0.8
    mask = consistency.difference(before, after)
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    assert score({**clauses, "mask": str(tmp_path / "mask.png")}, after, before).value == pytest.approx(1)
    assert score(clauses, after, before, target=png_uri(after)).value == pytest.approx(1)
    assert score({**clauses, "mask": png_uri(np.zeros_like(after))}, after, before).value < 0.8


def test_a_reference_of_another_size_is_compared_at_the_outputs_size():
    edit = scene(5)
    found = score(edit.metadata["edit"], scenes.draw(edit.after), scenes.draw(edit.before, 256))
    assert found.value > 0.95


def test_style_and_background_are_measured_by_their_structure():
    before = scenes.draw(scene(1).before)
    brighter = (before * 0.6 + 90).astype(np.uint8)
    values = {
        operation: score({"operation": operation}, brighter, before, combine="consistency").value
        for operation in ("style", "background", "keep")
    }
    assert min(values["style"], values["background"]) > 0.8 and values["keep"] < 0.5


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


def test_dinov2_compares_the_patches_outside(dino):
    measure = Dinov2(str(dino), "cpu")
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 256, (2, 56, 56, 3), np.uint8)
    everywhere = np.ones((56, 56), bool)
    copy, other = measure([Pair(one, one, everywhere), Pair(one, two, everywhere)])
    assert copy == pytest.approx(1, abs=1e-5) and 0 <= other < 0.99
    half = one.copy()
    half[:, 28:] = two[:, 28:]
    left = np.zeros((56, 56), bool)
    left[:, :28] = True
    assert measure([Pair(one, half, left)])[0] > measure([Pair(one, half, everywhere)])[0]
    assert measure([Pair(one, two, ~everywhere)]) == [1.0]


def test_dinov2_counts_the_lowest_tenth(dino):
    measure = Dinov2(str(dino), "cpu")
    image = np.random.default_rng(1).integers(0, 256, (56, 56, 3), np.uint8)
    features = torch.nn.functional.normalize(torch.eye(17)[:16].repeat(2, 1), dim=-1).reshape(2, 16, 17)
    features[1, :2] = features[0, 2:4]  # two of 16 patches are others
    measure._features = lambda images: features
    assert measure([Pair(image, image.copy(), np.ones((56, 56), bool))])[0] == 0.0


def test_dinov2_is_a_measure_of_the_reward(dino):
    edit = scene(6)
    before = scenes.draw(edit.before)
    options = {"measures": {"all": "dinov2"}, "checkpoint": str(dino), "device": "cpu"}
    assert score({"operation": "keep"}, before, before, **options).value == pytest.approx(1, abs=1e-4)


def test_dinov2_of_another_model_is_refused(dino, tmp_path):
    Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    config = (dino / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="checkpoint: .* lacks"):
        Dinov2(str(tmp_path), "cpu")
