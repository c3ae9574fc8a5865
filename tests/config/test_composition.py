"""A recipe with its overrides, and what is said about a bad one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from blip3o_rl.config import composition
from blip3o_rl.config.composition import find_recipe
from blip3o_rl.config.train import OwnSettings, compose_recipe, compose_run
from blip3o_rl.errors import UserError

SHAPES = Path(__file__).parents[2] / "recipes" / "shapes"


def test_recipe_stands_on_verls_config_and_free_keys_need_no_plus() -> None:
    config = compose_recipe(
        SHAPES, ["reward.rewards.mine.path=my.py:f", "reward.rewards.mine.weight=0.3", "device=cpu"]
    )
    assert config.run.recipe == "shapes"
    assert config.actor_rollout_ref.rollout.name == "blip3o"
    assert config.actor_rollout_ref.actor.ppo_epochs == 1
    assert dict(config.reward.rewards.mine) == {"path": "my.py:f", "weight": 0.3}
    assert config.reward.rewards.geneval.weight == 1.0


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_recipe_may_have_parts_and_both_ways_to_compose_agree(tmp_path: Path, device: str) -> None:
    """Where a recipe names the base alone, it is merged with it; with parts of its own, Hydra composes all of it."""
    text = (SHAPES / "config.yaml").read_text()
    whole, parted = tmp_path / "a" / "one", tmp_path / "b" / "one"
    for folder in (whole, parted):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(text)
    (parted / "config.yaml").write_text(text.replace("- blip3o_ppo\n", "- blip3o_ppo\n  - part\n"))
    (parted / "part.yaml").write_text("data: {train_batch_size: 3}\nrender: {rollout_steps: 3}\n")
    words = ["hardware=8x80gb", "+trainer.more=1", "data.train_batch_size=16", "reward.rewards.more.path=my.py:f"]
    one, other = (compose_recipe(folder, words, device) for folder in (whole, parted))
    assert other.render.rollout_steps == 3
    other.render.rollout_steps = one.render.rollout_steps
    assert OmegaConf.to_container(one) == OmegaConf.to_container(other)


def test_device_profile_is_chosen_or_taken() -> None:
    assert compose_recipe(SHAPES, ["device=gpu"]).trainer.device == "cuda"
    assert compose_recipe(SHAPES, ["device=cpu"]).actor_rollout_ref.rollout.enable_sleep_mode is False


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.scal=1"], "model.scal: there is no such key; did you mean 'scale'?"),
        (["+render.stepz=1"], "render.stepz: there is no such key; did you mean 'steps'?"),
        (
            ["trainer.total_step=1"],
            "'trainer.total_step=1': there is no key trainer.total_step; did you mean 'trainer.",
        ),
        (["actor.optim.warmup_style=1"], "did you mean 'actor_rollout_ref.actor.optim.warmup_style'?"),
        (["render.steps=[1"], "override 'render.steps=[1': "),
        (["render.steps=few"], "render.steps=few: must be a valid integer"),
        (["render.steps=0"], "render.steps=0: must be greater than or equal to 1"),
        (
            ["render.rollout_guidance_interval=[0.8,0.2]"],
            "rollout_guidance_interval=[0.8, 0.2]: must be two noise levels",
        ),
        (
            ["render.rollout_guidance_interval=[0.2,2]"],
            "rollout_guidance_interval=[0.2, 2.0]: must be two noise levels",
        ),
        (["render.noise=none"], "render.noise=none: must be 'group' or 'sample'"),
        (["render.dtype=float99"], "render.dtype=float99: must be 'auto'"),
        (["render.max_batch_size=0"], "render.max_batch_size=0: must be"),
        (["run.resume=true"], "run.resume: was renamed; write blip3o-rl train --resume RUN"),
        (
            ["algorithm.rollout_correction.bypass_mode=true", "monitors.stop.probs_diff=0.1"],
            "algorithm.rollout_correction.bypass_mode=true leaves out what monitors.stop.probs_diff needs",
        ),
        (["guards.window=2"], "override 'guards.window=2': guards was renamed; write monitors.window"),
        (["fast"], "override 'fast': not of the form key=value"),
        (["device=tpu"], "device/tpu"),
    ],
)
def test_a_bad_override_is_one_line_with_a_hint(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError) as error:
        compose_recipe(SHAPES, overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"known recipes: .*shapes.*did you mean 'shapes'\?"):
        find_recipe("recipes/shaps")


def test_a_recipe_of_ones_own_is_a_folder_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [blip3o_ppo, _self_]\nmodel: {scale: 1}\n")
    assert compose_recipe(tmp_path, ["device=cpu"]).model.scale == 1


@pytest.mark.parametrize(
    "text",
    ["defaults: [no_such_base, _self_]\n", "a: [1,\n", "- 1\n", "", "defaults: [blip3o_ppo, gone, _self_]\n"],
)
def test_a_broken_recipe_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        compose_recipe(tmp_path, [])
    assert str(tmp_path / "config.yaml") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "trainer: {total_traning_steps: 5}",
            "trainer.total_traning_steps; did you mean 'trainer.total_training_steps'?",
        ),
        ("rendr: {steps: 8}", "there is no key rendr; did you mean 'render'?"),
        ("render: {step: 8}", "render.step: there is no such key; did you mean 'steps'?"),
    ],
)
def test_a_misspelt_key_in_a_recipe_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "config.yaml").write_text(f"defaults: [blip3o_ppo, _self_]\n{text}\n")
    with pytest.raises(UserError) as error:
        compose_recipe(tmp_path, [])
    assert expected in str(error.value)


def test_defaults_are_those_of_the_models(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [blip3o_ppo, _self_]\n")
    config = compose_recipe(tmp_path, [])
    found = {group: OmegaConf.to_container(config[group]) for group in OwnSettings.model_fields}
    expected = OwnSettings().model_dump()
    expected["run"]["recipe"] = tmp_path.name
    expected["render"]["device"] = "cpu"
    assert found == expected


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run.folder=a${x}", "configuration: Interpolation key 'x' not found"),
        ("reward.rewards.ocr.mode=${x}", "configuration: Interpolation key 'x' not found"),
        ("data=null", "override 'data=null': data is no single value; set its keys"),
        ("device=null", "override 'device=null': device is no single value"),
        ("trainer.total_training_steps=1e3", "trainer.total_training_steps=1000.0: must be a valid integer"),
        ("trainer.total_training_steps=true", "trainer.total_training_steps=True: must be a valid integer"),
    ],
)
def test_an_override_that_means_nothing_is_one_line(override: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        compose_recipe(SHAPES, [override])
    assert str(error.value).startswith(says) and "\n" not in str(error.value)


ODD = "/tmp/projet (1) é=a,b #[x]"


@pytest.mark.parametrize("key", ["run.folder", "model.folder", "prompts.file", "reward.rewards.mine.path"])
@pytest.mark.parametrize("written", [ODD, f"'{ODD}'"])
def test_a_path_is_never_read_as_grammar(key: str, written: str) -> None:
    config = compose_recipe(SHAPES, [f"{key}={written}"])
    assert OmegaConf.select(config, key) == ODD


def test_an_address_to_copy_to_is_taken_as_it_is() -> None:
    address = "s3://bucket/date=2026-01-01"
    assert compose_recipe(SHAPES, [f"run.upload={address}"]).run.upload == address


def test_an_installation_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (verl,) = composition.find_spec("verl").submodule_search_locations
    linked = tmp_path / "l'h\u00f4te, [1]" / "verl"
    linked.parent.mkdir()
    linked.symlink_to(verl)
    monkeypatch.setattr(composition, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[linked]))
    assert compose_recipe(SHAPES, []).trainer.nnodes == 1


def test_an_empty_path_is_none() -> None:
    assert compose_recipe(SHAPES, ["run.folder="]).run.folder is None


def test_a_stored_configuration_is_composed_with_overrides_on_top() -> None:
    first = compose_recipe(SHAPES, ["run.seed=7", f"run.folder={ODD}"])
    stored = OmegaConf.create(OmegaConf.to_yaml(first))
    again = compose_run(stored, "old/config.yaml", ["trainer.total_training_steps=9", "reward.rewards.ocr.weight=0"])
    assert (again.run.seed, again.run.folder, again.trainer.total_training_steps) == (7, ODD, 9)
    assert again.data.seed == 7 and again.reward.rewards.ocr.weight == 0
    with pytest.raises(UserError, match="there is no key trainer.stepz"):
        compose_run(stored, "old/config.yaml", ["trainer.stepz=9"])
