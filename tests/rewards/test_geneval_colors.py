"""The color classifier on a small CLIP of random weights: crops, OpenAI's transform, the formula, batches, loading."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from blip3o_rl.data.geneval import COLORS
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.clip import MEAN, STD, cropped
from blip3o_rl.rewards.geneval import colors
from blip3o_rl.rewards.geneval.colors import ClipColors, crop
from blip3o_rl.rewards.geneval.detector import DEFAULT_CLIP, ColorQuestion, Detection

NETWORKS = runpy.run_path(str(Path(__file__).parent / "geneval_networks.py"))
SIDE = NETWORKS["CLIP_SIDE"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return NETWORKS["write_clip"](tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def classifier(folder) -> ClipColors:
    return ClipColors(folder, device="cpu")


def seen(box, height: int = 40, width: int = 60) -> Detection:
    mask = np.zeros((height, width), bool)
    x1, y1, x2, y2 = (int(edge) for edge in box)
    mask[y1:y2, x1:x2] = True
    mask[y1, x1] = False  # not the whole box
    return Detection("cup", 0.9, box, mask)


def noise(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clip_input(image: np.ndarray) -> np.ndarray:
    return cropped([image], SIDE)[0].permute(1, 2, 0).numpy()


# ---- crops


def test_a_crop_is_the_object_on_gray():
    image = noise()
    cut = np.asarray(crop(image, seen((10.0, 5.0, 30.0, 25.0))))
    assert cut.shape == (20, 20, 3)
    assert (cut[0, 0] == 0x99).all(), "outside the mask"
    assert (cut[1:, 1:] == image[6:25, 11:30]).all()


def test_without_a_mask_the_box_is_kept():
    image = noise()
    assert (np.asarray(crop(image, Detection("cup", 0.9, (1.0, 2.0, 9.0, 7.0)))) == image[2:7, 1:9]).all()


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (32, 32), (300, 50), (33, 91), (5, 3)])
def test_the_transform_is_openais(width, height):
    """Short side to 32 by PIL's bicubic filter, the middle square with torchvision's rounding, normalized."""
    image = Image.fromarray(noise(height, width))
    long = int(SIDE * max(width, height) / min(width, height))
    whole = image.resize((long, SIDE) if width > height else (SIDE, long), Image.Resampling.BICUBIC)
    left, top = round((whole.width - SIDE) / 2), round((whole.height - SIDE) / 2)
    square = np.asarray(whole.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
    expected = (square - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    assert np.allclose(clip_input(np.asarray(image)), expected, atol=1e-5)


def test_of_a_sliver_the_middle_is_scaled():
    sliver = np.repeat(noise(1, 100), 40, axis=1)
    wide, high = clip_input(sliver), clip_input(sliver.swapaxes(0, 1))
    assert np.allclose(wide, high.swapaxes(0, 1), atol=1e-5)
    whole = np.asarray(Image.fromarray(sliver[:, 1800:2200]).resize((400 * SIDE, SIDE), Image.Resampling.BICUBIC))
    middle = whole[:, 200 * SIDE - SIDE // 2 : 200 * SIDE + SIDE // 2].astype(np.float32) / 255
    assert np.allclose(wide * STD.view(3).numpy() + MEAN.view(3).numpy(), middle, atol=1e-5)


# ---- the classifier


def test_the_text_classifier_follows_the_formula(classifier, folder):
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    rows = []
    for color in COLORS:
        total = 0
        for sentence in (
            f"a photo of a {color} cup",
            f"a photo of a {color}-colored cup",
            f"a photo of a {color} object",
        ):
            with torch.no_grad():
                features = model.text_projection(
                    model.text_model(**tokenizer(sentence, return_tensors="pt")).pooler_output
                )
            total = total + features[0] / features[0].norm()
        rows.append(total / total.norm())
    assert torch.allclose(classifier.text_classifier("cup"), torch.stack(rows), atol=1e-5)


def test_the_text_classifier_is_computed_once_per_class(classifier):
    assert classifier.text_classifier("fork") is classifier.text_classifier("fork")
    assert not torch.allclose(classifier.text_classifier("fork"), classifier.text_classifier("knife"))


def test_the_answer_is_the_nearest_color_of_transformers_own_logits(classifier, folder):
    """CLIPModel's image-text logits for one crop have their maximum at the same color."""
    model = CLIPModel.from_pretrained(folder).eval()
    answers = set()
    for seed in range(12):
        image, found = noise(seed=seed), seen((10.0, 5.0, 50.0, 30.0))
        pixels = cropped([crop(image, found)], SIDE)
        with torch.no_grad():
            features = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0]
        logits = 100 * (features / features.norm()) @ classifier.text_classifier("cup").T
        (answer,) = classifier.classify([ColorQuestion(image, found, "cup")])
        assert answer == COLORS[int(logits.argmax())]
        answers.add(answer)
    assert len(answers) > 1, "the test would not see a constant answer"


def test_batches_give_what_single_crops_give(classifier):
    questions = [
        ColorQuestion(noise(seed=seed), seen((2.0 * seed, 3.0, 30.0 + seed, 30.0)), "cup" if seed % 2 else "fork")
        for seed in range(7)
    ]
    single = [classifier.classify([question])[0] for question in questions]
    assert classifier.classify(questions) == single
    classifier.encoder.batch_size = 3
    try:
        assert classifier.classify(questions) == single
    finally:
        classifier.encoder.batch_size = 64
    assert classifier.classify([]) == []


def test_output_that_is_not_finite_is_no_answer(folder):
    classifier = ClipColors(folder, device="cpu")
    classifier.encoder.model.visual_projection.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        classifier.classify([ColorQuestion(noise(), seen((1.0, 1.0, 9.0, 9.0)), "cup")])


def test_it_tells_colors_apart_after_its_texts(folder):
    """With text embeddings put where the images of flat colors are, each flat color is named."""
    classifier = ClipColors(folder, device="cpu")
    palette = dict(zip(COLORS, np.random.default_rng(3).integers(0, 256, (10, 3)), strict=True))
    image = np.zeros((40, 600, 3), np.uint8)
    places = {}
    for index, (name, color) in enumerate(palette.items()):
        image[:, index * 60 : index * 60 + 60] = color
        places[name] = seen((index * 60 + 5.0, 5.0, index * 60 + 50.0, 35.0), width=600)
    pixels = cropped([crop(image, place) for place in places.values()], SIDE)
    model = classifier.encoder.model
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=pixels).pooler_output
        features = torch.nn.functional.normalize(model.visual_projection(hidden), dim=-1)
    classifier._embeddings["cup"] = features
    answers = classifier.classify([ColorQuestion(image, place, "cup") for place in places.values()])
    assert answers == list(places)


def test_the_upstream_colors():
    assert COLORS == ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


# ---- loading


def test_what_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="clip: there is no .*nowhere; set clip to a folder") as caught:
        ClipColors(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_a_clip_without_all_tensors_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("visual_projection.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="clip: .* lacks 1 of the tensors of CLIPModel"):
        ClipColors(tmp_path)


def test_the_default_is_openais_large_clip():
    assert DEFAULT_CLIP == "openai/clip-vit-large-patch14"
    assert json.dumps(colors.TEMPLATES) == json.dumps(
        ["a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object"]
    )
