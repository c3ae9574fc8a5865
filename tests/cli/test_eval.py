"""`eval`: the result's file, its images, and that nothing of an earlier command is replaced unless it is named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from blip3o_rl.cli import options
from blip3o_rl.cli.main import run


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
    assert (outputs / "eval-shapes.png").is_file() and len(list((outputs / "eval-shapes").iterdir())) == 6
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
        (["words", "--prompts", "23"], "--prompts 23: words has 22 held-out prompts"),
        (["words", "--out", "."], "--out .: is a folder"),
    ],
)
def test_bad_input_is_one_line(blank, capsys, arguments, says):
    assert run(["eval", *arguments]) == 2
    assert says in capsys.readouterr().err
