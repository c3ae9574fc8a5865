"""Runs as jobs: what travels with them, what is refused here, how they are shown and stopped."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import clusters
import pytest
import ray
import yaml

from blip3o_rl.cli import main as cli
from blip3o_rl.config.train import compose_recipe
from blip3o_rl.errors import UserError
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import jobs, stored, submit

ROOT = Path(__file__).parents[2]


class Client:
    """Takes the place of Ray's, and keeps what was sent."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def submit_job(self, **what: Any) -> str:
        self.sent = what
        return "job"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    found = Client()
    monkeypatch.setattr(jobs, "client", lambda address: found)
    return found


def test_a_submitted_run_gets_an_absolute_folder_unless_it_names_one(tmp_path: Path) -> None:
    words, _ = submit.new_run("recipes/shapes", ["reward.rewards.mine.path=my file.py:f"], tmp_path)
    assert words[:4] == ["blip3o-rl", "train", "recipes/shapes", "reward.rewards.mine.path=my file.py:f"]
    assert words[4].startswith(f"run.folder={tmp_path}/shapes-")
    words, _ = submit.new_run("recipes/shapes", ["run.folder=/x"], tmp_path)
    assert words[3:] == ["run.folder=/x"]


def test_a_run_is_continued_as_a_job(tmp_path: Path, client: Client) -> None:
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    stored.store(compose_recipe("shapes", ["run.grace_s=90"]), folder)
    words, config = submit.resumed_run(folder.path, ["trainer.total_training_steps=9"])
    assert submit.submit(words, config, None, follow=False) == 0
    assert client.sent["entrypoint"] == f"blip3o-rl train --resume {folder.path} trainer.total_training_steps=9"
    assert client.sent["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "150"}


def test_keys_variables_and_the_runtime_env_travel(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("image_uri: registry.example/blip3o\nenv_vars: {A: theirs, B: theirs}\n")
    for name, value in (("JUDGE_KEY", "secret"), ("UNRELATED", "x"), ("MINE", "here")):
        monkeypatch.setenv(name, value)
    judge = ["reward.rewards.judge.model=m", "reward.rewards.judge.api_key_env=JUDGE_KEY"]
    words, config = submit.new_run("shapes", judge, tmp_path)
    assert submit.submit(words, config, None, False, ["MINE", "A=a=b"], file) == 0
    sent = client.sent["runtime_env"]
    assert sent["env_vars"] == {
        "JUDGE_KEY": "secret", "MINE": "here", "A": "a=b", "B": "theirs", "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }  # fmt: skip
    assert (sent["image_uri"], sent["working_dir"]) == ("registry.example/blip3o", ".")


def test_fields_of_the_runtime_env_without_a_value_are_left_out(tmp_path: Path, client: Client) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("working_dir:\nexcludes:\nenv_vars:\n")
    words, config = submit.new_run("shapes", [], tmp_path)
    assert submit.submit(words, config, None, False, ["A=b"], file) == 0
    sent = client.sent["runtime_env"]
    assert (sent["working_dir"], sent["excludes"], sent["env_vars"]["A"]) == (".", submit.EXCLUDES, "b")


def test_a_working_directory_that_is_too_large_is_refused_by_what_is_large(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models, runs, environments, and what .gitignore and .rayignore name, do not count."""
    monkeypatch.chdir(tmp_path)
    for name in ("models/m", "runs/r", "a/.venv/v", "ignored/i", "data/prompts.jsonl", "mine.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**20)
    (tmp_path / ".gitignore").write_text("ignored/\n")
    words, config = submit.new_run("shapes", [], tmp_path)
    monkeypatch.setattr(submit, "MAX_MIB", 2.5)
    assert submit.submit(words, config, None, follow=False) == 0
    monkeypatch.setattr(submit, "MAX_MIB", 1.5)
    with pytest.raises(UserError, match=r"2 MiB would travel with the job \((data|mine.py) 1 MiB, ") as error:
        submit.submit(words, config, None, follow=False)
    assert ".rayignore" in str(error.value)


@pytest.mark.parametrize(
    ("status", "driver", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 1)]
)
def test_submit_exits_as_the_job_did(status: str, driver: int | None, expected: int) -> None:
    details = types.SimpleNamespace(status=status, driver_exit_code=driver, message="why")
    assert jobs.exit_code(details) == expected


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Knows one running job and does not send its output; `status` is its answer to a question about the job."""

    status = 200
    pages: ClassVar[dict[str, Any]] = {
        "/api/version": {"version": "4", "ray_version": ray.__version__, "ray_commit": ""},
        "/api/jobs/job": {"type": "SUBMISSION", "submission_id": "job", "status": "RUNNING", "entrypoint": "sh"},
    }

    def do_GET(self) -> None:
        if self.path.endswith("/logs/tail"):
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        page = self.pages.get(self.path)
        self.send_response(404 if page is None else 200 if "ray_version" in page else self.status)
        self.end_headers()
        self.wfile.write(json.dumps(page).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_lost_connection_to_a_job_is_one_line_with_the_way_back(
    dashboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = jobs.client(dashboard)
    with pytest.raises(UserError, match="^other: the cluster has no such job; see blip3o-rl jobs list$"):
        jobs.follow(client, "other")
    lost = r"^job: the cluster's dashboard does not answer \(.+\); the job goes on; its output: .* jobs stop job$"
    with pytest.raises(UserError, match=lost):
        jobs.follow(client, "job")
    monkeypatch.setattr(Dashboard, "status", 502)
    with pytest.raises(UserError, match=lost):
        jobs.info(client, "job")


@pytest.mark.long
def test_jobs_are_listed_followed_and_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real jobs in a real cluster; plain commands, since a training run is a job like any other."""
    with clusters.head() as cluster:
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
            monkeypatch.setenv(name, cluster.environment[name])
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.txt").write_text("travelled")
        config = compose_recipe("shapes", [])
        said = ["sh", "-c", "echo $(cat mine.txt)$GIVEN; exit 3"]
        assert submit.submit(said, config, None, variables=["GIVEN=too"]) == 3
        assert "travelledtoo\n" in capfd.readouterr().out
        sleeps = ["sh", "-c", "echo asleep; trap 'sleep 5; echo ended; exit 143' TERM; while :; do sleep 0.1; done"]
        assert submit.submit(sleeps, config, None, follow=False) == 0
        (job,) = re.findall(r"^job (\S+):", capfd.readouterr().out, re.MULTILINE)
        clusters.wait_until(lambda: "asleep" in jobs.client(None).get_job_logs(job), cluster)
        assert cli.run(["jobs", "status", job]) == 0
        assert capfd.readouterr().out.startswith("RUNNING")
        assert cli.run(["jobs", "stop", job]) == 0
        assert "STOPPED" in capfd.readouterr().out
        assert cli.run(["jobs", "logs", job]) == 0
        assert "ended" in capfd.readouterr().out, "Ray's own patience is 3 s"
        assert cli.run(["jobs", "list"]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert len(lines) >= 3 and job in lines[1] and "STOPPED" in lines[1]
        assert cli.run(["jobs", "logs", "--follow", "no-such-job"]) == 2
        assert "has no such job" in capfd.readouterr().err


def test_the_manifests_are_what_kubernetes_and_slurm_read() -> None:
    """The RayJob is YAML with the fields that KubeRay asks for; the commands of both are those of this package."""
    (job,) = yaml.safe_load_all((ROOT / "examples/clusters/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert "/shared" in [mount["mountPath"] for mount in container["volumeMounts"]]
        names = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= names
    assert job["spec"]["entrypoint"].startswith("blip3o-rl train ")
    script = ROOT / "examples/clusters/slurm.sh"
    assert os.system(f"bash -n {script}") == 0
    assert "blip3o-rl train" in script.read_text() and "#SBATCH --signal=B:TERM@" in script.read_text()
