"""Runs a recipe: check everything, evaluate, start the services, let verl train, export, evaluate again.

verl's V1 trainer does the training in its own Ray actor; this module is what stands around it. Output of verl, vLLM and
Ray goes to the run folder's logs.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from blip3o_rl import machine
from blip3o_rl.config.reward import is_deployed, name_applications
from blip3o_rl.config.train import compose_recipe
from blip3o_rl.data.table import write_table
from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.monitoring import drift
from blip3o_rl.report import checkpoints, series
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.follower import MetricsFollower
from blip3o_rl.report.progress import Progress, progress
from blip3o_rl.report.run_folder import DEFAULT_ROOT, RunFolder
from blip3o_rl.terminal import Redirected, goes_on_with
from blip3o_rl.training import cluster, given_cluster, preflight, stored

POLL_S = 0.5
JOB_RUNS = Path("~/blip3o-rl-runs")
"""Where a Ray job's runs go when `run.folder` is not given: Ray deletes the job's own working directory."""
RAY_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def plan(recipe: str, overrides: list[str]) -> tuple[DictConfig, preflight.Checked]:
    """Composes and checks a run without loading a model; raises `UserError` for the first thing that is wrong."""
    config = compose_recipe(recipe, overrides, given_cluster.device())
    return config, preflight.check(config)


def launch(recipe: str, overrides: list[str], output: Redirected) -> Path:
    """Runs a recipe (folder or name) to its last step and returns the run folder.

    What libraries print to `output` goes on in the run's logs. A `UserError` may also come during the run: from a
    reward that says stop.
    """
    config, checked = plan(recipe, overrides)
    if config.trainer.device != "cpu":
        from blip3o_rl.training.planning import plan as planning

        if expected := planning.warning(config, checked.model):
            print(f"warning: {expected}", file=output.terminal)
    in_job = RAY_JOB_CONFIG in os.environ
    folder = RunFolder.create(config.run.recipe, root=JOB_RUNS if in_job else DEFAULT_ROOT, path=config.run.folder)
    write_text(folder.overrides, "\n".join([recipe, *overrides]) + "\n")
    return _run(config, checked, folder, output)


def resume(path: str | Path, overrides: list[str], output: Redirected) -> Path:
    """Continues a run from its last complete checkpoint, with its own configuration and the overrides on top."""
    folder = RunFolder.open(path)
    changed = stored.changed_inputs(folder)
    config = stored.resumed(folder, overrides)
    checked = preflight.check(config)
    step, steps = checkpoints.latest_step(folder.checkpoints), checked.settings.trainer.total_training_steps
    if step > steps or (step == steps and folder.summary_json.exists()):
        raise UserError(f"{folder.path}: has made {step} steps, trainer.total_training_steps={steps}; raise it")
    for file in changed:
        print(f"warning: {file} has changed since the run was started", file=output.terminal)
    folder.truncate_after(step)
    warning_log.truncate_after(folder, step)
    return _run(config, checked, folder, output)


def _run(config: DictConfig, checked: preflight.Checked, folder: RunFolder, output: Redirected) -> Path:
    """The run, from its last complete checkpoint if there is one."""
    output.to(folder.logs / "driver.log")
    # verl asks when it is imported. The run's device counts, not this machine's: a cluster's head may have no GPU.
    os.environ["VERL_PLATFORM"] = machine.verl_platform(config.trainer.device)
    stored.store(config, folder)
    config = _completed(config, checked, folder)
    for side, rows in (("train", checked.rows), ("held_out", checked.held_out or checked.rows[:1])):
        write_table(rows, folder.path / "data" / f"{side}.parquet", config.run.recipe)

    console = Console(file=output.terminal)
    again = goes_on_with("blip3o-rl", "train", "--resume", str(folder.path))
    with again, progress(config.trainer.total_training_steps, title=folder.name, console=console) as shown:
        if config.run.evaluate and not folder.eval_before.exists():
            shown.phase("scoring the held-out prompts before training")
            _evaluate(config, checked, folder, checked.model, folder.eval_before, shown)
        if checkpoints.latest_step(folder.checkpoints) != config.trainer.total_training_steps:
            _train(config, checked, folder, shown)
        final = folder.path / "model"
        shutil.rmtree(final, ignore_errors=True)
        shown.phase("writing the model folder")
        from blip3o_rl.training.export import export

        export(folder.path, final)
        if config.run.evaluate:
            shown.phase("scoring the held-out prompts after training")
            _evaluate(config, checked, folder, final, folder.eval_after, shown)
    return folder.path


def _completed(config: DictConfig, checked: preflight.Checked, folder: RunFolder) -> DictConfig:
    """The configuration as verl gets it: with what follows from the model and the run folder."""
    config = config.copy()
    tokens = checked.layout.tokens_per_image(config.model.scale)
    config.model.folder = str(checked.model)
    config.model.layout_fields = checked.layout.config_fields()
    config.actor_rollout_ref.model.path = str(checked.model / "policy")
    config.data.train_files = str(folder.path / "data" / "train.parquet")
    config.data.val_files = str(folder.path / "data" / "held_out.parquet")
    config.data.max_response_length = tokens
    rollout = config.actor_rollout_ref.rollout
    rollout.max_model_len = config.data.max_prompt_length + tokens + 1
    rollout.agent.agent_loop_config_path = str(resources.files("blip3o_rl.config.defaults") / "agent_loops.yaml")
    if config.algorithm.filter_groups is not None and config.algorithm.filter_groups.enable:
        config.trainer.v1.sampler.custom_sampler.path = None
    name_applications(config.reward.rewards, str(folder.path))
    config.algorithm.update(checked.algorithm)
    config.trainer.default_local_dir = str(folder.checkpoints)
    newest = checkpoints.latest(folder.checkpoints)
    config.trainer.resume_mode = "disable" if newest is None else "resume_path"
    config.trainer.resume_from_path = None if newest is None else str(newest)
    if config.trainer.save_freq < 1:
        config.trainer.save_freq = config.trainer.total_training_steps
    return config


def _train(config: DictConfig, checked: preflight.Checked, folder: RunFolder, shown: Any) -> None:
    """The part between the two evaluations: Ray, services, verl's trainer."""
    shown.phase("starting Ray")
    import ray
    from verl.trainer.main_ppo import TaskRunnerV1
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from blip3o_rl.rollout import recorder, render_service

    if "blip3o_rl.training.verl_plugin" not in sys.modules:
        raise UserError("verl did not load this package's plug-in; see blip3o-rl doctor")
    validate_config(config, need_reference_policy(config), need_critic(config))
    metrics_file = folder.logs / f"verl-metrics-{int(time.time())}.jsonl"
    with cluster.connected(config, folder, metrics_file):
        shown.phase("starting renderer and rewards")
        expected = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
        cluster.start_rewards(config, [*checked.rows, *checked.held_out])
        nodes, gpus = config.trainer.nnodes, config.trainer.n_gpus_per_node
        render = checked.settings.render.of_rollouts()
        render_service.start(config.run.folder, str(checked.model), render, nodes, gpus, checked.editing)
        record = recorder.start(folder.path, expected, config.run.images_every, checked.settings.monitors)
        shown.phase("starting verl and vLLM")

        def more(step: int, numbers: Mapping[str, float | None]) -> Any:
            diff = {drift.PROBS_DIFF: numbers[series.PROBS_DIFF]} if series.PROBS_DIFF in numbers else {}
            return ray.get(record.statistics.remote(step, diff))

        with MetricsFollower(metrics_file, folder, shown.update, more=more):
            task = TaskRunnerV1.remote()
            _wait(task.run.remote(config), record, folder, shown)


