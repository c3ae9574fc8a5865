"""The calibration procedure, on rewards that can be understood, and (long) on real weights."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.preference.calibration import calibrate, drawn_cases, folder_cases
from blip3o_rl.scoring.adapters import FunctionReward
from blip3o_rl.scoring.api import RewardError
from blip3o_rl.scoring.build import build_rubric

CASES = drawn_cases(3, 96)
GOOD = {case.prompt: case.images["good"] for case in CASES}


def reward(score):
    return FunctionReward("r", lambda samples: [score(sample) for sample in samples], ())


def likeness(sample):
    return -float(np.abs(sample.image.astype(float) - GOOD[sample.prompt]).mean())


def test_a_reward_that_knows_the_good_images_passes():
    results = calibrate(reward(likeness), CASES)
    assert [result.failures for result in results] == [[], [], []]
    assert {name for result in results for name in result.values} == {"good", "bad", "oversaturated", "lettering"}


def test_a_reward_for_strong_colors_is_caught_by_the_hacked_image():
    results = calibrate(reward(lambda sample: float(sample.image.std(axis=-1).mean())), CASES)
    assert any("oversaturated" in failure for result in results for failure in result.failures)


def test_a_constant_reward_orders_nothing():
    results = calibrate(reward(lambda sample: 1.0), CASES)
    assert all(len(result.failures) == 3 for result in results)


def test_an_image_without_a_score_stops_the_calibration():
    with pytest.raises(RewardError, match="calibration of 'r': .*returned nan"):
        calibrate(reward(lambda sample: float("nan")), CASES)


def test_own_images_become_cases(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(CASES[0].images["good"]).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"image {name}\n", encoding="utf-8")
    cases = folder_cases(tmp_path)
    assert [case.prompt for case in cases] == ["image a", "image b"]
    np.testing.assert_array_equal(cases[0].images["good"], CASES[0].images["good"])
    assert all(image.shape == CASES[0].images["good"].shape for image in cases[0].images.values())
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match="its prompt is missing; write it to b.txt"):
        folder_cases(tmp_path)
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match="has 1 images; at least two"):
        folder_cases(tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.skipif("BLIP3O_RL_CALIBRATE" not in os.environ, reason="BLIP3O_RL_CALIBRATE names no rewards")
def test_real_weights_order_good_bad_and_hacked():
    """BLIP3O_RL_CALIBRATE: a YAML file like `reward.rewards`, with local folders or hub ids or a judge's url.
    BLIP3O_RL_CALIBRATE_IMAGES: optional folder of own images with prompts."""
    import yaml

    config = yaml.safe_load(Path(os.environ["BLIP3O_RL_CALIBRATE"]).read_text(encoding="utf-8"))
    folder = os.environ.get("BLIP3O_RL_CALIBRATE_IMAGES")
    cases = folder_cases(Path(folder)) if folder else drawn_cases()
    failures = []
    for entry in build_rubric(config).entries:
        for result in calibrate(entry.reward, cases):
            print(entry.name, result)
            failures += [f"{entry.name}: {failure}" for failure in result.failures]
    assert failures == []
