"""A node that does not see the run's files is refused before anything starts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import clusters
import pytest

from blip3o_rl.model.folder import MINI, resolve
from blip3o_rl.report.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[2]


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
