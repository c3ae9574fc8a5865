"""A node that does not see the run's files is refused before anything starts; the logs of all nodes are kept."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import clusters
import pytest

from blip3o_rl.model.folder import MINI, resolve
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import nodes

REPOSITORY = Path(__file__).parents[2]


def test_logs_that_cannot_be_copied_leave_the_runs_own_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the disk has no room for the reason."""
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01000000"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nodes, "_copy_logs", full)
    nodes.keep_logs(folder, [])
    assert "No space left" in (folder.logs / "missing_logs.txt").read_text()
    monkeypatch.setattr(nodes, "write_text", full)
    nodes.keep_logs(folder, [])


@pytest.mark.long
@pytest.mark.skipif(not clusters.can_hide(), reason="a node cannot have folders of its own here")
def test_a_run_or_model_folder_that_a_node_does_not_see_is_refused_in_one_line(tmp_path: Path) -> None:
    """Two real nodes, one of which has another disk where the run folder or the model is."""
    hidden, shared = tmp_path / "local", tmp_path / "shared"
    hidden.mkdir()
    model = shutil.copytree(resolve(MINI), hidden / "model")
    with clusters.head("--num-gpus=1") as cluster, clusters.node(cluster, [hidden]):
        for target, words, key in (
            (hidden / "run", (), "run.folder"),
            (shared / "run", (f"model.folder={model}",), "model.folder"),
        ):
            done = subprocess.run(
                [str(clusters.BIN / "blip3o-rl"), "train", "recipes/shapes", f"run.folder={target}", *words],
                cwd=REPOSITORY,
                env=cluster.environment | {"RAY_ADDRESS": cluster.address},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 2, done.stdout + done.stderr
            (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
            assert error.startswith(f"error: {key}: node ") and "file system that all nodes share" in error
            assert not (target / "config.yaml").exists() and not (target / "eval_before.json").exists()
            assert not (target / ".probe").exists()
            RunFolder.create("shapes", path=target)  # the folder can be used again
