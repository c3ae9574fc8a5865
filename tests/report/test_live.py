"""The page of a run that still goes on, over HTTP."""

from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from blip3o_rl.report import page
from blip3o_rl.report.live import create_app
from blip3o_rl.report.run_folder import RunFolder


def test_the_page_follows_the_run_and_is_made_only_when_something_is_new(tmp_path: Path) -> None:
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    made = []

    def write() -> Path:
        made.append(page.write(folder))
        return made[-1]

    client = TestClient(create_app([folder], write))
    first = client.get("/")
    assert "has made no step yet" in first.text and int(first.headers["refresh"]) > 0
    assert client.get("/").text == first.text and len(made) == 1
    folder.append_metrics(1, {"critic/score/mean": 0.5})
    assert "has made no step yet" not in client.get("/").text and len(made) == 2
    assert client.get("/config.yaml").status_code == 404, "nothing else of the folder is served"