def _wait(done: Any, record: Any, folder: RunFolder, shown: Any) -> None:
    """Waits for verl's trainer and shows warnings; ends it at once when a reward or a monitor says stop."""
    import ray

    while True:
        ready, _ = ray.wait([done], timeout=POLL_S)
        failure, warnings = ray.get([record.failure.remote(), record.warnings.remote()])  # a failure's own warning, too
        for warning in warnings:
            shown.note(warning)
        if failure:
            raise UserError(f"the run was ended: {failure}; logs and images of failed rewards in {folder.path}")
        if ready:
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                write_text(folder.logs / "trainer_error.txt", str(error))
                last = [line for line in str(error).splitlines() if line.strip()][-1].strip()
                raise UserError(f"the trainer stopped: {last}; see trainer_error.txt in {folder.logs}") from error
            return


def _evaluate(
    config: DictConfig, checked: preflight.Checked, folder: RunFolder, model: Path, target: Path, shown: Progress
) -> None:
    """Scores the held-out prompts with fixed seeds.

    Deployed rewards are started for it in a cluster of their own: the trainer's must not keep its memory meanwhile.
    """
    from blip3o_rl.evaluation.held_out import identity, score
    from blip3o_rl.model.devices import device_of
    from blip3o_rl.model.generation import GenerationConfig
    from blip3o_rl.model.pipeline import Blip3oPipeline

    settings, suite, what = checked.settings, checked.suite, shown.text
    assert suite is not None
    for rewards in (suite.rewards, suite.reported):
        name_applications(rewards, str(folder.path))
    deployed = any(is_deployed(entry) for entry in config.reward.rewards.values())
    with cluster.connected(config, folder) if deployed else nullcontext():
        cluster.start_rewards(config, [*checked.rows, *checked.held_out])
        device = device_of("cpu" if config.trainer.device == "cpu" else "auto")
        score(
            Blip3oPipeline.from_pretrained(model, device=device, editing=checked.editing),
            suite,
            target,
            images_per_prompt=settings.eval.images_per_prompt,
            seed=settings.eval.seed,
            config=GenerationConfig(settings.model.scale, settings.render.steps, settings.render.guidance),
            model=identity(model, device=device.type),
            progress=lambda done, total, rate: shown.phase(f"{what}: {done} of {total} images, {rate:.1f} per second"),
        )
