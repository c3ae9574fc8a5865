"""What a run is evaluated on: a source's held-out side, a file, or a share of the user's own file."""

from __future__ import annotations

import json
import random

import pytest
from editing import edit_row, write_rows

from blip3o_rl.config.train import compose_recipe, compose_run, read_settings
from blip3o_rl.errors import UserError
from blip3o_rl.evaluation.suite import of_run

PROMPTS = [f"a photo of {number} circles" for number in range(40)]
REWARDS = {"mine": {"path": "mine.py:score"}}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def score(image): return image.mean() / 255\n")
    return tmp_path


def write(name, prompts):
    with open(name, "w") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    return name


def sides(*overrides):
    rows, suite = of_run(read_settings(compose_recipe("shapes", list(overrides))), REWARDS)
    return [row.prompt for row in rows], suite


def test_a_share_of_the_users_file_is_held_out_by_a_hash_of_the_prompt():
    trained, suite = sides(f"prompts.file={write('p.jsonl', PROMPTS)}")
    held_out = {row.prompt for row in suite.rows}
    assert 2 <= len(held_out) <= 10 and held_out.isdisjoint(trained) and held_out | set(trained) == set(PROMPTS)
    assert suite.rewards == REWARDS and suite.name == "p" and suite.correct == ()

    longer = [*PROMPTS, *(f"{prompt} and a  CROSS" for prompt in PROMPTS), PROMPTS[0], PROMPTS[1].upper()]
    random.Random(0).shuffle(longer)
    trained, suite = sides(f"prompts.file={write('p.jsonl', longer)}")
    assert held_out <= {row.prompt.lower() for row in suite.rows}
    texts = [" ".join(row.prompt.lower().split()) for row in suite.rows]
    assert len(set(texts)) == len(texts) and set(texts).isdisjoint(prompt.lower() for prompt in trained)
    assert len(sides("prompts.file=p.jsonl", "eval.held_out_share=0.5")[1].rows) > 2 * len(texts)
    assert len(sides("prompts.file=p.jsonl", "eval.held_out_share=0.5", "eval.limit=3")[1].rows) == 3


def test_a_prompt_is_on_one_side_however_its_accents_are_written():
    both = ("a caf\u00e9", "a cafe\u0301")
    for held_out in both:
        with pytest.raises(UserError, match="1 of 1 held-out prompts are trained on"):
            sides(f"prompts.file={write('p.jsonl', both)}", f"eval.prompts={write('h.jsonl', [held_out])}")


def test_two_prompts_are_enough_and_one_is_not():
    trained, suite = sides(f"prompts.file={write('p.jsonl', PROMPTS[:2])}", "eval.held_out_share=0.001")
    assert len(trained) == len(suite.rows) == 1
    with pytest.raises(UserError, match=r"has 1 prompt, and none can be held out.*run\.evaluate=false"):
        sides(f"prompts.file={write('p.jsonl', [PROMPTS[0], PROMPTS[0].upper()])}")
    trained, suite = sides("prompts.file=p.jsonl", "run.evaluate=false")
    assert len(trained) == 2 and suite is None


def test_a_file_of_held_out_prompts_that_are_trained_on_is_refused_with_their_count():
    write("p.jsonl", PROMPTS), write("e.jsonl", ["a square", PROMPTS[3].upper(), PROMPTS[5]])
    with pytest.raises(UserError, match=r"eval\.prompts=e\.jsonl: 2 of 3 held-out prompts are trained on as well"):
        sides("prompts.file=p.jsonl", "eval.prompts=e.jsonl")
    write("e.jsonl", ["a square", "two squares"])
    trained, suite = sides("prompts.file=p.jsonl", "eval.prompts=e.jsonl")
    assert len(trained) == 40 and [row.prompt for row in suite.rows] == ["a square", "two squares"]


def test_a_source_keeps_its_judge_and_reports_the_runs_rewards():
    _, suite = sides("eval.limit=5")
    assert (suite.name, suite.correct, len(suite.rows), suite.reported) == ("shapes", ("geneval/correct",), 5, REWARDS)
    _, other = sides("eval.prompts=words")
    assert (other.name, set(other.rewards), other.reported) == ("words", {"ocr"}, {})


