"""The commands for reward authors, from the starting file to the table."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from blip3o_rl.cli import bench, reward_arguments, rewards_check, rewards_new, rewards_score
from blip3o_rl.errors import UserError

app = typer.Typer()
for command in (rewards_new.new, rewards_check.check, rewards_score.score):
    app.command()(command)
app.command("bench")(bench.bench_rewards)


def run(*arguments: str | Path) -> int:
    code = app(args=[str(a) for a in arguments], standalone_mode=False)
    return code if isinstance(code, int) else 0


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(
        "def bright(image, scale=1.0):\n    return scale * image.mean() / 255\n"
        "def broken(prompt):\n    return float('nan')\n"
        "def picky(image):\n    if image.mean() > 150:\n        raise ValueError('too bright')\n    return 0.5\n"
    )
    return file


def test_new_writes_a_reward_that_passes_the_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("new", "my_goal") == 0
    printed = capsys.readouterr().out
    assert "my_goal.py" in printed and "rewards check my_goal.py:my_goal" in printed
    assert run("check", "my_goal.py:my_goal") == 0
    assert run("check", "my_goal.py:my_goal", "my_goal.wanted=0.4") == 0
    before = (tmp_path / "my_goal.py").read_text()
    with pytest.raises(UserError, match=r"my_goal\.py: exists already"):
        run("new", "my_goal")
    assert (tmp_path / "my_goal.py").read_text() == before


def test_the_calibration_test_of_a_new_reward_passes_and_can_fail(tmp_path):
    run("new", "my_goal", "--folder", str(tmp_path / "deep"))
    run("new", "greedy", "--folder", str(tmp_path / "deep"))
    file = tmp_path / "deep" / "greedy.py"
    spoiled = file.read_text().replace("max(0.0, 1 - abs(share - wanted) / wanted)", "share")
    assert spoiled != file.read_text()
    file.write_text(spoiled)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_goal.py", "test_greedy.py"],
        capture_output=True,
        text=True,
        cwd=file.parent,
    )
    assert tested.returncode == 1 and "1 failed, 5 passed" in tested.stdout, tested.stdout
    assert "FAILED test_greedy.py::test_overdoing_it_does_not_pay" in tested.stdout


@pytest.mark.parametrize("name", ["my-goal", "class", "1st", ""])
def test_new_refuses_what_is_no_name(name, tmp_path):
    with pytest.raises(UserError, match="rewards new"):
        run("new", "--folder", tmp_path, "--", name)
    assert list(tmp_path.iterdir()) == []


def test_check_shows_values_and_fails_for_a_broken_reward(reward_file, capsys):
    assert run("check", "geneval", f"{reward_file}:bright", "--side", "64") == 0
    printed = capsys.readouterr().out
    assert "geneval" in printed and "bright" in printed and "ok" in printed
    assert run("check", f"{reward_file}:broken", f"{reward_file}:bright") == 1
    printed = capsys.readouterr().out
    assert "broken: problem: reward 'broken' returned nan" in printed and "bright: problem" not in printed


def save(file: Path, level: int, prompt: str | None) -> None:
    info = PngInfo()
    if prompt is not None:
        info.add_itxt("prompt", prompt)
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(file, format="PNG", pnginfo=info)


def test_score_reads_the_prompts_that_generate_wrote(tmp_path, reward_file, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number, level in enumerate((0, 51, 102)):
        save(images / f"{number}.png", level, f"prompt {number}")
    save(images / "grid.png", 255, None)
    out = tmp_path / "deep" / "scores.jsonl"
    options = ["--reward", f"{reward_file}:bright", "--reward", "bright.scale=2", "--out", out, "--batch-size", "2"]
    assert run("score", images, *options) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["image"], line["prompt"]) for line in lines] == [(f"{n}.png", f"prompt {n}") for n in range(3)]
    assert [line["score"] for line in lines] == pytest.approx([0, 0.4, 0.8])
    assert lines[1]["components"] == pytest.approx({"bright": 0.4})
    printed = capsys.readouterr().out
    assert "left out, with no prompt: grid.png" in printed and "mean" in printed and "0.4" in printed


def test_score_with_a_prompt_file_and_geneval(tmp_path):
    from blip3o_rl.data.synthetic import scenes

    metadata, scene = scenes.sample(np.random.default_rng(1), "colors")
    Image.fromarray(scenes.draw(scene)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "b.png")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({**metadata, "image": name}) + "\n" for name in ("a.png", "b.png")))
    out = tmp_path / "scores.jsonl"
    assert run("score", tmp_path, "--prompts", prompts, "--reward", "geneval", "--out", out) == 0
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [1, 0]


def test_score_says_which_image_failed_and_what_a_prompt_lacks(tmp_path, reward_file, capsys):
    save(tmp_path / "dark.png", 10, "p")
    save(tmp_path / "light.png", 250, "p")
    out = tmp_path / "scores.jsonl"
    assert run("score", tmp_path, "--reward", f"{reward_file}:picky", "--out", out) == 1
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [0.5, None]
    assert "light.png: no score: reward 'picky' raised ValueError: too bright" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"dark\.png: field 'tag' is missing, but reward 'geneval' needs it"):
        run("score", tmp_path, "--reward", "geneval", "--out", out)


def test_bench_prints_a_table_and_keeps_the_numbers(tmp_path, reward_file, capsys):
    out = tmp_path / "bench.json"
    words = ["bench", "geneval", f"{reward_file}:bright", "--images", "6", "--batch-size", "4", "--side", "64"]
    assert run(*words, "--out", out) == 0
    result = json.loads(out.read_text())
    assert {row["name"]: row["images"] for row in result["rewards"]} == {"geneval": 6, "bright": 6}
    assert all(row["images_per_s"] > 0 for row in result["rewards"]) and result["cores"] >= 1
    assert result["not_measured"] == {}
    assert "images/s" in capsys.readouterr().out


def test_bench_of_all_says_what_could_not_be_measured(tmp_path, monkeypatch, capsys):
    from blip3o_rl.scoring import registry

    monkeypatch.setattr(registry, "BUILT_IN", {**{"geneval": registry.BUILT_IN["geneval"]}, "far": "no_such_pkg:f"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the command sets it; undone after the test
    out = tmp_path / "bench.json"
    assert run("bench", "--images", "2", "--side", "64", "--out", out) == 0
    result = json.loads(out.read_text())
    assert [row["name"] for row in result["rewards"]] == ["geneval"]
    assert "no_such_pkg" in result["not_measured"]["far"]
    assert "far: not measured" in capsys.readouterr().out
    with pytest.raises(UserError, match="no_such_pkg"):
        run("bench", "far", "--out", out)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["geneval", "geneval.mode=strict"], {"geneval": {"mode": "strict"}}),
        (["a/b.py:f", "f.x=[1, 2]"], {"f": {"path": "a/b.py:f", "x": [1, 2]}}),
        (["pkg.mod:Thing"], {"Thing": {"name": "pkg.mod:Thing"}}),
        (["f.x=1", "b.py:f"], {"f": {"x": 1, "path": "b.py:f"}}),
        (["f.service.url=http://x:1", "f.service.retries=2"], {"f": {"service": {"url": "http://x:1", "retries": 2}}}),
    ],
)
def test_arguments_are_a_configuration(arguments, expected):
    assert reward_arguments.reward_config(arguments, "rewards check") == expected


@pytest.mark.parametrize(
    "arguments", [["my.py"], [":f"], ["a.py:f", "b.py:f"], ["f.x=[1"], ["f.x=1", "f.x.y=2"], ["a b"], [""]]
)
def test_bad_arguments_are_one_line(arguments):
    with pytest.raises(UserError, match="rewards check") as caught:
        reward_arguments.reward_config(arguments, "rewards check")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "null", " null"])
def test_bad_metadata_is_one_line(text):
    with pytest.raises(UserError, match="--metadata"):
        run("check", "geneval", "--metadata", text)


MARKUP = [
    "close [/b] me",
    "[bold red]not red[/]",
    ":smile: [link=http://x]y[/link]",
    "一只猫 [1]",
    "half \ud83d",
    "\x1b[31mred",
]


def test_any_prompt_and_name_is_shown_as_it_is(tmp_path, reward_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [{"image": f"[{row}].png", "prompt": prompt} for row, prompt in enumerate(MARKUP)]
    for line in lines:
        save(tmp_path / line["image"], 100, None)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "scores.jsonl"
    assert (
        run("score", tmp_path, "--prompts", tmp_path / "p.jsonl", "--reward", f"{reward_file}:bright", "--out", out)
        == 0
    )
    printed = capsys.readouterr().out
    for line in lines:
        shown = line["prompt"].replace("\ud83d", "\ufffd").replace("\x1b", "\N{SYMBOL FOR ESCAPE}")
        assert line["image"] in printed and shown in printed
    assert len(out.read_text().splitlines()) == len(MARKUP)


def test_a_terminal_without_chinese_letters_gets_escapes(tmp_path, reward_file):
    save(tmp_path / "a.png", 100, "一只猫")
    arguments = ["rewards", "score", tmp_path, "--reward", f"{reward_file}:bright", "--out", tmp_path / "s.jsonl"]
    command = [sys.executable, "-m", "blip3o_rl.cli.main", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "120"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert "\\u4e00\\u53ea\\u732b" in finished.stdout


@pytest.mark.parametrize("command", [["score", "{}", "--reward", "ocr"], ["bench", "ocr"]])
def test_a_folder_is_no_file_for_the_result(tmp_path, command):
    with pytest.raises(UserError, match="--out .*: is a folder; give the name of a file in it"):
        run(*(word.format(tmp_path) for word in command), "--out", tmp_path)


def test_scores_of_an_earlier_command_are_kept(tmp_path, reward_file, capsys):
    save(tmp_path / "a.png", 100, "p")
    out = tmp_path / "scores.jsonl"
    for scale in (1, 2):
        keys = ["--reward", f"{reward_file}:bright", "--reward", f"bright.scale={scale}"]
        assert run("score", tmp_path, *keys, "--out", out) == 0
    first, second = (json.loads(file.read_text())["score"] for file in (out, tmp_path / "scores-2.jsonl"))
    assert second == pytest.approx(2 * first)
    assert str(tmp_path / "scores-2.jsonl") in capsys.readouterr().out.replace("\n", "")


def test_the_printed_command_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "my goals; ls"
    assert run("new", "goal", "--folder", folder) == 0
    command = capsys.readouterr().out.split("try it: ")[1].split("&&")[0]
    assert shlex.split(command) == ["blip3o-rl", "rewards", "check", f"{folder}/goal.py:goal"]


def test_check_tries_a_line_of_a_prompt_file(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "def near(image, metadata):\n    return -abs(image.mean() - metadata['target'])\n"
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": "p", "target": 120}\n')
    assert run("check", f"{tmp_path / 'mine.py'}:near", "--prompts", tmp_path / "p.jsonl") == 0
    assert "-120" in capsys.readouterr().out
    assert run("check", f"{tmp_path / 'mine.py'}:near") == 1
