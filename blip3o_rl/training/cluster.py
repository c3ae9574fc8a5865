"""A run's place in Ray: the cluster that it joins or starts, its environment, its deployed rewards, its logs."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blip3o_rl import allocator, machine, terminal
from blip3o_rl.config.reward import is_deployed, process_environment
from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError, in_one_line
from blip3o_rl.io import user_path
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import capacity, given_cluster, nodes, trackers

START_ATTEMPTS = 3
BUSY_START_ATTEMPTS = 20


@contextlib.contextmanager
def connected(config: DictConfig, folder: RunFolder, metrics_file: Path | None = None) -> Iterator[None]:
    """Connects to the cluster this process was given, or starts one here.

    At the end the logs are copied, and what the run deployed does not stay in a cluster that stays.
    """
    import ray
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    environment = _environment(config, folder, metrics_file)
    runtime_env = get_ppo_ray_runtime_env(config)
    runtime_env["env_vars"] = runtime_env.get("env_vars", {}) | environment
    os.environ.update(environment)
    common = {"runtime_env": runtime_env, "log_to_driver": False, "logging_level": "ERROR", "namespace": folder.id}
    address = given_cluster.address()
    if address:
        _join(address, common)
    else:
        local: Any = OmegaConf.to_container(config.ray_kwargs.ray_init, resolve=True)
        local.pop("runtime_env", None)
        _prepare_own(local.get("num_gpus") or 0)
        # "local": without it Ray would join a cluster that happens to run on this machine.
        _start_own({"address": "local", "include_dashboard": False, **common, **local})
    terminal.catch_sigterm()
    with contextlib.ExitStack() as at_the_end:  # the last one first, and all of them whatever one of them raises
        at_the_end.callback(ray.shutdown)
        at_the_end.callback(nodes.keep_logs, folder, _apps(config))
        if address:
            at_the_end.callback(_stop_deployments, config)
        capacity.refuse_too_small(config, given_cluster.nodes())
        yield


def check_nodes(folder: RunFolder, model: Path) -> None:
    """Refuses a given cluster of several nodes where one does not see the run's files; nothing else is started."""
    import ray

    address = given_cluster.address()
    if address is None or len(given_cluster.resources()) == 1:
        return
    _join(address, {"log_to_driver": False, "logging_level": "ERROR", "namespace": folder.id})
    try:
        nodes.require_shared(folder, model)
    finally:
        ray.shutdown()
        terminal.catch_sigterm()


def _join(address: str, options: dict[str, Any]) -> None:
    """Connects to a given cluster."""
    import ray

    given_cluster.use_token()
    try:
        ray.init(address=address, **options)
    except Exception as error:
        ray.shutdown()
        raise UserError(
            f"RAY_ADDRESS={address}: this process cannot join the Ray cluster ({in_one_line(error, 300)}); start it on "
            "a node of the cluster, with the cluster's own versions of Ray and Python"
        ) from error


def _start_own(options: dict[str, Any]) -> None:
    """Starts Ray; again when it was not up within its own 15 to 30 seconds, which happens on a busy machine."""
    import ray

    for attempt in itertools.count(1):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            reason = in_one_line(error, 300)
            busy = os.getloadavg()[0] > 2 * machine.cpus()
            last = attempt >= (BUSY_START_ATTEMPTS if busy else START_ATTEMPTS)
            if last or "timed out during startup" not in reason:
                raise UserError(f"Ray does not start here: {reason}; see blip3o-rl doctor") from error


def _prepare_own(gpus: int) -> None:
    """Sets what Ray reads from the environment when it starts a cluster here."""
    # Ray's workers would run at niceness 15, which leaves them 3 % of a core that any other process keeps busy.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray would write a token into the home folder, and every later cluster of this user would ask for it.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
        given_cluster.use_token()
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        # Ray counts the entries and refuses more logical GPUs; -1 hides all GPUs, too.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(["-1"] * gpus)
    # Ray takes these variables as they are, also where nothing can be written there.
    tempfile.tempdir = str(machine.temporary_folder())
    os.environ |= dict.fromkeys(("TMPDIR", "RAY_TMPDIR"), tempfile.tempdir)


def _environment(config: DictConfig, folder: RunFolder, metrics_file: Path | None) -> dict[str, str]:
    """Environment of every process of the run."""
    env = {
        "TRANSFER_QUEUE_ENABLE": "1",
        "TENSORBOARD_DIR": str(folder.tensorboard),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VERL_PLATFORM": machine.verl_platform(config.trainer.device),
    }
    if metrics_file is not None:
        env["VERL_FILE_LOGGER_PATH"] = str(metrics_file)
    env |= process_environment(config.reward.rewards)
    env |= trackers.environment(config.trainer.logger, folder)
    home = user_path("~")
    if not os.access(home, os.W_OK):  # libraries make their cache folders there
        (folder.path / "home").mkdir(exist_ok=True)
        env["HOME"] = str(folder.path / "home")
    if config.trainer.device == "cpu":
        # Ray would give each actor one thread; waiting threads must not take the cores from other processes.
        env |= {"OMP_NUM_THREADS": str(machine.cpus()), "OMP_WAIT_POLICY": "PASSIVE", "VLLM_CPU_KVCACHE_SPACE": "1"}
        env |= allocator.environment()
        if config.actor_rollout_ref.rollout.tensor_model_parallel_size > 1:
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else vLLM wants a NUMA node for each rank
    return env


def start_rewards(config: DictConfig, prompts: Sequence[PromptRow]) -> None:
    """Starts the rewards that are deployed in the cluster, and checks them as the others were before Ray."""
    rewards: Any = OmegaConf.to_container(config.reward.rewards, resolve=True)
    if not any(is_deployed(entry) for entry in rewards.values()):
        return
    from blip3o_rl.model.devices import free_unused
    from blip3o_rl.scoring.build import build_rubric
    from blip3o_rl.scoring.remote import deployment

    per_node = 0 if config.trainer.device == "cpu" else config.trainer.n_gpus_per_node
    deployment.start(rewards, config.trainer.nnodes, per_node)
    rubric = build_rubric(rewards)
    rubric.check_prompts(prompts)
    rubric.entries = [entry for entry in rubric.entries if is_deployed(rewards[entry.name])]
    rubric.self_check(prompts)
    del rubric
    free_unused()


def _stop_deployments(config: DictConfig) -> None:
    from ray.serve.exceptions import RayServeException

    from blip3o_rl.scoring.remote import deployment

    with contextlib.suppress(RayServeException):  # Serve does not run: nothing was deployed
        deployment.stop(_apps(config))


def _apps(config: DictConfig) -> list[str]:
    """The run's Serve applications: its renderer and its deployed rewards."""
    from blip3o_rl.rollout import render_service

    rewards = [entry.service.app for entry in config.reward.rewards.values() if is_deployed(entry)]
    return [render_service.app_name(config.run.folder), *rewards]
