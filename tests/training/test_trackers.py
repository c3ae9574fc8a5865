"""Trackers: what is missing is said before a run, and a real one gets numbers and image grids."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from blip3o_rl.errors import UserError
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import trackers

RUN = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
import verl
from verl.utils.tracking import Tracking
from blip3o_rl.report.run_folder import RunFolder

folder = RunFolder(sys.argv[1])
tracking = Tracking("blip3o-rl", "shapes", ["file", "wandb"], config={"run": {"folder": sys.argv[1]}, "trainer": {}})
for step in (5, 6, 7):
    if step != 6:
        Image.fromarray(np.full((32, 48, 3), 20 * step, np.uint8)).save(folder.grid(step))
    tracking.log({"critic/score/mean": step / 10}, step=step)
tracking.finish()
"""


def test_wandb_gets_the_numbers_and_each_new_grid_once(tmp_path):
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder.grid(1))  # of before a resume
    environment = trackers.environment(["wandb"], folder) | {"VERL_FILE_LOGGER_PATH": str(tmp_path / "numbers.jsonl")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder.path)],
        env={**os.environ, **environment, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "numbers.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 6, 7]
    sent = sorted(folder.path.glob("wandb/offline-run-*/files/media/images/rollouts_*.png"))
    assert [np.asarray(Image.open(file)).max() for file in sent] == [100, 140]


def test_an_image_that_is_not_taken_ends_no_run(tmp_path, monkeypatch, caplog):
    def fail(*arguments):
        raise ConnectionError("no route")

    monkeypatch.setitem(trackers.SENDERS, "mlflow", fail)
    # Libraries that other tests import configure logging.
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    log = logging.getLogger(trackers.__name__)
    for name, value in (("disabled", False), ("level", logging.WARNING), ("handlers", [caplog.handler])):
        monkeypatch.setattr(log, name, value)
    log._cache.clear()
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    sender = trackers.GridSender(folder.path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder.grid(2))
    sender.send(["file", "mlflow"], 2)
    assert "mlflow did not take" in caplog.text and "no route" in caplog.text


def test_wandb_without_a_key_is_refused_before_the_run(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    trackers.check(["file", "tensorboard"])
    with pytest.raises(UserError, match=r"wandb has no key for api\.wandb\.ai; wandb login, or set WANDB_MODE=offline"):
        trackers.check(["file", "wandb"])
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    trackers.check(["file", "wandb"])
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match=r"no key for wandb\.example\.org"):
        trackers.check(["file", "wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check(["file", "wandb"])


def test_trackers_keep_their_files_in_the_run_folder_unless_the_user_says_where(tmp_path, monkeypatch):
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    assert trackers.environment(["file", "tensorboard"], folder) == {}
    found = trackers.environment(["file", "wandb", "mlflow"], folder)
    monkeypatch.setenv("CLEARML_API_HOST", "http://clearml:8008")
    assert trackers.environment(["file", "clearml"], folder)["CLEARML_API_HOST"] == "http://clearml:8008"
    assert found["WANDB_DIR"] == str(folder.path) and found["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
