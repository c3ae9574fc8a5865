"""A cluster that is not there, or not one, is refused in seconds; a token that is there is sent."""

from __future__ import annotations

import http.server
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve.exceptions import RayServeException

from blip3o_rl import machine
from blip3o_rl.config.train import compose_recipe
from blip3o_rl.errors import UserError
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.scoring.rubric import Rubric
from blip3o_rl.training import cluster, given_cluster


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", "no Ray cluster answers there"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
        ("127.0.0.1", "no Ray cluster answers there"),
        ("127.0.0.1:99999999", "no Ray cluster answers there"),
        ("http://127.0.0.1:8265", "use blip3o-rl submit"),
        ("ray://127.0.0.1:10001", "only a node of the cluster can train"),
    ],
)
def test_a_bad_address_is_refused_in_one_line(address: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=expected) as error:
        given_cluster.device()
    assert str(error.value).startswith(f"RAY_ADDRESS={address}: ")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_another_service_at_the_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 s: Ray's own patience, shortened."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.server_port}")
    with pytest.raises(UserError, match="no Ray cluster answers there"):
        given_cluster.device()
    server.shutdown()


@pytest.mark.parametrize("address", ["", "local"])
def test_without_a_cluster_the_machine_decides(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(machine, "device", lambda: "gpu")
    assert given_cluster.address() is None
    assert given_cluster.device() == "gpu"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 8}, {"CPU": 8, "GPU": 8, "accelerator_type:H100": 1}], "gpu"),
        ([{"CPU": 2, "GPU": 1}], "cpu"),
    ],
)
def test_the_clusters_nodes_decide_and_not_its_head(
    nodes: list[dict[str, float]], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_cluster, "resources", lambda: nodes)
    assert given_cluster.device() == expected


def test_auto_is_the_cluster_that_ray_would_join(monkeypatch: pytest.MonkeyPatch) -> None:
    node = SimpleNamespace(state=0, resources_total={"GPU": 8, "accelerator_type:H100": 1})
    with socket.create_server(("", 0)) as head:
        found = [f"127.0.0.1:{head.getsockname()[1]}"]
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        monkeypatch.setattr(machine, "device", lambda: "cpu")
        monkeypatch.setattr(given_cluster, "use_token", lambda: None)
        monkeypatch.setattr(given_cluster, "_nodes", lambda where: {where: node})
        monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: found)
        monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: None)
        assert given_cluster.device() == "gpu"
    found.clear()
    with pytest.raises(UserError, match="^RAY_ADDRESS=auto: no Ray cluster runs on this machine; start one with"):
        given_cluster.device()


@pytest.mark.parametrize(
    ("token", "mode", "expected"), [(True, None, "token"), (False, None, None), (True, "disabled", "disabled")]
)
def test_a_token_in_the_home_folder_is_sent(
    token: bool, mode: str | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0" * 32)
    given_cluster.use_token()
    assert given_cluster.os.environ.get("RAY_AUTH_MODE") == expected


def test_a_cluster_of_our_own_leaves_no_token_and_hides_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES="" is the usual way to ask for the CPU; Ray refuses a logical GPU then."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_worker_niceness", "TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_worker_niceness")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(machine, "temporary_folder", lambda: tmp_path)
    monkeypatch.setattr(cluster.tempfile, "tempdir", cluster.tempfile.gettempdir())
    cluster._prepare_own(gpus=2)
    env = cluster.os.environ
    assert (env["RAY_AUTH_MODE"], len(env["RAY_AUTH_TOKEN"])) == ("token", 32)
    assert env["CUDA_VISIBLE_DEVICES"] == "-1,-1" and env["RAY_worker_niceness"] == "0"
    assert env["TMPDIR"] == env["RAY_TMPDIR"] == cluster.tempfile.gettempdir() == str(tmp_path)


def test_ray_is_started_again_on_a_busy_machine_and_its_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = ["The current node timed out during startup.\nThis could happen", "", "Failed to start GCS.\nmore"]

    def init(**options: object) -> None:
        if reason := reasons.pop(0):
            raise RuntimeError(reason)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    cluster._start_own({})
    with pytest.raises(UserError, match="Ray does not start here: Failed to start GCS. more;"):
        cluster._start_own({})
    assert reasons == []


def test_a_cluster_that_cannot_be_joined_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.9.1")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(given_cluster, "use_token", lambda: None)
    monkeypatch.setattr(given_cluster, "resources", lambda: [{}, {}])
    monkeypatch.setattr(cluster, "_environment", lambda *_: {})
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    said = r"^RAY_ADDRESS=127.0.0.1:6379: this process cannot join .*: Ray: 2.9.0 Python: 3.9.1\); start it on a node"
    with pytest.raises(UserError, match=said):
        cluster.check_nodes(folder, tmp_path)
    with pytest.raises(UserError, match=said), cluster.connected(compose_recipe("shapes", []), folder):
        raise AssertionError("joined")


def test_processes_get_a_home_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = compose_recipe("shapes", []), RunFolder.create("shapes", path=tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "HOME" not in cluster._environment(config, folder, None)
    monkeypatch.setenv("HOME", "/proc/nohome")
    assert cluster._environment(config, folder, None)["HOME"] == str(folder.path / "home")
    assert (folder.path / "home").is_dir()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a container's user without an account
    assert cluster._environment(config, folder, None)["HOME"] == str(folder.path / "home")


def test_ranks_on_cpus_ask_for_no_numa_node_each(tmp_path: Path) -> None:
    folder, ranks = (
        RunFolder.create("shapes", path=tmp_path / "run"),
        "actor_rollout_ref.rollout.tensor_model_parallel_size=2",
    )
    found = [cluster._environment(compose_recipe("shapes", words), folder, None) for words in ([], [ranks])]
    assert [env.get("VLLM_CPU_OMP_THREADS_BIND") for env in found] == [None, "nobind"]


def test_of_the_rewards_only_the_deployed_ones_are_checked_once_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr("blip3o_rl.scoring.remote.deployment.start", lambda *_: None)
    monkeypatch.setattr(Rubric, "check_prompts", lambda rubric, _: checked.extend(rubric.names))
    monkeypatch.setattr(Rubric, "self_check", lambda rubric, _: checked.extend(rubric.names))
    served = ["reward.rewards.served.name=geneval", "reward.rewards.served.service.replicas=1"]
    config = compose_recipe("shapes", served)
    cluster.start_rewards(config, [])
    assert checked == ["geneval", "served", "served"]


def test_a_cluster_that_is_too_small_is_left_again_and_the_reason_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve may not run in a given cluster; that it cannot be asked to stop anything must not hide the reason."""
    ended: list[str] = []

    def delete(name: str) -> None:
        ended.append(name)
        raise RayServeException("There is no Serve instance running on this Ray cluster.")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr(given_cluster, "nodes", list)
    monkeypatch.setattr("ray.serve.delete", delete)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append("ray"))
    monkeypatch.setattr(given_cluster, "use_token", lambda: None)
    monkeypatch.setattr(cluster, "_environment", lambda *_: {})
    monkeypatch.setattr(cluster.nodes, "keep_logs", lambda *_: None)
    monkeypatch.setattr(cluster.terminal, "catch_sigterm", lambda: None)
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    config = compose_recipe("shapes", [f"run.folder={folder.path}"])
    with pytest.raises(UserError, match="the Ray cluster has 0 GPUs"), cluster.connected(config, folder):
        raise AssertionError("a cluster without GPUs was taken")
    assert ended == [f"blip3o-renderer-{folder.id}", "ray"]
