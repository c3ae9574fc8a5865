"""What the launcher sees while verl trains: the end, a failure, that somebody whom verl waits for is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.exceptions import RayActorError, RayError

from blip3o_rl.errors import UserError
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import waiting

LOOP, QUEUE, OTHER = "agent_loop_worker_0_1a2b3c4d", "TransferQueueController", "WorkerDict_0:0"


class Ray:
    """Answers for `ray`: what `wait` finds ready and which actors live, call by call; the last answer stays."""

    def __init__(self, ready: list[bool], actors: list[set[str]], result: Any = None):
        self.ready, self.actors, self.result = ready, actors, result

    def next(self, answers: list[Any]) -> Any:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def wait(self, done: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return (done, []) if self.next(self.ready) else ([], done)

    def get(self, what: Any) -> Any:
        if what == "done":
            if isinstance(self.result, Exception):
                raise self.result
            return None
        return None, []


@pytest.fixture
def wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(ray: Ray, shown: Any = None) -> None:
        for name in ("wait", "get"):
            monkeypatch.setattr(f"ray.{name}", getattr(ray, name))
        monkeypatch.setattr("ray.util.list_named_actors", lambda: list(ray.next(ray.actors)))
        folder = RunFolder.create("shapes", path=tmp_path / "run")
        waiting.wait("done", MagicMock(), None, None, folder, shown or MagicMock())

    return call


def test_an_agent_loop_or_a_queue_that_is_gone_ends_the_run_and_others_do_not(wait: Any) -> None:
    for lost in (LOOP, QUEUE):
        with pytest.raises(UserError, match=rf"^{lost} died; logs in .*blip3o-rl train --resume .*/run$"):
            wait(Ray([False], [set(), {LOOP, QUEUE, OTHER}, {LOOP, QUEUE} - {lost}]))
    wait(Ray([False, False, True], [{LOOP, QUEUE, OTHER}, {LOOP, QUEUE}]))


def test_what_is_being_started_is_shown_once_and_nothing_after_the_first_step(wait: Any) -> None:
    shown = MagicMock(step=0)
    shown.phase.side_effect = lambda text: setattr(shown, "step", int("first step" in text))
    engine = {OTHER, "blip3o_server_0_0"}
    wait(Ray([False] * 6 + [True], [set(), {OTHER}, {OTHER}, engine, {*engine, LOOP}]), shown)
    assert [call.args[0] for call in shown.phase.call_args_list] == [
        "loading policy and reference", "starting vLLM", "starting agent loops and the first step", "",
    ]  # fmt: skip


def test_a_trainer_that_ends_takes_its_actors_along(wait: Any) -> None:
    """They are gone before its own end is seen."""
    wait(Ray([False, False, True], [{LOOP, QUEUE}, set()]))


def test_what_goes_wrong_while_a_run_saves_after_sigterm_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record, shown = RunFolder.create("shapes", path=tmp_path / "run"), MagicMock(), MagicMock()

    def save(ray: Ray) -> list[str]:
        for name in ("wait", "get"):
            monkeypatch.setattr(f"ray.{name}", getattr(ray, name))
        shown.note.reset_mock()
        waiting.save_and_end("done", record, 90.0, folder, shown)
        return [call.args[0] for call in shown.note.call_args_list]

    begins = "SIGTERM: saving after this step, which may take 90 s (run.grace_s)"
    assert save(Ray([True], [set()])) == [begins]
    assert save(Ray([False], [set()])) == [begins, "nothing was saved within 90 s; raise run.grace_s"]
    with pytest.raises(UserError, match=r"^the run was ended: checkpoints: the disk is full; logs in .* --resume "):
        save(Ray([True], [set()], UserError("checkpoints: the disk is full")))
    assert record.end_after_step.remote.call_count == 3


@pytest.mark.parametrize("error", [RayError("of a task\n  in a file\nValueError: too long"), RayActorError()])
def test_a_trainer_that_fails_is_one_line_with_the_way_on(error: Exception, wait: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the trainer stopped: .*; see trainer_error.txt; .* --resume ") as found:
        wait(Ray([False, True], [{LOOP}], error))
    assert "\n" not in str(found.value)
    assert (tmp_path / "run" / "logs" / "trainer_error.txt").read_text() == str(error)


def test_a_node_that_is_lost_is_named(wait: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def node(address: str, alive: bool) -> dict[str, Any]:
        return {"NodeManagerAddress": address, "Alive": alive}

    answers = [[node("10.0.0.1", True), node("10.0.0.2", alive)] for alive in (True, False)]
    monkeypatch.setattr("ray.nodes", lambda: answers.pop(0))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match=rf"^the cluster has lost its node 10.0.0.2: {LOOP} died; .* --resume"):
        wait(Ray([False], [{LOOP}, set()]))
