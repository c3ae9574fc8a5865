"""Ray clusters for tests, started as a user starts them; they end without touching any other."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import watch

BIN = Path(sys.executable).parent
UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
START_ATTEMPTS = 3


class StartEnded(Exception):
    """A `ray start --block` ended by itself."""


@dataclass(frozen=True)
class Cluster:
    """A running head, and where it listens."""

    address: str  # of the head, for RAY_ADDRESS of a driver on one of the nodes
    environment: dict[str, str]  # of a command that uses it; its RAY_ADDRESS is the dashboard's
    starts: list[subprocess.Popen[bytes]]  # `ray start` of the head, then of its nodes

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.starts]

    def lose_node(self) -> None:
        """Kills all processes of the node that came last, as a machine that is switched off."""
        start = psutil.Process(self.starts.pop().pid)
        for process in [start, *start.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def environment() -> dict[str, str]:
    """This process's, without a cluster that it was given."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return env | {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def head(*options: str) -> Iterator[Cluster]:
    """`ray start --head` with its dashboard; it answers when this yields.

    Ray ends when its agent needs more than 30 seconds to come up, as on a busy machine, so it is started again.
    """
    env = environment() | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    # The dashboard answers before its agent can start jobs, so a job is what is waited for.
    probe = [str(BIN / "ray"), "job", "submit", "--", "true"]
    for attempt in range(1, START_ATTEMPTS + 1):
        port, dashboard = free_port(), free_port()
        env["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        start = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
        with _started(["--head", *start, *options], env) as process:
            cluster = Cluster(f"127.0.0.1:{port}", env, [process])
            try:
                wait_until(lambda: subprocess.run(probe, env=env, capture_output=True).returncode == 0, cluster)
            except StartEnded:
                if attempt == START_ATTEMPTS:
                    raise
                continue
            yield cluster
            return


@contextlib.contextmanager
def node(cluster: Cluster, hidden: Sequence[Path], *options: str) -> Iterator[None]:
    """Another node, which has its own empty folders where `hidden` says, and nothing of the head's in them."""
    mounts = "".join(f"mount -t tmpfs none '{folder}' && " for folder in hidden)
    inside = [*UNSHARE, "sh", "-c", f'{mounts} exec "$@"', "sh"]
    own = f"--node-ip-address=127.0.0.{len(cluster.starts) + 1}"  # a driver finds its node by the address
    start = [f"--address={cluster.address}", own, f"--dashboard-agent-listen-port={free_port()}", *options]
    before = nodes(cluster)
    with _started(start, cluster.environment, inside) as process:
        cluster.starts.append(process)
        wait_until(lambda: nodes(cluster) > before, cluster)
        yield


def nodes(cluster: Cluster) -> int:
    """How many nodes are alive."""
    from ray._raylet import GcsClient

    found = GcsClient(address=cluster.address).get_all_node_info(timeout=60)
    return sum(info.state == 0 for info in found.values())


def can_hide() -> bool:
    """Whether this machine lets a node have folders of its own, and a test disks of its own."""
    try:
        return subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    except OSError:
        return False


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A small disk in memory at `folder`; yields what gives it another size, in bytes or as in `2g`."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def wait_until(condition: Callable[[], bool], cluster: Cluster) -> None:
    def holds() -> bool:
        if any(process.poll() is not None for process in cluster.starts):
            raise StartEnded("ray start ended")
        return condition()

    watch.wait_until(holds, cluster.pids)


@contextlib.contextmanager
def _started(
    options: Sequence[str], env: dict[str, str], inside: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*inside, str(BIN / "ray"), "start", "--block", *options],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
