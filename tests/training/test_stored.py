"""A run is its own truth: what it was started with is stored so that it can be resumed from anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import blip3o_rl
from blip3o_rl.config.train import compose_recipe
from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import GENERATING, MINI, ModelFolder, resolve
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import export, stored


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A stored run in a folder whose path means something to Hydra, started with relative paths."""
    home = tmp_path / "projet (1) é=a,b #[x]"
    home.mkdir()
    monkeypatch.chdir(home)
    Path("prompts.jsonl").write_text('{"prompt": "a circle"}\n')
    Path("mine.py").write_text("def score(image): return 0.5\n")
    overrides = ["prompts.file=prompts.jsonl", "reward.rewards.mine.path=mine.py:score", "run.seed=7"]
    folder = RunFolder.create("shapes", path=home / "run")
    stored.store(compose_recipe("shapes", overrides), folder)
    return folder


def test_a_run_is_resumed_from_another_directory(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = stored.resumed(run, ["trainer.total_training_steps=9"])
    assert config.run.folder == str(run.path)
    assert config.prompts.file == str(run.path.parent / "prompts.jsonl")
    assert config.reward.rewards.mine.path == f"{run.path.parent / 'mine.py'}:score"
    assert (config.run.seed, config.trainer.total_training_steps) == (7, 9)


def test_what_travels_with_a_job_is_found_in_the_next_jobs_working_directory(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray unpacks it elsewhere each time; a file from elsewhere keeps its absolute path."""
    monkeypatch.setattr(stored.given_cluster, "in_job", lambda: True)
    elsewhere = tmp_path / "held_out.jsonl"
    elsewhere.write_text('{"prompt": "a square"}\n')
    folder = RunFolder.create("shapes", path=tmp_path / "job")
    words = ["prompts.file=prompts.jsonl", "reward.rewards.mine.path=mine.py:score", f"eval.prompts={elsewhere}"]
    shutil.copytree(resolve(MINI), "model")
    words.append("model.folder=model")
    stored.store(compose_recipe("shapes", words), folder)
    config = stored.resumed(folder, [])
    assert (config.prompts.file, config.reward.rewards.mine.path) == ("prompts.jsonl", "mine.py:score")
    assert config.eval.prompts == str(elsewhere)
    assert config.model.folder == export._base(folder.path) == "model"
    assert stored.changed_inputs(folder) == []
    Path("mine.py").write_text("def score(image): return 1.0\n")
    assert stored.changed_inputs(folder) == ["mine.py"]


def test_what_ships_with_the_package_is_stored_by_its_name(run: RunFolder) -> None:
    assert OmegaConf.load(run.config).model.folder == "mini"
    installed = Path(blip3o_rl.__file__).parent
    assert str(installed) not in run.config.read_text()


def test_a_moved_run_folder_knows_where_it_is(run: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder.open(run.path.rename(tmp_path / "moved"))
    assert stored.resumed(moved, []).run.folder == str(moved.path)


def test_files_that_have_changed_are_named(run: RunFolder) -> None:
    assert stored.changed_inputs(run) == []
    mine = run.path.parent / "mine.py"
    mine.write_text("def score(image): return 1.0\n")
    assert stored.changed_inputs(run) == [str(mine)]


def change(run: RunFolder, **groups: Any) -> None:
    config = OmegaConf.load(run.config)
    config.update(groups)
    run.config.write_text(OmegaConf.to_yaml(config))


def test_a_run_of_an_earlier_version_is_refused_in_one_line(run: RunFolder) -> None:
    change(run, guards={"window": 3})
    with pytest.raises(UserError, match=r"is of an earlier version \(guards is now monitors\); start a new run"):
        stored.resumed(run, [])


def test_a_broken_configuration_is_named_in_one_line(run: RunFolder) -> None:
    run.config.write_text("a: [1\n")
    with pytest.raises(UserError, match="config.yaml: while parsing a flow sequence"):
        stored.resumed(run, [])


def test_a_run_of_another_kind_is_refused(run: RunFolder) -> None:
    run.config.write_text("run: {}\ntrain: {}\n")
    with pytest.raises(UserError, match="is of no run of blip3o-rl train"):
        stored.resumed(run, [])


def test_a_run_keeps_to_the_copies_of_what_was_at_addresses(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its export, which starts from the model of the run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(resolve(MINI), tmp_path / "store" / "model")
    prompts = tmp_path / "store" / "prompts.jsonl"
    prompts.write_text('{"prompt": "a circle"}\n')
    words = [f"model.folder=file://{tmp_path}/store/model", f"prompts.file=file://{prompts}"]
    stored.store(compose_recipe("shapes", words), run)
    shutil.rmtree(tmp_path / "store")
    config = stored.resumed(run, [])
    assert read_prompts(config.prompts.file)[0].prompt == "a circle" and stored.changed_inputs(run) == []
    assert ModelFolder(export._base(run.path), *GENERATING).path == Path(config.model.folder)
    assert Path(config.model.folder).is_relative_to(tmp_path / "cache")
