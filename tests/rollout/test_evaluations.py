"""What a run keeps of its evaluations: the files of an undisturbed one, whatever was killed and in whatever order."""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.evaluation.held_out import numbers_of, settings_of
from blip3o_rl.evaluation.schedule import Schedule
from blip3o_rl.evaluation.suite import Suite
from blip3o_rl.evaluation.verdicts import Made, judged
from blip3o_rl.io import read_json, read_lines
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.rollout.evaluations import Evaluations
from blip3o_rl.scoring.rubric import RubricScore

ROWS = [PromptRow(f"prompt {n}", {"prompt": f"prompt {n}", "tag": "ab"[n % 2]}, f"p:{n}") for n in range(8)]
IMAGES = 3
SUITE = Suite("mine", ROWS, {"judge": {}}, ("judge/right",), {"own": {}})


def schedule(folder: Path, every: int | None = 2, last: int = 4) -> Schedule:
    settings = settings_of(SUITE, IMAGES, 100, GenerationConfig(scale=2, steps=8))
    return Schedule(RunFolder(folder), SUITE, IMAGES, 100, every, last, settings, {"folder": "mini", "sha256": "0"})


def make(keeper: Evaluations, step: int, prompt: int) -> list[int]:
    """What the agent loop does for a prompt, with images and scores that follow from the numbers alone."""
    wanted = keeper.wanted(step, prompt)
    if not wanted:
        return []
    images, verdicts, own = [], [], []
    for number in numbers_of(prompt, IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        images.append(Made(number, 100 + number, pixels, [number, 7]))
        verdicts.append(RubricScore(number / 24, f"image {number}", {"judge": number / 24, "judge/right": number % 2}))
        own.append(RubricScore(float("nan"), "out") if number == 5 else RubricScore(0.5, "", {"own": 0.5}))
    known = set(numbers_of(prompt, IMAGES)) - set(wanted)
    output = keeper.schedule().output(step)
    keeper.take(judged(ROWS[prompt], images, [verdicts, own], SUITE.correct, output, known))
    return wanted


def files(folder: Path, name: str = "eval_step_000002") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / name).iterdir()}


@pytest.mark.parametrize("seed", range(4))
def test_an_evaluation_killed_at_random_three_times_leaves_the_same_files(tmp_path: Path, seed: int) -> None:
    whole = Evaluations(schedule(tmp_path / "whole"))
    for prompt in range(len(ROWS)):
        make(whole, 2, prompt)
    chance, made = random.Random(seed), []
    for kill in range(4):
        keeper, order = Evaluations(schedule(tmp_path / "killed")), list(range(len(ROWS)))
        chance.shuffle(order)  # workers are not equally fast
        for prompt in order[: chance.randint(0, 4)] if kill < 3 else order:
            made += make(keeper, 2, prompt)
        log = tmp_path / "killed" / "eval_step_000002" / "verdicts.jsonl"
        if kill < 3 and log.is_file():
            content = log.read_bytes()
            log.write_bytes(content[: chance.randint(content.index(b"\n") + 1, len(content))])
            made = [line["number"] for line in read_lines(log)[1:]]
    assert sorted(made) == list(range(24)), "no image twice, none lost"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    results = [read_json(tmp_path / name / "eval_step_000002.json") for name in ("whole", "killed")]
    for result in results:
        del result["seconds_per_image"]
    assert results[0] == results[1]


def test_images_and_numbers_of_a_step(tmp_path: Path) -> None:
    keeper = Evaluations(schedule(tmp_path))
    assert keeper.state() == ("", "")
    for prompt in reversed(range(len(ROWS))):
        make(keeper, 0, prompt)
        assert prompt == 0 or keeper.state()[0].startswith("evaluating step 0: ")
    assert keeper.state()[0].startswith("evaluated step 0: 0.479 in ")
    (numbers,) = RunFolder(tmp_path).read_metrics()  # at once: a launcher that is killed now loses nothing
    assert numbers["step"] == 0
    assert numbers["eval/score"] == pytest.approx(np.mean([n / 24 for n in range(24)]))
    assert numbers["eval/official"] == 0.5 and numbers["eval/reward"] == numbers["eval/reward/own"] == 0.5
    assert numbers["eval/failed"] == 0 and numbers["timing_s/eval"] > 0
    assert list((tmp_path / "tensorboard").glob("*.evaluations"))
    result = read_json(tmp_path / "eval_before.json")
    assert result["model"] == {"folder": "mini", "sha256": "0", "step": 0} and result["reward_failed"] == 1
    for image in result["images"]:
        pixels = np.random.default_rng(image["number"]).integers(0, 256, (16, 16, 3), np.uint8)
        assert (np.asarray(Image.open(tmp_path / image["file"])) == pixels).all()
        assert (image["pixel_distance"] is None) == (image["number"] % IMAGES > 0)


def test_what_was_killed_before_the_result_was_written_gets_it(tmp_path: Path) -> None:
    for _ in range(2):
        keeper = Evaluations(schedule(tmp_path))
        made = [make(keeper, 4, prompt) for prompt in range(len(ROWS))]
        result = read_json(tmp_path / "eval_after.json")
        (tmp_path / "eval_after.json").unlink()
    assert made == [[]] * len(ROWS) and len(result["images"]) == 24


def test_which_steps_are_evaluated_and_which_still_have_to_be(tmp_path: Path) -> None:
    planned = schedule(tmp_path)
    assert [planned.missing(step) for step in range(5)] == [True, False, True, False, True]
    assert [schedule(tmp_path, every).missing(2) for every in (None, 0, 3)] == [False] * 3
    keeper = Evaluations(planned)
    for prompt in range(len(ROWS)):
        assert planned.missing(2)
        make(keeper, 2, prompt)
    assert not planned.missing(2)
    other = dataclasses.replace(planned, settings={**planned.settings, "steps": 30})
    assert other.missing(2), "the same step with other settings is another evaluation"


def test_the_best_checkpoint_is_that_of_an_evaluation_that_has_a_checkpoint(tmp_path: Path) -> None:
    planned = schedule(tmp_path)
    keeper, saved = Evaluations(planned), tmp_path / "checkpoints" / "global_step_4"
    (saved / "actor").mkdir(parents=True)
    checkpoints.mark_complete(saved, 4)
    for step in (0, 2):
        for prompt in range(len(ROWS)):
            make(keeper, step, prompt)
    assert checkpoints.best(saved.parent) is None, "no checkpoint of these steps"
    for prompt in range(len(ROWS)):
        make(keeper, 4, prompt)
    best = checkpoints.best(saved.parent)
    assert best is not None and checkpoints.best_score(best) == pytest.approx(np.mean([n / 24 for n in range(24)]))
    shutil.rmtree(best)
    planned.keep_best(2)
    planned.keep_best(4)  # as a run does that was killed between evaluation and this
    assert checkpoints.best(saved.parent) == best


def test_an_evaluation_without_any_score_ends_the_run(tmp_path: Path) -> None:
    keeper = Evaluations(dataclasses.replace(schedule(tmp_path), suite=dataclasses.replace(SUITE, rows=ROWS[:1])))
    images = [Made(n, 100 + n, np.zeros((8, 8, 3), np.uint8), [n]) for n in keeper.wanted(0, 0)]
    failed = [RubricScore(float("nan"), "mine: out")] * IMAGES
    keeper.take(judged(ROWS[0], images, [failed], (), tmp_path / "eval_before.json"))
    assert keeper.state()[1] == "evaluation mine: no image could be scored: mine: out"
    assert not (tmp_path / "eval_before.json").exists()
