"""`convert` and `export` as a user meets them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from diffusers.utils.logging import set_verbosity_warning

from blip3o_rl.cli import convert as command
from blip3o_rl.cli import main as cli
from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.model import folder as model_folder
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that began at the packaged model and wrote one checkpoint."""
    folder = RunFolder.create("shelves", path=tmp_path / "run")
    write_text(folder.config, "model: {folder: mini}\nreward: {rewards: {geneval: {weight: 0.7}, mine: {}}}\n")
    folder.append_metrics(3, {"critic/score/mean": 0.5, "actor/kl_loss": 0.01})
    checkpoint = folder.checkpoints / "global_step_3"
    model_folder.ModelFolder("mini").load_policy().save_pretrained(checkpoint / "actor" / "huggingface")
    checkpoints.mark_complete(checkpoint, 3)
    return folder


@pytest.mark.parametrize("layout", ["folder", "upstream", "diffusers", "policy"])
def test_a_run_is_exported_in_every_format_with_its_card(run: RunFolder, tmp_path: Path, layout: str, capsys) -> None:
    out = tmp_path / "out" / "exported"
    assert cli.run(["export", str(run.path), str(out), "--format", layout]) == 0
    assert capsys.readouterr().out.replace("\n", "").endswith(str(out))
    text = (out / "README.md").read_text()
    assert "Run `run`: 3 steps" in text and "geneval (weight 0.7), mine (weight 1)" in text
    assert list(out.rglob("*.safetensors"))
    assert [path.name for path in out.parent.iterdir()] == ["exported"], "nothing temporary is left"


def test_an_upstream_export_of_a_run_converts_again(run: RunFolder, tmp_path: Path, capsys) -> None:
    assert (
        cli.run(["export", str(run.checkpoints / "global_step_3"), str(tmp_path / "out"), "--format", "upstream"]) == 0
    )
    command.convert(str(tmp_path / "out"), tmp_path / "model", dry_run=True)
    assert "dry run: nothing written" in capsys.readouterr().out
    assert not (tmp_path / "model").exists()
    command.convert(str(tmp_path / "out"), tmp_path / "model")
    assert "policy: 46 tensors" in capsys.readouterr().out
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["converted"]["source"] == "out"


@pytest.mark.parametrize(
    "base", ["/old/place/blip3o_rl/mini/weights", "/old/place/blip3o_rl/mini/edit_weights", "mini"]
)
def test_a_run_of_the_packaged_model_is_exported_after_the_installation_moved(
    run: RunFolder, tmp_path: Path, base: str
) -> None:
    write_text(run.config, run.config.read_text().replace("folder: mini", f"folder: {base}"))
    assert cli.run(["export", str(run.path), str(tmp_path / "out")]) == 0
    assert model_folder.ModelFolder(tmp_path / "out", "policy", "renderer")


def test_another_base_that_moved_is_given_with_an_option(run: RunFolder, tmp_path: Path, capsys) -> None:
    write_text(run.config, run.config.read_text().replace("folder: mini", "folder: /old/place/models/mine"))
    out = tmp_path / "out"
    assert cli.run(["export", str(run.path), str(out)]) == 2
    assert "/old/place/models/mine: the model that the run started from is not there" in capsys.readouterr().err
    assert cli.run(["export", str(run.path), str(out), "--base", "mini", "--format", "policy"]) == 0
    assert (out / "config.json").is_file()


def test_a_base_of_other_sizes_is_refused(run: RunFolder, tmp_path: Path, upstream, capsys) -> None:
    command.convert(str(upstream().folder), tmp_path / "other")
    assert cli.run(["export", str(run.path), str(tmp_path / "out"), "--base", str(tmp_path / "other")]) == 2
    assert "the run's model has" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_card_of_supervised_fine_tuning_says_so(run: RunFolder, tmp_path: Path, capsys) -> None:
    write_text(run.config, "model: {folder: mini}\ntrain: {trainable: caption}\n")
    assert cli.run(["export", str(run.path), str(run.path / "model")]) == 0
    assert cli.run(["export", str(run.path / "model"), str(tmp_path / "out"), "--format", "upstream"]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "3 steps of supervised fine-tuning; the policy and the renderer (caption) were trained" in text
    assert "reinforcement" not in text.lower()
    step = run.checkpoints / "checkpoint-4"
    step.mkdir()
    (step / checkpoints.STATE).write_text('{"global_step": 4}')
    capsys.readouterr()
    assert cli.run(["export", str(run.path), str(tmp_path / "again")]) == 2
    assert "blip3o-rl sft writes its model folder itself" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["folder", "upstream", "diffusers", "policy"])
def test_an_export_never_overwrites(run: RunFolder, tmp_path: Path, layout: str, capsys) -> None:
    for name in ("out", "free.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    for target, reason in (("out", "exists and is not empty"), ("free", "free.partial: is in the way")):
        assert cli.run(["export", str(run.path), str(tmp_path / target), "--format", layout]) == 2
        assert reason in capsys.readouterr().err
    for name in ("out", "free.partial"):
        assert [file.name for file in (tmp_path / name).iterdir()] == ["mine.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out", "free.partial"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mini", "OUT"], "is a model folder already; choose --format"),
        (["mini", "OUT", "--format", "gguf"], "--format gguf: choose one of folder, upstream, diffusers, policy"),
        (["mini", "OUT", "--format", "upstrem"], "did you mean 'upstream'"),
        (["mini", "OUT", "--format", "official"], "--format official: is called upstream now"),
        (["mini", "OUT", "--format", "policy", "--base", "mini"], "is for runs"),
        (["EMPTY", "OUT", "--format", "upstream"], "no complete checkpoint here"),
        (["mini", "EMPTY/..", "--format", "policy"], "exists and is not empty"),
    ],
)
def test_bad_requests_are_one_line(tmp_path: Path, arguments: list[str], words: str, capsys) -> None:
    (tmp_path / "empty").mkdir()
    places = {"OUT": tmp_path / "out", "EMPTY": tmp_path / "empty", "EMPTY/..": tmp_path}
    assert cli.run(["export", *(str(places.get(word, word)) for word in arguments)]) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed and words in printed
    assert not (tmp_path / "out").exists()


def test_convert_refuses_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder, and no hub id"):
        command.convert("/nowhere/at/all", tmp_path / "model")


def test_a_config_of_another_module_is_one_line(tmp_path: Path, upstream, capsys, caplog) -> None:
    folder, logger = upstream().folder, logging.getLogger("diffusers")
    set_verbosity_warning()
    logger.addHandler(caplog.handler)
    config = ["--vae-config", str(folder / "sana_config.json")]
    assert cli.run(["convert", str(folder), str(tmp_path / "model"), *config]) == 2
    logger.removeHandler(caplog.handler)
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed and "missing: model.sana_vae." in printed and not caplog.records
