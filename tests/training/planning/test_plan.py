"""Plans of runs on GPUs: the phases, what makes them fit, and the presets that are promised to fit."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from blip3o_rl import cli
from blip3o_rl.benchmarks import prediction
from blip3o_rl.config.train import compose_recipe, read_settings
from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import launch
from blip3o_rl.training.planning import counting, plan
from blip3o_rl.training.planning.gpus import GPUS, Gpu, find, of_device
from blip3o_rl.training.planning.plan import CHECKPOINTING, LORA, MICRO, OPTIMIZER_OFFLOAD, Plan, fit

MODEL = plan.published()


def planned(gpu: Gpu, gpus: int = 1, *overrides: str, model: counting.Model = MODEL) -> Plan:
    config = compose_recipe("text_3b", [f"trainer.n_gpus_per_node={gpus}", *overrides], "gpu")
    return Plan(config, model, gpu)


def totals(found: Plan) -> dict[str, float]:
    return {name: sum(parts.values()) for name, parts in found.phases().items()}


@pytest.mark.parametrize(("name", "gpus"), [("h200", 1), ("h100", 1), ("h100", 8), ("a100-40", 1), ("4090", 1)])
def test_the_text_recipe_can_be_made_to_fit(name: str, gpus: int) -> None:
    found = fit(planned(GPUS[name], gpus))
    assert all(size <= 0.95 * GPUS[name].memory_gib for size in totals(found).values())
    assert found.cache_sequences() >= 1
    changed = compose_recipe(
        "text_3b",
        [f"trainer.n_gpus_per_node={gpus}", *(f"{key}={value}" for key, value in found.changes.items())],
        "gpu",
    )
    read_settings(changed)


def test_eighty_gigabytes_need_no_change_and_forty_do() -> None:
    assert not fit(planned(GPUS["h100"])).changes
    assert fit(planned(GPUS["a100-40"])).changes


def test_each_lever_moves_its_phase() -> None:
    gpu = GPUS["h100"]
    base = totals(planned(gpu))
    assert totals(planned(gpu, 1, f"{MICRO}=8"))["update"] < base["update"]
    assert totals(planned(gpu, 1, f"{CHECKPOINTING}=false"))["update"] > base["update"] + 10
    assert totals(planned(gpu, 1, f"{OPTIMIZER_OFFLOAD}=true"))["rollout"] == pytest.approx(
        base["rollout"] - 8 * 1_854_256_128 / 2**30
    )
    assert totals(planned(gpu, 1, f"{LORA}=32"))["update"] < base["update"] - 15
    assert totals(planned(gpu, 2))["update"] < base["update"] - 10
    with_reward = planned(gpu, 1, "reward.rewards.pickscore.weight=1")
    assert totals(with_reward)["rollout"] > base["rollout"] + 4


def test_captured_states_are_there_while_samples_are_made() -> None:
    """Of 128 samples of 729 tokens, in bfloat16, in a pool that has doubled."""
    phases = planned(GPUS["h100"]).phases()
    expected = 2 * 128 * 730 * 2048 * 2 / 2**30
    assert phases["rollout"]["captured states"] == pytest.approx(expected)
    assert not any("captured states" in phases[name] for name in ("log-probs", "update"))
    fewer = planned(GPUS["h100"], 1, "actor_rollout_ref.rollout.max_num_seqs=32").phases()
    assert fewer["rollout"]["captured states"] == pytest.approx(expected / 4)


def test_a_change_that_a_later_one_made_unnecessary_is_dropped() -> None:
    found = fit(planned(GPUS["4090"]))
    for key in found.changes:
        rest = {name: value for name, value in found.changes.items() if name != key}
        assert Plan(found.config, found.model, found.gpu, rest).overflow(), f"{key} is not needed"


def test_a_run_on_a_gpu_that_is_too_small_begins_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    config = compose_recipe("shapes", ["reward.rewards.aesthetic={}"], "gpu")
    mini = Path(plan.__file__).parents[2] / "mini" / "weights"
    assert plan.warning(config, mini) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gib, says in ((4.0, "too small whatever is changed"), (6.0, "with these it would fit: actor_"), (24.0, "")):
        properties = SimpleNamespace(name="Toy GPU", total_memory=int(gib * 2**30))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        found = plan.warning(config, mini)
        assert says in found
        assert bool(found) == bool(says)


@pytest.mark.parametrize("command", ["launch", "resume"])
def test_a_run_that_begins_or_goes_on_is_warned(
    command: str, untrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    def store(*_: object) -> None:
        raise Reached

    folder = RunFolder.create("shapes", path=tmp_path / "run")
    config, checked = launch.plan("shapes", ["device=cpu", f"model.folder={untrained.folder}"])
    config.trainer.device = "cuda"
    config.run.folder = str(tmp_path / "new")
    write_text(folder.config, OmegaConf.to_yaml(config))
    monkeypatch.setattr(launch, "plan", lambda *_: (config, checked))
    monkeypatch.setattr(launch.preflight, "check", lambda *_: checked)
    monkeypatch.setattr(launch.stored, "store", store)
    monkeypatch.setattr(plan, "warning", lambda config, model: f"{config.trainer.device}, {model.name}: too little")
    output: Any = SimpleNamespace(to=lambda file: None, terminal=io.StringIO())
    with pytest.raises(Reached):
        launch.launch("shapes", [], output) if command == "launch" else launch.resume(folder.path, [], output)
    assert output.terminal.getvalue() == f"warning: cuda, {untrained.folder.name}: too little\n"


def test_what_can_never_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"1 x tiny: too small whatever is changed \(missing: .*GiB"):
        fit(planned(Gpu("tiny", 6, 100, 500)))
    with pytest.raises(UserError, match="--gpu h10: is not in the table; did you mean 'h100'"):
        find("h10")


def test_a_plan_refuses_a_size_that_the_model_cannot_render() -> None:
    from blip3o_rl.cli.plan import plan as command

    with pytest.raises(UserError, match=r"render\.rollout_size=32: this model has a positional embedding"):
        command(["recipes/words", "render.rollout_size=32"])


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_a_gpu_is_found_by_the_name_that_its_driver_gives(device: str, name: str | None) -> None:
    assert of_device(device) == GPUS.get(name or "")


def test_smaller_images_of_a_model_that_edits_are_counted_as_text_to_image() -> None:
    editor = counting.Model(MODEL.policy, MODEL.transformer, MODEL.vae, {"in_features": 32, "out_features": 2304})
    assert editor.takes_latents
    gpu, smaller = GPUS["h100"], "render.rollout_size=512"
    found = planned(gpu, 1, smaller, model=editor).seconds()["render"]
    assert found == pytest.approx(planned(gpu, 1, smaller).seconds()["render"])
    assert found < planned(gpu, model=editor).seconds()["render"] / 3


def test_more_guidance_steps_and_images_take_longer() -> None:
    gpu = GPUS["h100"]
    base = planned(gpu).seconds()
    cheap = planned(gpu, 1, "render.rollout_steps=8", "render.rollout_guidance=1").seconds()
    assert cheap["render"] < base["render"] / 5
    assert cheap["update"] == base["update"]
    some = planned(gpu, 1, "render.rollout_guidance_interval=[0.5,1]").seconds()
    assert 0.5 * base["render"] < some["render"] < 0.9 * base["render"]
    small = planned(gpu, 1, "render.rollout_size=512")
    assert small.seconds()["render"] == pytest.approx(base["render"] / 4, rel=0.15)
    table = {row.stage: prediction.seconds(small, row) for row in prediction.of_step(small)}
    assert table["render"][2] == pytest.approx(small.seconds()["render"])
    assert totals(small) == totals(planned(gpu)), "evaluations have the model's own size"
    assert planned(gpu, 1, "data.train_batch_size=16").seconds()["update"] == pytest.approx(2 * base["update"])
    assert planned(GPUS["a100"]).seconds()["render"] > 2 * base["render"]
    log_probs = "log-probs (policy and reference)"
    bypass = planned(gpu, 1, "algorithm.rollout_correction.bypass_mode=true").seconds()
    assert bypass[log_probs] == base[log_probs] / 2 and bypass["update"] == base["update"]


@pytest.mark.parametrize(("gpus", "samples"), [(1, 32), (8, 16), (16, 8)])
def test_the_micro_batch_follows_from_the_samples(gpus: int, samples: int) -> None:
    config = compose_recipe("text_3b", [f"trainer.n_gpus_per_node={gpus}"], "gpu")
    assert config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu == samples
    assert config.actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu == samples


def test_the_command_writes_a_recipe_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target: Any = tmp_path / "text-24gb"
    assert cli.run(["plan", "text_3b", "--gpu", "4090", "--apply", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "models/blip3o-next is not there: planned for the published 3B model" in shown
    assert "does not fit into 24 GiB" in shown
    assert "second pass" in shown, "the original's procedure next to this package's"
    config = compose_recipe(target, [], "gpu")
    assert not Plan(config, MODEL, GPUS["4090"]).overflow()
    assert cli.run(["plan", "text_3b", "--gpu", "4090", "--apply", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.run(["plan"]) == 2
    assert "no recipe given" in capsys.readouterr().err
