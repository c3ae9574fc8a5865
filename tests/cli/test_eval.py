"""`eval`: the result's file, its images, and that nothing of an earlier command is replaced unless it is named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ImageColor

from blip3o_rl.cli import options
from blip3o_rl.cli.main import run
from blip3o_rl.data.geneval import CLASSES, COLORS
from blip3o_rl.data.images import read_image
from blip3o_rl.report import overlay
from blip3o_rl.rewards.geneval import reward
from blip3o_rl.rewards.geneval.detector import Detection


@pytest.fixture
def blank(monkeypatch, tmp_path):
    """A pipeline of blank images in an empty working directory."""

    def pipe(prompts, seeds, config):
        images = np.full((len(prompts), 64, 64, 3), 238, np.uint8)
        return SimpleNamespace(images=images, tokens=np.array(seeds)[:, None])

    monkeypatch.setattr(options.Placement, "load_pipeline", lambda *args, **kwargs: pipe)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_result_lies_next_to_its_images_and_the_next_one_gets_a_name_of_its_own(blank, capsys):
    for _ in range(2):
        assert run(["eval", "shapes", "--prompts", "6", "--images", "2"]) == 0
    outputs = blank / "outputs"
    assert sorted(file.name for file in outputs.glob("*.json")) == ["eval-shapes-2.json", "eval-shapes.json"]
    assert (outputs / "eval-shapes.png").is_file() and len(list((outputs / "eval-shapes").glob("*.png"))) == 12
    result = json.loads((outputs / "eval-shapes.json").read_text())
    assert result["overall"] == 0 and len(result["images"]) == 12
    assert "two_object" in capsys.readouterr().out


def test_text_has_an_evaluation(blank, capsys):
    assert run(["eval", "text", "--prompts", "3", "--images", "1", "--out", "mine/e.json"]) == 0
    result = json.loads((blank / "mine" / "e.json").read_text())
    assert set(result["per_tag"]) == {"word", "phrase", "two_texts"} and result["settings"]["suite"] == "text"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["txt"], "eval txt: there is no such source of prompts; did you mean 'text'"),
        (
            ["unquoted.txt"],
            "eval unquoted.txt: is a file; who scores its prompts? eval RECIPE eval.prompts=unquoted.txt",
        ),
        (["text_3b"], "model folder models/blip3o-next: no such folder"),
        (["words", "--prompts", "57"], "--prompts 57: words has 56 held-out prompts"),
        (["words", "--out", "."], "--out .: is a folder"),
        (["words", "--out", "mine/e"], "--out mine/e: names no JSON file; call it mine/e.json"),
        (["words", "--out", "e.png"], "--out e.png: names no JSON file; call it e.json"),
        (["words", "--out", "file/e.json"], "/file is no folder that can be written; give another"),
        (["words", "--out", "file.json"], "--out file: no folder to write to (File exists)"),
        (["recipes/shape"], "recipe recipes/shape: no recipes/shape/config.yaml; known recipes: "),
        (["words", "eval.limit=3"], "eval words eval: images are judged by ocr; set its keys"),
        (["words", "ocr.modus=strict"], "eval words: ocr.modus: OCRReward has no such keyword; did you mean 'mode'"),
        (["words", "--file", "gone.txt"], "gone.txt: there is no such file"),
        (
            ["words", "--file", "unquoted.txt"],
            "unquoted.txt:1: reward 'ocr' cannot score this prompt: it names no text",
        ),
        (
            ["recipes/shapes", "--file", "unquoted.txt"],
            "--file unquoted.txt: takes the place of a named suite's prompts",
        ),
        (["geneval"], "eval geneval: geneval: checkpoint: there is no models/geneval; make it of https"),
        (["words", "--model", "gone"], "model folder gone: no such folder"),
        (["broken"], "broken/config.yaml: while parsing a flow sequence"),
        (["compare"], "eval compare: 0 results given"),
        (
            ["compare", "a.json", "b.json", "--images", "2", "--model", "mini"],
            "eval compare: has no use for --model, --images; give files alone",
        ),
        (["compare", "one.json"], "eval compare: 1 results of words; give two files, such as"),
        (["compare", "one.json", "one.json", "one.json"], "eval compare: 3 results of words"),
        (["compare", "a.json", "b.json"], "a.json: not readable as JSON"),
    ],
)
def test_bad_input_is_one_line(blank, capsys, arguments, says):
    (blank / "file").touch()
    (blank / "broken").mkdir()
    (blank / "broken" / "config.yaml").write_text("a: [1\n")
    (blank / "unquoted.txt").write_text("a shop sign\n")
    (blank / "one.json").write_text('{"overall": 0.5, "settings": {"suite": "words"}, "images": []}')
    assert run(["eval", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_recipe_is_evaluated_on_its_own_prompts_and_rewards(blank, capsys):
    (blank / "mine.py").write_text("def score(image): return image.mean() / 255\n")
    lines = [json.dumps({"prompt": f"a photo of {number} circles"}) + "\n" for number in range(40)]
    (blank / "mine.jsonl").write_text("".join(lines))
    mine = ["prompts.file=mine.jsonl", "~reward.rewards.geneval", "reward.rewards.mine.path=mine.py:score"]
    recipe = "recipes/shapes"  # the shipped one, as for `train`
    assert run(["eval", recipe, *mine, "--images", "1", "--limit", "2", "--out", "e.json"]) == 0
    result = json.loads((blank / "e.json").read_text())
    assert result["overall"] == pytest.approx(238 / 255) and len(result["images"]) == 2
    assert (result["settings"]["suite"], result["settings"]["seed"]) == ("mine", 20_000)
    assert len(result["model"]["sha256"]) == 64
    assert run(["eval", recipe, *mine, "run.evaluate=false"]) == 2
    assert "all of prompts.file is trained on; give eval.prompts" in capsys.readouterr().err


def test_two_models_are_compared_image_by_image(blank, capsys):
    both = ["--model", "mini", "--model", "mini"]
    assert run(["eval", "shapes", "--prompts", "3", "--images", "1", *both]) == 0
    assert "better in 0, equal in 3, worse in 0" in " ".join(capsys.readouterr().out.split())
    first, second = sorted(map(str, (blank / "outputs").glob("*.json")))
    assert run(["eval", "compare", first, second]) == 0
    assert "+0.000 to +0.000" in capsys.readouterr().out
    assert run(["eval", "shapes", "--prompts", "2", "--images", "1", "--out", "c.json"]) == 0
    assert run(["eval", "compare", first, "c.json"]) == 2
    assert "prompts 3 before and 2 after" in capsys.readouterr().err
    (blank / "half.json").write_text('{"overall": 0.5, "images": [{"pro')
    assert run(["eval", "compare", first, "half.json"]) == 2
    assert "half.json: not readable as JSON" in capsys.readouterr().err


def test_a_suites_judge_is_asked_about_a_file_of_the_users_own(blank, capsys):
    """Flow-GRPO's test.txt: a prompt per line with its text in quotes."""
    (blank / "test.txt").write_text('A sign that says "Slow Down"\nA mug with "42" on it\n')
    assert run(["eval", "text", "ocr.mode=original", "--file", "test.txt", "--images", "2", "--out", "e.json"]) == 0
    result = json.loads((blank / "e.json").read_text())
    assert (len(result["images"]), result["overall"], result["components"]["ocr/original"]) == (4, 0.0, 0.0)
    assert "ocr/original" in capsys.readouterr().out
    assert run(["eval", "text", "--file", "test.txt", "--images", "2", "--out", "f.json"]) == 0
    assert run(["eval", "compare", "e.json", "f.json"]) == 2
    assert "other rewards after than before" in capsys.readouterr().err


