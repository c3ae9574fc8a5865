"""Runs a recipe: check everything, start the services, let verl train and evaluate, export.

verl's V1 trainer does the training in its own Ray actor; this module is what stands around it. Evaluations are verl's
validation (`rollout.evaluations`). Output of verl, vLLM and Ray goes to the run folder's logs.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console

from blip3o_rl import machine
from blip3o_rl.config.reward import name_applications
from blip3o_rl.config.train import compose_recipe
from blip3o_rl.data.table import write_table
from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.monitoring import drift
from blip3o_rl.report import checkpoints, series
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.follower import MetricsFollower, new_source, recover
from blip3o_rl.report.progress import Progress, progress
from blip3o_rl.report.run_folder import DEFAULT_ROOT, RunFolder
from blip3o_rl.terminal import Redirected, goes_on_with, is_sigterm
from blip3o_rl.training import capacity, cluster, given_cluster, preflight, stored, waiting

if TYPE_CHECKING:
    from blip3o_rl.evaluation.schedule import Schedule

JOB_RUNS = Path("~/blip3o-rl-runs")
"""Where a Ray job's runs go when `run.folder` is not given: Ray deletes the job's own working directory."""


def plan(recipe: str, overrides: list[str]) -> tuple[DictConfig, preflight.Checked]:
    """Composes and checks a run without loading a model; raises `UserError` for the first thing that is wrong."""
    config = compose_recipe(recipe, overrides, given_cluster.device())
    return config, preflight.check(config, _root())


def _root() -> Path:
    """Where the run folder is made if it is not given."""
    return JOB_RUNS if given_cluster.in_job() else DEFAULT_ROOT


def launch(recipe: str, overrides: list[str], output: Redirected) -> Path:
    """Runs a recipe (folder or name) to its last step and returns the run folder.

    What libraries print to `output` goes on in the run's logs. A `UserError` may also come during the run: from a
    reward that says stop.
    """
    config, checked = plan(recipe, overrides)
    folder = RunFolder.create(config.run.recipe, root=_root(), path=config.run.folder)
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
    recover(folder)
    waiting.trainer_error(folder).unlink(missing_ok=True)
    for file in changed:
        print(f"warning: {file} has changed since the run was started", file=output.terminal)
    for number, newer in checkpoints.all_of(folder.checkpoints):
        if number > step:
            print(f"warning: {newer}: {checkpoints.damage(newer)}; going on from step {step}", file=output.terminal)
            checkpoints.discard(newer)
    folder.truncate_after(step)
    folder.drop_evaluations(step, steps)
    warning_log.truncate_after(folder, step)
    return _run(config, checked, folder, output)


def _run(config: DictConfig, checked: preflight.Checked, folder: RunFolder, output: Redirected) -> Path:
    """The run, from its last complete checkpoint if there is one."""
    output.to(folder.logs / "driver.log")
    if config.trainer.device != "cpu":
        from blip3o_rl.training.planning import plan as planning

        if expected := planning.warning(config, checked.model):
            print(f"warning: {expected}", file=output.terminal)
    # verl asks when it is imported. The run's device counts, not this machine's: a cluster's head may have no GPU.
    os.environ["VERL_PLATFORM"] = machine.verl_platform(config.trainer.device)
    cluster.check_nodes(folder, checked.model)
    stored.store(config, folder)
    config = _completed(config, checked, folder)
    suite, data = checked.suite, folder.path / "data"
    write_table(checked.rows, data / "train.parquet", config.run.recipe)
    # verl reads held-out prompts whether it evaluates or not.
    write_table(suite.rows if suite else checked.rows[:1], data / "held_out.parquet", config.run.recipe, held_out=True)

    console = Console(file=output.terminal)
    resumable = goes_on_with("blip3o-rl", "train", "--resume", str(folder.path))
    with resumable, progress(config.trainer.total_training_steps, title=folder.name, console=console) as shown:
        schedule = _schedule(checked, folder, shown)
        reached, last = checkpoints.latest_step(folder.checkpoints), config.trainer.total_training_steps
        if schedule:
            schedule.keep_best(reached)  # a run killed between evaluation and this
            config.trainer.val_before_train = schedule.missing(reached)
            config.trainer.test_freq = schedule.every or last
        if reached != last or config.trainer.val_before_train:
            _train(config, checked, folder, schedule, shown)
        final = folder.path / "model"
        shutil.rmtree(final, ignore_errors=True)
        shown.phase("writing the model folder")
        from blip3o_rl.training.export import export

        export(folder.path, final)
    return folder.path


def _schedule(checked: preflight.Checked, folder: RunFolder, shown: Progress) -> Schedule | None:
    """The run's evaluations; None for none."""
    if checked.suite is None:
        return None
    from blip3o_rl.evaluation.schedule import Schedule

    shown.phase("reading the model")
    for rewards in (checked.suite.rewards, checked.suite.reported):
        name_applications(rewards, folder.id)
    return Schedule.of(checked.settings, checked.suite, checked.model, folder)


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
    name_applications(config.reward.rewards, folder.id)
    config.algorithm.update(checked.algorithm)
    config.trainer.default_local_dir = str(folder.checkpoints)
    newest = checkpoints.latest(folder.checkpoints)
    config.trainer.resume_mode = "disable" if newest is None else "resume_path"
    config.trainer.resume_from_path = None if newest is None else str(newest)
    if config.trainer.save_freq < 1:
        config.trainer.save_freq = config.trainer.total_training_steps
    return config


def _train(
    config: DictConfig, checked: preflight.Checked, folder: RunFolder, schedule: Schedule | None, shown: Progress
) -> None:
    """Ray, services, verl's trainer."""
    shown.phase("starting Ray")
    import ray
    from verl.trainer.main_ppo import TaskRunnerV1
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from blip3o_rl.rollout import evaluations, recorder, render_service

    if "blip3o_rl.training.verl_plugin" not in sys.modules:
        raise UserError("verl did not load this package's plug-in; see blip3o-rl doctor")
    validate_config(config, need_reference_policy(config), need_critic(config))
    metrics_file = new_source(folder)
    with cluster.connected(config, folder, metrics_file):
        lock = capacity.take_lock(config, shown.phase) if given_cluster.address() else None
        shown.phase("starting renderer and rewards")
        task = TaskRunnerV1.remote()  # its process imports verl while the services start
        expected = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
        cluster.start_rewards(config, [*checked.rows, *checked.held_out])
        nodes, gpus = config.trainer.nnodes, config.trainer.n_gpus_per_node
        render = checked.settings.render
        render_service.start(config.run.folder, str(checked.model), render, nodes, gpus, checked.editing)
        record = recorder.start(folder.path, expected, config.run.images_every, checked.settings.monitors)
        evaluating = evaluations.start(schedule) if schedule else None
        shown.phase("starting verl")

        def extra_metrics(step: int, numbers: Mapping[str, float | None]) -> dict[str, float]:
            diff = {drift.PROBS_DIFF: numbers[series.PROBS_DIFF]} if series.PROBS_DIFF in numbers else {}
            found: dict[str, float] = ray.get(record.statistics.remote(step, diff))
            return found

        with MetricsFollower(metrics_file, folder, shown.update, more=extra_metrics):
            done = task.run.remote(config)
            try:
                waiting.wait(done, record, evaluating, lock, folder, shown)
            except KeyboardInterrupt as error:
                if is_sigterm(error) and (grace := checked.settings.run.grace_s):
                    waiting.save_and_end(done, record, grace, folder, shown)
                raise
