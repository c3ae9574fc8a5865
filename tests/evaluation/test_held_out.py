"""The shapes evaluation on pipelines whose quality is known: perfect, blind, collapsed, half right."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from editing import edit_row, photo

from blip3o_rl.data.images import read_image
from blip3o_rl.data.prompts import check_row
from blip3o_rl.data.synthetic.scene_prompts import held_out_prompts
from blip3o_rl.data.synthetic.scenes import TAGS, draw, realise
from blip3o_rl.data.synthetic.words import held_out_words, write
from blip3o_rl.errors import UserError
from blip3o_rl.evaluation import held_out, verdicts
from blip3o_rl.evaluation.held_out import evaluate
from blip3o_rl.evaluation.suite import Suite
from blip3o_rl.model.generation import GenerationConfig

PROMPTS = held_out_prompts(24)
BY_TEXT = {line["prompt"]: line for line in PROMPTS}


def right(prompt: str, seed: int) -> np.ndarray:
    return draw(realise(np.random.default_rng(seed), BY_TEXT[prompt]))


def pipeline(paint, tokens_of=lambda seed: [seed, 1]):
    """A stand-in with the pipeline's call and output."""
    calls = []

    def pipe(prompts, seeds, config):
        calls.append((config.scale, config.steps, config.guidance))
        images = np.stack([paint(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])
        return SimpleNamespace(images=images, tokens=np.array([tokens_of(seed) for seed in seeds]))

    pipe.calls = calls
    return pipe


def test_a_perfect_pipeline(tmp_path):
    pipe = pipeline(right)
    result = evaluate(
        pipe,
        PROMPTS,
        images_per_prompt=3,
        config=GenerationConfig(scale=1, steps=7),
        output=tmp_path / "deep" / "e.json",
    )
    assert result.overall > 0.97 and result.official > 0.97
    assert set(result.per_tag) == set(TAGS)
    assert sum(tag["images"] for tag in result.per_tag.values()) == 72
    assert result.distinct_share == 1
    assert result.pixel_distance > 0.02
    assert set(pipe.calls) == {(1, 7, 2.0)}
    saved = json.loads((tmp_path / "deep" / "e.json").read_text())
    assert saved["overall"] == result.overall and len(saved["images"]) == 72 and "pixels" not in saved
    assert saved["settings"]["images_per_prompt"] == 3


def test_a_collapsed_pipeline_shows_in_the_diversity():
    result = evaluate(pipeline(lambda p, s: right(p, 0), lambda seed: [5, 5]), PROMPTS)
    assert result.overall > 0.97
    assert result.distinct_share == 1 / 96
    assert result.pixel_distance == 0


def test_a_blank_pipeline_scores_zero():
    result = evaluate(pipeline(lambda p, s: np.full((64, 64, 3), 238, np.uint8)), PROMPTS)
    assert result.overall == 0 and result.official == 0
    assert result.monitors["flat_share"] == 1
    assert all(image.reason for image in result.images)


def test_the_best_image_of_each_prompt_counts_alone():
    blank = np.full((64, 64, 3), 238, np.uint8)
    result = evaluate(pipeline(lambda p, seed: right(p, seed) if seed % 4 == 3 else blank), PROMPTS[:6])
    assert result.best > 0.97 and result.overall == pytest.approx(result.best / 4)


def test_official_weighs_tags_equally_and_overall_weighs_images_equally():
    singles = [p for p in PROMPTS if p["tag"] == "single_object"]
    positions = [p for p in PROMPTS if p["tag"] == "position"]
    blank = np.full((64, 64, 3), 238, np.uint8)

    def paint(prompt, seed):
        return right(prompt, seed) if BY_TEXT[prompt]["tag"] == "single_object" else blank

    result = evaluate(pipeline(paint), [singles[0], *positions[:3]], images_per_prompt=2)
    assert result.official == 0.5
    assert result.overall == 0.25
    assert result.best == 0.25
    assert result.per_tag["single_object"] == {"partial": 1.0, "official": 1.0, "images": 2}
    assert result.standard_error == pytest.approx(0.25)


def test_seeds_are_distinct_and_repeatable():
    first = evaluate(pipeline(right), PROMPTS[:4], images_per_prompt=2, seed=5)
    again = evaluate(pipeline(right), PROMPTS[:4], images_per_prompt=2, seed=5)
    assert [image.seed for image in first.images] == list(range(5, 13))
    assert first.images == again.images and len({image.sha256 for image in first.images}) > 4


def test_rewards_are_reported_next_to_the_judge_and_failures_are_counted(tmp_path):
    (tmp_path / "r.py").write_text(
        "def f(image, sample):\n"
        "    if sample.id.endswith('/1'):\n"
        "        raise ValueError('bad image')\n"
        "    return image.mean() / 255\n"
    )
    rewards = {"light": {"path": f"{tmp_path / 'r.py'}:f", "on_error": "skip_sample"}}
    result = evaluate(pipeline(right), PROMPTS[:3], images_per_prompt=2, rewards=rewards)
    assert result.reward_failed == 1
    assert result.images[1].reward is None
    assert 0.5 < result.reward < 1 and result.reward_parts["light"] == pytest.approx(result.reward)


def test_one_image_a_prompt_has_no_distance_and_valid_json():
    result = evaluate(pipeline(right), PROMPTS[:1], images_per_prompt=1)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["pixel_distance"] is None and data["standard_error"] is None


def test_mistakes():
    with pytest.raises(UserError, match="at least one"):
        evaluate(pipeline(right), [])
    with pytest.raises(UserError, match="prompt 0: .*'dog'"):
        dog = {"prompt": "a dog", "tag": "single_object", "include": [{"class": "dog", "count": 1}]}
        evaluate(pipeline(right), [dog])


def test_words_are_judged_by_what_can_be_read() -> None:
    lines = held_out_words(6)
    text_of = {line["prompt"]: line for line in lines}
    pipe = pipeline(lambda prompt, seed: write(np.random.default_rng(seed), text_of[prompt]).draw())
    result = evaluate(pipe, lines, "words", images_per_prompt=2)
    assert result.overall > 0.8 and set(result.per_tag) == {"text"}
    assert result.settings["suite"] == "words"
    blank = evaluate(pipeline(lambda p, s: np.full((64, 64, 3), 238, np.uint8)), lines, "words", images_per_prompt=1)
    assert blank.overall == 0


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(UserError, match="eval poems: .*known: shapes, words, text"):
        evaluate(pipeline(right), PROMPTS, "poems")


class Killed(Exception):
    """What stands for a kill."""


@pytest.mark.parametrize("kills", [(1,), (7, 3, 8), (2, 2, 2, 2)])
def test_an_evaluation_that_is_killed_gives_the_verdicts_of_an_undisturbed_one(tmp_path, monkeypatch, kills):
    def run(folder, pipe=None):
        file = tmp_path / folder / "e.json"
        config = GenerationConfig(batch_size=4)
        evaluate(pipe or pipeline(right), PROMPTS[:10], images_per_prompt=2, config=config, output=file)
        return (file.with_suffix("") / "verdicts.jsonl").read_bytes(), json.loads(file.read_text())["images"]

    undisturbed = run("whole")
    append = verdicts.append_line
    for left in kills:
        written = []

        def kill(file, value, left=left, written=written):
            if len(written) == left:
                with file.open("ab") as stream:
                    stream.write(b'{"number": 9, "half')
                raise Killed
            append(file, value)
            written.append(value)

        monkeypatch.setattr(verdicts, "append_line", kill)
        with pytest.raises(Killed):
            run("killed")
    monkeypatch.setattr(verdicts, "append_line", append)
    counted = pipeline(right)
    assert run("killed", counted) == undisturbed, "the same bytes"
    assert len(counted.calls) == 5 - sum(kills) // 4, "whole batches are not made again"
    assert sorted(p.name for p in (tmp_path / "killed" / "e").glob("*.png")) == [f"{n:04d}.png" for n in range(20)]


def test_what_another_evaluation_left_is_replaced(tmp_path):
    file = tmp_path / "e.json"
    evaluate(pipeline(right), PROMPTS[:6], images_per_prompt=2, output=file)
    evaluate(pipeline(right), PROMPTS[:3], images_per_prompt=1, output=file)
    assert len(json.loads(file.read_text())["images"]) == 3 and len(list((tmp_path / "e").glob("*.png"))) == 3


def test_no_more_images_than_a_batch_are_in_memory():
    sizes = []

    def pipe(prompts, seeds, config):
        sizes.append(len(prompts))
        return pipeline(right)(prompts, seeds, config)

    evaluate(pipe, PROMPTS, images_per_prompt=3, config=GenerationConfig(batch_size=8))
    assert max(sizes) == 6 and sum(sizes) == 72


def test_a_rubric_of_ones_own_needs_no_tags_and_its_failures_are_counted(tmp_path):
    (tmp_path / "r.py").write_text("def f(image, sample):\n    return 2 / (not sample.id.endswith('/1'))\n")
    rows = [check_row({"prompt": f"a {color} thing"}, f"mine:{color}") for color in ("red", "blue")]
    suite = Suite("mine", rows, {"f": {"path": f"{tmp_path / 'r.py'}:f", "on_error": "skip_sample"}})
    blank = pipeline(lambda p, s: np.full((64, 64, 3), 238, np.uint8))
    seen = []
    result = held_out.score(blank, suite, tmp_path / "e.json", 2, progress=lambda *numbers: seen.append(numbers[:2]))
    assert (result.overall, result.official, result.failed, result.reward) == (2.0, None, 1, None)
    assert "division by zero" in result.images[1].reason and result.images[1].partial is None
    assert seen == [(0, 4), (4, 4)] and result.versions["torch"]
    with pytest.raises(UserError, match="evaluation mine: has 0 prompts"):
        held_out.score(blank, Suite("mine", [], suite.rewards), tmp_path / "e.json")


def test_edits_are_scored_with_their_references(tmp_path):
    """Their images reach pipeline and reward, lie next to the result, and decide whether results can be compared."""
    (tmp_path / "r.py").write_text(
        "def f(sample):\n"
        "    return sum(image.mean() for image in sample.references) / 255 if sample.references else 0.5\n"
    )
    asked = []

    def pipe(prompts, seeds, config, references, tasks):
        asked.append(references)
        assert tasks == [None] * 6
        images = np.zeros((len(prompts), 64, 64, 3), np.uint8)
        return SimpleNamespace(images=images, tokens=np.array([[seed] for seed in seeds]))

    rows = [check_row({"prompt": "a circle"}, "p:1"), edit_row(tmp_path, "x", 1), edit_row(tmp_path, "x", 2)]
    judge = {"mine": {"path": f"{tmp_path / 'r.py'}:f"}}
    result = held_out.score(pipe, Suite("mine", rows, judge), tmp_path / "e.json", images_per_prompt=2)
    assert [None if given is None else given[0].mean() for given in asked[0]] == [
        None, None, *(photo(seed).mean() for seed in (1, 1, 2, 2))
    ]  # fmt: skip
    assert asked[0][2] is asked[0][3], "encoded once for the images of a prompt"
    assert [round(image.partial, 3) for image in result.images[::2]] == [
        0.5, *(round(photo(seed).mean() / 255, 3) for seed in (1, 2))
    ]  # fmt: skip
    assert [len(image.references) for image in result.images] == [0, 0, 1, 1, 1, 1]
    kept = [tmp_path / result.images[number].references[0] for number in (2, 4)]
    assert [np.array_equal(read_image(file), photo(seed)) for file, seed in zip(kept, (1, 2), strict=True)] == [
        True
    ] * 2
    other = [rows[0], rows[1], edit_row(tmp_path, "x", 3)]
    again = held_out.score(pipe, Suite("mine", other, judge), tmp_path / "f.json", images_per_prompt=2)
    assert again.settings["prompts_sha256"] != result.settings["prompts_sha256"]


def test_an_image_that_could_not_be_scored_is_neither_right_nor_wrong(tmp_path):
    (tmp_path / "r.py").write_text(
        "from blip3o_rl.scoring.api import Score\n"
        "def f(image, sample):\n"
        "    return Score(float('nan') if sample.id.endswith('/1') else 1.0, {'correct': 1.0})\n"
    )
    rewards = {"f": {"path": f"{tmp_path / 'r.py'}:f", "on_error": "skip_sample"}}
    suite = Suite("mine", [check_row({"prompt": "a thing"}, "mine:1")], rewards, ("f/correct",))
    blank = pipeline(lambda p, s: np.full((64, 64, 3), 238, np.uint8))
    result = held_out.score(blank, suite, tmp_path / "e.json", 2)
    assert [image.correct for image in result.images] == [True, None] and result.official == 1


def test_the_text_of_a_question_file_decides_whether_results_can_be_compared(tmp_path):
    file = tmp_path / "q.txt"

    def judge():
        suite = Suite("mine", [], {"vlm": {"model": "m", "question_file": str(file)}})
        return held_out._what_scores(suite.rewards)

    file.write_text("Good? {prompt}")
    first = judge()
    file.write_text("Bad? {prompt}")
    assert judge() != first