def test_the_553_prompts_end_in_the_official_summary(blank, capsys, monkeypatch):
    class Nothing:
        classes, colors = CLASSES, COLORS

        def detect(self, images):
            return [[Detection("bench", 0.99, (4.0, 4.0, 40.0, 40.0))] for _ in images]

        def classify(self, questions):
            return ["red" for _ in questions]

    monkeypatch.setattr(reward, "open_detector", lambda *arguments: (Nothing(), Nothing()))
    arguments = ["eval", "geneval", "--images", "1", "--overlay", "--out", "g.json"]
    assert run([*arguments, "--batch-size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "Total images: 553\nTotal prompts: 553\n" in printed and "single_object    = 1.25% (1 / 80)" in printed
    result = json.loads((blank / "g.json").read_text())
    assert f"Overall score (avg. over tasks): {result['official']:.5f}" in printed
    assert result["images"][0]["found"] == [{"label": "bench 0.99", "box": [0.0625, 0.0625, 0.625, 0.625]}]
    grid = read_image(blank / "g.png")
    assert (grid == ImageColor.getrgb(overlay.COLORS[0])).all(2).any(), "the boxes are in the grid"


def test_models_are_compared_on_several_suites_in_one_table(blank, capsys):
    for name in "ab":
        assert run(["eval", "shapes", "--prompts", "6", "--images", "1", "--out", f"{name}/shapes.json"]) == 0
        assert run(["eval", "words", "--prompts", "2", "--images", "1", "--out", f"{name}/words.json"]) == 0
    capsys.readouterr()
    assert run(["eval", "compare", "a/shapes.json", "a/words.json", "b/shapes.json", "b/words.json"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("two_object") < printed.index("all suites") < printed.rindex("words")
    last = printed[printed.index("all suites") :].splitlines()[1:]
    assert {line.split()[0]: line.split()[-3:] for line in last} == {
        "shapes": ["0", "6", "0"],
        "words": ["0", "2", "0"],
    }
    assert run(["eval", "compare", "a/shapes.json", "a/words.json", "b/shapes.json"]) == 2
    assert "eval compare: 1 results of words" in capsys.readouterr().err
