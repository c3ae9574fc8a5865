"""Only a checkpoint that was written to the end is ever used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from blip3o_rl.errors import UserError
from blip3o_rl.report import checkpoints
from blip3o_rl.training.checkpoints import MarkComplete
from blip3o_rl.training.export import export


def make(checkpoints_folder: Path, step: int, complete: bool) -> Path:
    folder = checkpoints_folder / f"global_step_{step}"
    (folder / "actor").mkdir(parents=True)
    if complete:
        checkpoints.mark_complete(folder, step)
    return folder


def test_the_newest_complete_one_is_taken_by_number(tmp_path: Path) -> None:
    make(tmp_path, 5, True)
    newest = make(tmp_path, 10, True)
    make(tmp_path, 15, False)
    assert checkpoints.latest(tmp_path) == newest


def test_a_folder_whose_weights_verl_deleted_does_not_count(tmp_path: Path) -> None:
    kept = make(tmp_path, 5, True)
    gone = make(tmp_path, 10, True)
    (gone / "actor").rmdir()
    assert checkpoints.latest(tmp_path) == kept


@pytest.mark.parametrize("content", [b"short", None])
def test_a_newest_one_that_lost_something_falls_back_to_the_one_before(tmp_path: Path, content: bytes | None) -> None:
    kept, newest = make(tmp_path, 5, True), make(tmp_path, 10, False)
    weights = newest / "actor" / "model.pt"
    weights.write_bytes(b"weights")
    checkpoints.mark_complete(newest, 10)
    assert checkpoints.latest(tmp_path) == newest
    weights.unlink() if content is None else weights.write_bytes(content)
    assert checkpoints.latest(tmp_path) == kept
    assert checkpoints.damage(newest) == f"actor/model.pt has {len(content or b'')} bytes, not 7"
    with pytest.raises(UserError, match="no complete checkpoint, actor/model.pt has"):
        export(newest, tmp_path / "out")


def test_a_mark_of_an_earlier_version_counts(tmp_path: Path) -> None:
    (make(tmp_path, 5, False) / checkpoints.MARK).write_text('{"step": 5}\n')
    assert checkpoints.latest_step(tmp_path) == 5


def test_a_marker_being_written_does_not_count(tmp_path: Path) -> None:
    folder = make(tmp_path, 5, False)
    (folder / ("." + checkpoints.MARK + ".partial")).write_text("{")
    assert checkpoints.latest(tmp_path) is None


def test_a_half_written_checkpoint_is_not_exported(tmp_path: Path) -> None:
    make(tmp_path / "run" / "checkpoints", 5, False)
    for given in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "global_step_5"):
        with pytest.raises(UserError, match="no complete checkpoint"):
            export(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("state", "complete"), [('{"global_step": 4}', True), ('{"glob', False), (None, False)])
def test_a_trainers_checkpoint_counts_when_its_state_is_whole(
    tmp_path: Path, state: str | None, complete: bool
) -> None:
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-2" / checkpoints.STATE).write_text('{"global_step": 2}')
    if state is not None:
        (tmp_path / "checkpoint-4" / checkpoints.STATE).write_text(state)
    assert checkpoints.latest_step(tmp_path) == (4 if complete else 2)
    assert [step for step, _ in checkpoints.all_of(tmp_path)] == [2, 4, 10]


def test_verls_hook_marks_what_it_saved(tmp_path: Path) -> None:
    folder = make(tmp_path, 7, False)
    MarkComplete().on_save(trainer=None, global_step=7, checkpoint_dir=str(folder))
    assert checkpoints.latest(tmp_path) == folder


def save(checkpoints_folder: Path, step: int, weights: str = "weights") -> Path:
    folder = make(checkpoints_folder, step, False)
    (folder / "actor" / "model.pt").write_text(weights)
    checkpoints.mark_complete(folder, step)
    return folder


def test_the_best_one_stays_when_verl_has_removed_its_step(tmp_path: Path) -> None:
    for step, score in ((1, 0.2), (2, 0.6), (3, 0.6), (4, 0.5)):
        checkpoints.keep_if_best(save(tmp_path, step, f"of {step}"), score, {"suite": "shapes"})
    shutil.rmtree(tmp_path / "global_step_2")
    best = checkpoints.best(tmp_path)
    assert best == tmp_path / "best" / "global_step_2" and checkpoints.best_score(best) == 0.6
    assert (best / "actor" / "model.pt").read_text() == "of 2"
    assert checkpoints.require_complete(tmp_path / "best") == best
    assert checkpoints.latest_step(tmp_path) == 4, "a run is resumed from its newest one"
    assert checkpoints.run_of(best) == checkpoints.run_of(tmp_path / "global_step_4") == tmp_path.parent


def test_scores_of_other_prompts_or_rewards_are_not_compared(tmp_path: Path) -> None:
    checkpoints.keep_if_best(save(tmp_path, 1), 0.9, {"suite": "shapes"})
    checkpoints.keep_if_best(save(tmp_path, 2), 0.3, {"suite": "words"})
    assert checkpoints.best(tmp_path) == tmp_path / "best" / "global_step_2"
    assert not (tmp_path / "best" / "global_step_1").exists()


def test_a_step_that_is_made_again_leaves_the_best_one_as_it_was(tmp_path: Path) -> None:
    damaged = save(tmp_path, 2, "the best")
    checkpoints.keep_if_best(damaged, 0.6, {})
    checkpoints.discard(damaged)
    (damaged / "actor" / "model.pt").write_text("another")
    best = checkpoints.best(tmp_path)
    assert best is not None and (best / "actor" / "model.pt").read_text() == "the best"


def test_a_kill_while_the_best_one_is_replaced_leaves_a_best_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.keep_if_best(save(tmp_path, 1), 0.2, {})
    newest = save(tmp_path, 2)
    killed = [(shutil, "copytree"), (checkpoints, "write_text"), (Path, "rename"), (shutil, "rmtree")]
    for owner, name in killed:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            original = getattr(owner, name)

            def until_here(*given: Any, original: Any = original, **options: Any) -> None:
                if "global_step_1" in str(given[0]) or original is not shutil.rmtree:
                    raise KeyboardInterrupt
                original(*given, **options)

            patch.setattr(owner, name, until_here)
            checkpoints.keep_if_best(newest, 0.6, {})
        best = checkpoints.best(tmp_path)
        assert best is not None and checkpoints.best_score(best) in (0.2, 0.6)
    checkpoints.keep_if_best(newest, 0.6, {})
    assert checkpoints.best(tmp_path) == tmp_path / "best" / "global_step_2"


def test_a_file_system_without_hard_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    newest = save(tmp_path, 2)
    checkpoints.keep_if_best(newest, 0.6, {})
    best = checkpoints.best(tmp_path)
    assert best is not None and not (best / "actor" / "model.pt").samefile(newest / "actor" / "model.pt")


def test_what_a_resumed_run_finds_is_removed_with_the_rest(tmp_path: Path) -> None:
    """verl knows only the checkpoints that the same process has saved."""
    make(tmp_path, 1, False)
    for step in (2, 3, 4):
        save(tmp_path, step)
    make(tmp_path, 5, False)
    checkpoints.keep_newest(tmp_path, 2)
    assert [step for step, _ in checkpoints.all_of(tmp_path)] == [3, 4, 5]
    checkpoints.keep_newest(tmp_path / "nothing", 2)
