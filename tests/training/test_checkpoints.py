"""Only a checkpoint that was written to the end is ever used."""

from __future__ import annotations

from pathlib import Path

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
