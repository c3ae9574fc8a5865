"""Before and after: compared only if both evaluations are of the same prompts, seeds and settings."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json, write_json, write_lines
from blip3o_rl.report import page, summary
from blip3o_rl.report.evaluations import Comparison, PairedImage, between, compare, compare_files, intervals
from blip3o_rl.report.run_folder import RunFolder

PROMPT = "[/b] 一张 <b>circle</b> [bold red]"
RESULT = {
    "overall": 0.5,
    "reward": 0.4,
    "settings": {"suite": "shapes", "prompts": 2, "seed": 7, "prompts_sha256": "a", "rewards_sha256": "r"},
    "images": [
        {"prompt": PROMPT, "seed": 7, "partial": 0.25, "file": "{}/0000.png"},
        {"prompt": "two", "seed": 8, "partial": 0.75, "file": ""},
    ],
}


def make(tmp_path, change=None):
    """A run whose evaluation after training has a better score, and `change` applied to it."""
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    folder.config.write_text("run: {}\n")
    for file, gain in ((folder.eval_before, 0.0), (folder.eval_after, 0.2)):
        result = copy.deepcopy(RESULT)
        result["overall"] += gain
        result["images"][0]["file"] = f"{file.stem}/0000.png"
        if change is not None and gain:
            change(result)
        write_json(file, result)
        (folder.path / file.stem).mkdir()
        Image.fromarray(np.full((64, 64, 3), int(200 * gain), np.uint8)).save(folder.path / file.stem / "0000.png")
    return folder


def test_equal_evaluations_are_compared_and_their_saved_images_paired(tmp_path):
    folder = make(tmp_path)
    found = compare(folder)
    assert found.difference == "" and found.score == (0.5, 0.7) and found.reward == (0.4, 0.4)
    assert [(pair.prompt, pair.before.max(), pair.after.max()) for pair in found.pairs] == [(PROMPT, 0, 40)]
    summary.write(folder)
    assert folder.before_after.is_file() and read_json(folder.summary_json)["gain"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["settings"].update(prompts=1), "prompts 2 before and 1 after"),
        (lambda r: r["settings"].update(steps=9), "steps None before and 9 after"),
        (lambda r: r["settings"].update(prompts_sha256="b"), "other prompts"),
        (lambda r: r["images"][1].update(seed=9), "other prompts or seeds"),
        (lambda r: r["images"].pop(), "other prompts or seeds"),
    ],
)
def test_unlike_evaluations_are_never_compared(tmp_path, change, says):
    folder = make(tmp_path, change)
    assert says in compare(folder).difference
    found = summary.write(folder)
    assert found.gain is None and not folder.before_after.exists()
    text = folder.summary_text.read_text()
    assert "not alike" in text and "0.500 ->" not in text and "same images" not in text
    assert says in page.write(folder).read_text()


def test_other_rewards_leave_the_judge_comparable_but_not_the_reward(tmp_path):
    found = compare(make(tmp_path, lambda result: result["settings"].update(rewards_sha256="other")))
    assert found.score == (0.5, 0.7) and found.reward is None


def test_evaluations_of_older_runs_without_digests_are_compared(tmp_path):
    def older(result):
        del result["settings"]["prompts_sha256"], result["settings"]["rewards_sha256"]

    assert compare(make(tmp_path, older)).score == (0.5, 0.7)


def test_the_page_shows_prompts_as_text_and_escaped(tmp_path):
    text = page.write(make(tmp_path)).read_text()
    assert "[/b] 一张 &lt;b&gt;circle&lt;/b&gt; [bold red]" in text
    assert "0.25 → 0.25" in text and text.count("data:image/png") == 2


@pytest.mark.parametrize("name", ["[/b]", "[bold red]x", "Übung 一"])
def test_a_run_folder_of_any_name_is_shown_as_it_is(tmp_path, name):
    folder = RunFolder.create("shapes", path=tmp_path / name.replace("/", "") / "run")
    folder.config.write_text("run: {}\n")
    console = Console(file=io.StringIO(), width=300)
    console.print(summary.table(summary.summarize(folder)))
    assert str(folder.path) in console.file.getvalue()


def test_outcomes_and_intervals_are_of_pairs_and_the_interval_is_by_prompts():
    values = [(0.0, 1.0)] * 4 + [(0.5, 0.5)] * 2 + [(1.0, 0.0)] * 2
    images = [PairedImage(f"prompt {i // 2}", "ab"[i // 4], pair, None) for i, pair in enumerate(values)]
    found = Comparison("", images=images)
    assert found.outcomes == {"a": (4, 0, 0), "b": (0, 2, 2), "overall": (4, 2, 2)}
    before, after, gain = found.rows["overall"]
    assert before[0] == 0.375 and after[0] == 0.625 and gain[0] == 0.25 and gain[1] < 0 < gain[2]
    assert found.rows["a"][2] == (1.0, 1.0, 1.0) and found.rows["b"][2][0] == -0.5
    alike = np.repeat(np.random.default_rng(1).normal(size=(30, 1)), 8, axis=0)
    [(mean, low, high)] = intervals(alike, [str(i // 8) for i in range(240)])
    [(_, narrow, wide)] = intervals(alike, [str(i) for i in range(240)])
    assert low < mean < high and high - low > 2 * (wide - narrow), "images of one prompt are no new evidence"
    assert high - low == pytest.approx(2 * 1.96 * alike.std() / np.sqrt(30), rel=0.15)


def test_what_rewards_saw_is_drawn_over_the_images_that_changed_most(tmp_path):
    def change(result):
        result["images"][0] |= {"partial": 1.0, "found": [{"label": "circle 0.97", "box": [0.1, 0.2, 0.6, 0.9]}]}

    folder = make(tmp_path, change)
    [image] = [image for image in compare(folder).images if image.files]
    assert image.load().after.shape == (64, 64, 3)
    assert image.load(overlay=True).after.shape == (384, 384, 3) and image.load(overlay=True).before.shape[0] == 64
    assert page.write(folder, overlay=True).read_text() == page.write(folder).read_text(), "too few images to choose"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "is no result of an evaluation"),
        ('{"overall": 0.5}', "is no result of an evaluation"),
        ('{"overall": 0.', "not readable as JSON"),
        ('{"overall": 0.5, "images": {}}', "is no result of an evaluation"),
        ('{"overall": 0.5, "images": [], "settings": []}', "settings is no JSON object"),
        ('{"overall": 0.5, "images": [{"prompt": "a", "partial": 1}, 5]}', "images.1 is no image"),
        ('{"overall": 0.5, "images": [{"partial": 0.5}]}', "images.0 is no image"),
        ('{"overall": 0.5, "images": [{"prompt": "a", "partial": "much"}]}', "images.0 is no image"),
        ('{"overall": 0.5, "images": [{"prompt": "a", "tag": null}]}', "images.0 is no image"),
    ],
)
def test_a_file_that_is_no_whole_result_is_one_line(tmp_path, text, says):
    folder = make(tmp_path)
    folder.eval_after.write_text(text)
    with pytest.raises(UserError, match=rf"eval_after\.json: {says}"):
        compare(folder)
    with pytest.raises(UserError, match="is a folder; give a result in it"):
        compare_files(folder.path, folder.eval_after)


def test_one_instruction_with_two_references_is_two_prompts(tmp_path):
    """They are paired, shown and resampled apart, and the page shows what was edited."""

    def edits(result):
        for number, image in enumerate(result["images"]):
            image.update(prompt="make it red", references=[f"eval_after/reference-{number}.png"])
            image["file"] = image["file"] or "eval_after/0000.png"
        result["settings"]["prompts_sha256"] = "e"

    folder = make(tmp_path)
    for file in (folder.eval_before, folder.eval_after):
        result = read_json(file)
        edits(result)
        write_json(file, result)
    for number in range(2):
        Image.fromarray(np.full((64, 64, 3), 50 * number, np.uint8)).save(
            folder.path / "eval_after" / f"reference-{number}.png"
        )
    found = compare(folder)
    assert found.difference == "" and len(found.pairs) == 2
    assert [pair.reference.max() for pair in found.pairs] == [0, 50]
    before, _, _ = found.rows["overall"]
    assert before[1] < before[0] < before[2], "two prompts have an interval"
    summary.write(folder)
    assert 'alt="reference"' in page.write(folder).read_text()
    (folder.path / "eval_after" / "reference-1.png").unlink()
    assert len(compare(folder).pairs) == 1


def test_the_page_lists_an_instruction_once_per_reference(tmp_path):
    folder = make(tmp_path)
    lines = [{"prompt": "make it red", "references": [name], "score": score} for name, score in (("a", 0), ("b", 1))]
    write_lines(folder.rollout_file(1), [*lines, {"prompt": "a circle", "score": 0.5}])
    found = page._prompts(folder, 1)
    assert found == [("make it red   ·   a", 0.0), ("make it red   ·   b", 1.0), ("a circle", 0.5)]


def test_evaluations_in_between_stand_next_to_the_ends_if_they_are_alike(tmp_path):
    folder = make(tmp_path)
    for step, scale in ((10, 2), (20, 2), (30, 1)):
        result = copy.deepcopy(RESULT)
        result["settings"] |= {"scale": scale}
        file = folder.evaluation(step, last=40)
        result["images"][0] |= {"file": f"{file.stem}/0000.png", "partial": step / 100}
        write_json(file, result)
        file.with_suffix("").mkdir()
        Image.fromarray(np.full((8, 8, 3), step, np.uint8)).save(file.with_suffix("") / "0000.png")
    for file in (folder.eval_before, folder.eval_after):
        result = read_json(file)
        result["settings"]["scale"] = 2
        write_json(file, result)
    assert [(one.step, one.images[PROMPT, 7][0]) for one in between(folder)] == [(10, 0.1), (20, 0.2)]
    text = page.write(folder).read_text()
    assert "0.25 → 0.10 → 0.20 → 0.25" in text and "not chosen: before, step 10, step 20, after" in text
    assert text.count('alt="step 10"') == 1 and text.count("data:image/png") == 4 and "step 30" not in text


def test_one_prompt_has_no_interval():
    (found,) = intervals(np.array([[0.2], [0.8]]), ["a", "a"])
    assert found.mean == 0.5 and np.isnan(found.low) and found.ends == "-"