def test_rewards_of_the_evaluation_take_the_place_of_the_judge_and_are_checked():
    _, suite = sides("eval.limit=2", *(f"eval.rewards.{name}.path=mine.py:score" for name in "ab"))
    assert suite.rewards == dict.fromkeys("ab", {"path": "mine.py:score"}) and suite.correct == ()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["eval.prompts=shape"], "eval.prompts=shape: is no file and no suite; did you mean 'shapes'"),
        (["eval.held_out_share=1"], "eval.held_out_share=1: must be less than 1"),
        (["eval.rewards.genval.mode=strict"], "for your own set eval.rewards.genval.path to file.py:function"),
        (["eval.rewards.ocr=null"], "log it without training on it with eval.rewards.ocr.weight=0"),
        (["eval.rewards.geneval=0.5"], "eval.rewards.geneval=0.5: is not a mapping; write eval.rewards.geneval.<key>="),
        (["eval.rewards.ocr=0.5"], "eval.rewards.ocr=0.5: is not a mapping"),
        (["eval.rewards.ocr.service=gpu7"], "eval.rewards.ocr.service=gpu7: is not a mapping"),
        (["eval.rewards.mine.path=gone.py:f"], "gone.py"),
        (["eval.images=2"], "eval.images: there is no such key; known: every, held_out_share, images_per_prompt"),
    ],
)
def test_bad_input_is_one_line(overrides, says):
    with pytest.raises(UserError) as error:
        sides(*overrides)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_former_keys_keep_their_meaning_and_stored_runs_are_read():
    config = compose_recipe("quickstart", ["run.eval_prompts=7", "run.eval_images=2"])
    assert (config.eval.limit, config.eval.images_per_prompt) == (7, 2) and "eval_images" not in config.run
    del config.eval
    config.run.update(eval_prompts=9, eval_images=3)
    again = compose_run(config, "config.yaml", ["eval.images_per_prompt=1"])
    assert (again.eval.limit, again.eval.images_per_prompt, again.eval.seed) == (9, 1, 20_000)


def test_text_to_image_keeps_its_sides(home):
    """Those of version 0.1, so that a resumed run holds out what it held out before."""
    _, suite = sides(f"prompts.file={write('p.jsonl', PROMPTS)}")
    assert [row.prompt for row in suite.rows] == [PROMPTS[number] for number in (19, 20, 24, 25, 38)]


def test_an_instruction_is_held_out_with_its_reference(home):
    """The same words with another image are another prompt; the same image under another name is the same one."""
    rows = [edit_row(home, "Make it red", seed) for seed in range(40)]
    lines = [{"prompt": row.prompt, "references": row.metadata["references"]} for row in rows]
    file = write_rows(home / "p.jsonl", *lines, {"prompt": "make it  red"})
    settings = read_settings(compose_recipe("shapes", [f"prompts.file={file}"]))
    trained, suite = of_run(settings, REWARDS)
    assert 2 <= len(suite.rows) <= 10 and len(trained) + len(suite.rows) == 41
    held = suite.rows[0]
    (home / "copy.png").write_bytes((home / held.references[0].name).read_bytes())
    write_rows(home / "p.jsonl", *lines, {"prompt": "MAKE it red", "references": ["copy.png"]})
    trained, suite = of_run(settings, REWARDS)
    assert "copy.png" not in [row.references[0].name for row in trained]
    write_rows(home / "e.jsonl", {"prompt": "make it red", "references": ["7.png"]})
    with pytest.raises(UserError, match="1 of 1 held-out prompts are trained on as well"):
        sides("prompts.file=p.jsonl", "eval.prompts=e.jsonl")
    write_rows(home / "e.jsonl", {"prompt": "make it red", "references": ["7.png", "8.png"]})
    assert len(sides("prompts.file=p.jsonl", "eval.prompts=e.jsonl")[1].rows) == 1
