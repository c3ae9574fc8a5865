"""The OCR reward with RapidOCR on images of text that the tests draw; no network, no stand-in for the engine."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from blip3o_rl.data.synthetic import words
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.ocr.rapid import RapidReader
from blip3o_rl.rewards.ocr.reward import OCRReward
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric

PROMPT = 'a sign that says "OPEN"'
TARGET = "blip3o_rl.rewards.ocr.reward:OCRReward"


@pytest.fixture(scope="module")
def reader() -> RapidReader:
    return RapidReader()


def written(*texts: str, side: int = 128, size: int = 20, ink: str = "black", background: str = "white") -> np.ndarray:
    """Lines of text, one under the other, as uint8 [side, side, 3]."""
    image = Image.new("RGB", (side, side), background)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for row, text in enumerate(texts):
        draw.text((side // 16, side // 16 + row * int(1.25 * size)), text, fill=ink, font=font)
    return np.asarray(image)


def score(reward: OCRReward, image: np.ndarray, prompt: str = PROMPT, **metadata):
    return reward.score([Sample("s", prompt, image, {"prompt": prompt, **metadata})])[0]


def test_calls_at_the_same_time_read_what_they_read_alone(reader: RapidReader) -> None:
    rng = np.random.default_rng(0)
    images = [words.write(rng, line).draw() for line in words.held_out_words(12)]
    alone = reader.read(images)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: reader.read([image])[0], images))
    assert [[line.text for line in lines] for lines in together] == [[line.text for line in lines] for lines in alone]
    assert any(alone)


@pytest.mark.parametrize(("side", "size"), [(64, 14), (128, 20), (256, 30)])
def test_clear_text_is_read(reader, side, size):
    image = written("OPEN", "Hello", side=side, size=size)
    lines = reader.read([image])[0]
    assert [line.text for line in lines] == ["OPEN", "Hello"]
    for line in lines:
        assert 0.8 < line.confidence <= 1
        assert line.polygon.shape == (4, 2) and line.polygon.min() >= 0 and line.polygon.max() <= side


def test_an_image_larger_than_the_limit_is_read_at_its_own_coordinates():
    image = np.pad(written("OPEN", side=128, size=30), ((200, 0), (200, 0), (0, 0)), constant_values=255)
    (line,) = RapidReader(longest_side=256).read([image])[0]
    assert line.text == "OPEN" and line.polygon.min() > 190


@pytest.mark.parametrize(("ink", "background"), [("white", "black"), ("red", "navy"), ("yellow", "green")])
def test_colored_text_is_read(reader, ink, background):
    image = written("OPEN", ink=ink, background=background, size=30)
    assert [line.text for line in reader.read([image])[0]] == ["OPEN"]


def test_blank_and_noise_have_no_text(reader):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert reader.read([np.zeros((64, 64, 3), np.uint8), noise]) == [[], []]


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (1, 500), (2000, 8), (3000, 8)])
def test_odd_sizes_are_read(reader, shape):
    assert reader.read([np.zeros((*shape, 3), np.uint8)]) == [[]]


def test_letters_that_touch_the_border_are_read_and_stay_in_the_image(reader):
    places = [(0, 0), (2, 0), (0, 4), (2, 4)]
    texts = ["HE", "CU", "FA", "TJ"]
    images = [words.Writing(text, *place).draw() for text in texts for place in places]
    found = reader.read(images)
    assert [[line.text for line in lines] for lines in found] == [[text] for text in texts for _ in places]
    corners = np.concatenate([line.polygon for lines in found for line in lines])
    assert corners.min() == 0 and corners.max() == 64


def test_batch_gives_each_image_its_own_lines(reader):
    images = [written("OPEN"), written(), written("SALE", side=64, size=16)]
    assert [[line.text for line in lines] for lines in reader.read(images)] == [["OPEN"], [], ["SALE"]]


def test_calibration_good_nearly_bad_and_hacked(reader):
    reward = OCRReward(reader=reader)
    images = {
        "good": written("OPEN", size=30),
        "nearly": written("OPEM", size=30),
        "bad": written("QUIZ", size=30),
        "blank": written(),
        "repeated": written(*["OPEN"] * 5),
        "amid junk": written("xk OPEN zz", "lorem ipsum", "dolor sit", "amet OPEN"),
        "covered": written(*["ABCDEFGHIJKL", "MNOPQRSTUVW", "XYZ OPEN 012", "3456789 THE A", "SALE MORE"] * 2, size=12),
    }
    scores = {name: score(reward, image) for name, image in images.items()}
    value = {name: result.value for name, result in scores.items()}
    assert value["good"] == 1
    assert value["good"] > value["nearly"] > value["repeated"] > value["amid junk"] > value["covered"]
    assert value["covered"] < 0.1 and value["bad"] == 0 and value["blank"] == 0
    # What the original pays for the same images is why it is not the default.
    assert all(scores[name].components["original"] == 1 for name in ("good", "repeated", "amid junk", "covered"))
    area = {name: result.components["text_area"] for name, result in scores.items()}
    assert area["blank"] == 0 and 0 < area["good"] < area["repeated"] and area["covered"] > 0.4
    assert [name for name, result in scores.items() if result.components["exact"] == 1] == ["good"]


def test_modes_and_their_parts(reader):
    image = written("OPEN", "OPEN")
    for mode, value in (("strict", 0.5), ("original", 1.0)):
        result = score(OCRReward(mode=mode, reader=reader), image)
        assert result.value == value
        assert result.components | {"text_area": 0} == {"original": 1.0, "strict": 0.5, "exact": 0.0, "text_area": 0}
        assert result.reason == 'wanted "OPEN", read "OPEN" "OPEN"'


def test_several_texts_in_any_order_and_targets_from_metadata(reader):
    reward = OCRReward(reader=reader)
    image = written("SALE", "OPEN")
    assert score(reward, image, 'signs that say "OPEN" and "SALE"').value == 1
    assert score(reward, image, "two signs", text=["OPEN", "SALE"]).value == 1
    assert score(reward, image, "a sign", text="SALE").value == 0.5


def test_unclear_text_counts_for_the_original_only(reader):
    image = written("OPEN", size=30)
    confidence = reader.read([image])[0][0].confidence
    result = score(OCRReward(reader=reader, min_confidence=1.0), image)
    assert confidence < 1 and result.value == 0 and result.components["original"] == 1
    assert score(OCRReward(reader=reader, confidence_weighting=True), image).value == pytest.approx(confidence)


def test_self_check_and_rubric_from_a_config():
    rubric = build_rubric({"ocr": {"name": TARGET, "mode": "strict", "reader_options": {"threads": 1}}})
    rubric.self_check()
    samples = [Sample(str(i), PROMPT, image, {}) for i, image in enumerate((written("OPEN"), written("OPN")))]
    results = asyncio.run(rubric.score_async(samples))
    assert [result.value for result in results] == [1.0, 0.75]
    assert results[1].components["ocr/exact"] == 0


def test_a_sample_without_a_target_fails_and_the_others_do_not(reader):
    reward = OCRReward(reader=reader)
    bad = Sample("bad", "a sign", written("OPEN"), {})
    results = Rubric.of(reward).score([bad, Sample("good", PROMPT, written("OPEN"), {})])
    assert results[0].failed and "'a sign'" in results[0].reason and "double quotes" in results[0].reason
    assert results[1].value == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "loose"}, ["mode", "'loose'", "strict, original"]),
        ({"reader": "tesseract"}, ["reader", "'tesseract'", "rapid, paddle"]),
        ({"reader_options": {"gpu": True}}, ["reader_options.gpu", "longest_side"]),
        ({"min_confidence": 1.5}, ["min_confidence", "0 to 1"]),
        ({"mode": "original", "confidence_weighting": True}, ["confidence_weighting"]),
        ({"reader": "paddle", "reader_options": {"backend": "tvm"}}, ["reader_options.backend", "'tvm'"]),
        ({"reader": "paddle", "reader_options": {"detection_folder": "x"}}, ["recognition_folder"]),
    ],
)
def test_mistakes_in_the_config_name_the_key(options, words):
    with pytest.raises(UserError) as caught:
        build_rubric({"ocr": {"name": TARGET, **options}})
    message = str(caught.value)
    assert message.startswith("reward.rewards.ocr") and "\n" not in message
    for word in words:
        assert word in message
