"""The command line: one clear line for what the user can fix, the right exit code, quick to answer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest

from blip3o_rl import terminal
from blip3o_rl.cli import main as cli
from blip3o_rl.cli.runs import with_files
from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.report.run_folder import RunFolder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_overrides_is_read_like_every_text(tmp_path, encoding):
    (tmp_path / "o.txt").write_bytes("run.seed=7\r\n# why\r\n\r\nprompts.file=Stra\u00dfe.jsonl\r\n".encode(encoding))
    assert with_files(["a=1", f"@{tmp_path}/o.txt"]) == ["a=1", "run.seed=7", "prompts.file=Stra\u00dfe.jsonl"]
    (tmp_path / "o.txt").write_bytes("run.name=Stra\u00dfe\n".encode("cp1252"))
    with pytest.raises(UserError, match="o.txt:1: is not UTF-8 text"):
        with_files([f"@{tmp_path}/o.txt"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "no recipe given"),
        (["train", "trainer.total_training_steps=3"], "no recipe given"),
        (["train", "recipes/shapez"], "did you mean 'shapes'?"),
        (["train", "recipes/shapes", "trainer.total_training_step=3"], "did you mean 'trainer.total_training_steps'?"),
        (["train", "--resume", "/nowhere"], "run folder /nowhere: no such folder"),
        (["submit", "recipes/shapez"], "recipes/shapez"),
        (["submit"], "submit: no recipe given"),
        (["submit", "--resume", "/nowhere"], "run folder /nowhere: no such folder"),
        (["submit", "recipes/shapes", "--env", "NOT_SET_HERE"], "--env NOT_SET_HERE: is not set here"),
        (["submit", "recipes/shapes", "--runtime-env", "/nowhere.yaml"], "/nowhere.yaml"),
        (["jobs", "list", "--address", "http://127.0.0.1:1"], "no Ray cluster answers"),
        (["submit", "recipes/shapes", "--address", "http://127.0.0.1:1"], "no Ray cluster answers"),
        (["evl"], "No such command 'evl'"),
        (["report", "--port", "0"], "--host and --port: are of --serve; give it as well, or leave them out"),
        (["eval", "faces"], "there is no such source of prompts; known: shapes"),
        (["eval", "shapes", "--scale", "7"], "--scale"),
        (["eval", "shapes", "--model", "/nowhere"], "/nowhere: no such folder"),
        (["generate"], "Missing argument"),
        (["generate", "a photo", "--model", "/nowhere"], "/nowhere: no such folder"),
        (["generate", "a photo", "--sede", "1"], "--sede"),
        (["export", "/nowhere", "out"], "/nowhere: no such folder"),
        (["sft"], "sft: no recipe given"),
        (["sft", "recipes/sft", "train.stepz=3"], "did you mean 'steps'?"),
        (["train", "recipes/sft"], "is no recipe for blip3o-rl train"),
        (["report", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, capsys):
    assert cli.run(arguments) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ") and "\n" not in printed
    assert words in printed


def test_other_exceptions_keep_their_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(RunFolder, "open", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.run(["report", str(tmp_path)])


@pytest.mark.parametrize(("reason", "code"), [(KeyboardInterrupt(), 130), (terminal.Terminated(), 143)])
@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_run_says_how_to_go_on_once_it_has_begun(begun, reason, code, monkeypatch, capsys):
    def interrupt(recipe, overrides, output):
        command = ("blip3o-rl", "train", "--resume", "runs/my run")
        with terminal.goes_on_with(*command) if begun else nullcontext():
            raise reason

    _fake_launch(monkeypatch, Path("."), interrupt)
    assert cli.run(["train", "recipes/shapes"]) == code
    expected = "interrupted; go on with: blip3o-rl train --resume 'runs/my run'\n" if begun else "interrupted\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_one_line(number, monkeypatch, capsys):
    def fail(path):
        raise OSError(number, os.strerror(number), "/a folder/report.html")

    monkeypatch.setattr(RunFolder, "open", fail)
    assert cli.run(["report", "x"]) == 2
    assert capsys.readouterr().err.startswith(f"error: /a folder/report.html: {os.strerror(number)}; write to another")


def test_sigterm_becomes_an_interruption():
    terminal.catch_sigterm()
    with pytest.raises(terminal.Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert terminal.exit_code(KeyboardInterrupt()) == 143, "what Ray makes of it"
    assert terminal.exit_code(KeyboardInterrupt()) == 130
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_help_imports_nothing_heavy():
    heavy = ("torch", "ray", "verl", "vllm", "PIL", "numpy", "hydra", "pydantic", "transformers")
    code = (
        "import sys; from blip3o_rl.cli import main; code = main.run(['--help']);"
        f"print([m for m in {heavy} if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    commands = "doctor generate tokenize reconstruct train submit eval convert export report mini rewards sft bench"
    assert all(command in done.stdout for command in commands.split())


UNNEEDED = (
    "torch",
    "ray",
    "verl",
    "vllm",
    "transformers",
    "diffusers",
    "fastapi",
    "httpx",
    "pyarrow",
    "cv2",
    "matplotlib",
)
"""Modules that no message about bad input may wait for."""
BAD = [
    ["train", "recipes/shapes", "render.steps=0"],
    ["train", "recipes/shapes", "model.folder=/nowhere"],
    ["train", "--resume", "/nowhere"],
    ["sft", "recipes/sft", "train.stepz=3"],
    ["generate", "a photo", "--model", "/nowhere"],
    ["tune", "render", "recipes/shapez"],
    ["bench", "step", "recipes/shapes", "render.steps=0"],
    ["bench", "render", "--model", "/nowhere"],
    ["bench", "logprob", "--out", "/tmp"],
    ["tokenize", "/nowhere.png"],
    ["rewards", "check", "no_such_reward"],
]


def test_bad_input_is_refused_without_the_libraries_that_train():
    code = (
        f"import sys; from blip3o_rl.cli import main; assert [main.run(words) for words in {BAD}] == [2] * {len(BAD)};"
        f"print([m for m in {UNNEEDED} if m in sys.modules])"
    )
    environment = {**os.environ, "VERL_PLATFORM": "cpu"}  # a GPU would be looked for with torch
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_report_writes_the_page_of_a_run(tmp_path, capsys):
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    write_text(folder.config, "run: {}\n")
    folder.append_metrics(1, {"critic/score/mean": 0.5, "timing_s/step": 3.0})
    assert cli.run(["report", str(folder.path)]) == 0
    assert str(folder.page) in capsys.readouterr().out.replace("\n", "")
    assert folder.page.stat().st_size > 1000


def test_rewards_list_names_the_built_in_ones(capsys):
    assert cli.run(["rewards", "list"]) == 0
    assert "geneval" in capsys.readouterr().out


def test_train_hands_recipe_and_overrides_to_launch_and_sums_up(tmp_path, monkeypatch, capsys):
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    write_text(folder.config, "run: {}\n")
    calls = _fake_launch(monkeypatch, folder.path)
    assert cli.run(["train", "recipes/shapes", "run.seed=3", "+a.b=1", "~c"]) == 0
    assert calls == [("recipes/shapes", ["run.seed=3", "+a.b=1", "~c"])]
    assert folder.summary_json.is_file() and folder.page.is_file()
    assert "report:" in capsys.readouterr().out


def test_resume_hands_the_folder_and_overrides_over(tmp_path, monkeypatch):
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    write_text(folder.config, "run: {}\n")
    calls = _fake_launch(monkeypatch, folder.path)
    assert cli.run(["train", "--resume", str(folder.path), "trainer.total_training_steps=9"]) == 0
    assert calls == [(folder.path, ["trainer.total_training_steps=9"])]


def _fake_launch(monkeypatch, folder: Path, instead=None) -> list:
    calls: list = []

    def launch(what, overrides, output):
        calls.append((what, overrides))
        return folder

    module = types.ModuleType("blip3o_rl.training.launch")
    module.launch = module.resume = instead or launch
    monkeypatch.setitem(sys.modules, "blip3o_rl.training.launch", module)
    monkeypatch.setattr("blip3o_rl.training.launch", module, raising=False)
    return calls


def test_user_error_text_is_printed_on_one_line(monkeypatch, capsys):
    def refuse(path):
        raise UserError("several\nlines [bold]and markup[/]")

    monkeypatch.setattr(RunFolder, "open", refuse)
    assert cli.run(["report", "x"]) == 2
    assert capsys.readouterr().err == "error: several lines [bold]and markup[/]\n"
