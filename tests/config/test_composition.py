"""A recipe with its overrides, and what is said about a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip3o_rl.config.composition import compose_recipe, find_recipe
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


def test_device_profile_is_chosen_or_taken() -> None:
    assert compose_recipe(SHAPES, ["device=gpu"]).trainer.device == "cuda"
    assert compose_recipe(SHAPES, ["device=cpu"]).actor_rollout_ref.rollout.enable_sleep_mode is False


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.scal=1"], "override 'model.scal=1': there is no key model.scal; did you mean model.scale?"),
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
    with pytest.raises(UserError, match=r"known recipes: .*shapes.*did you mean recipes/shapes\?"):
        find_recipe("recipes/shaps")


def test_a_recipe_of_ones_own_is_a_folder_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [blip3o_ppo, _self_]\nmodel: {scale: 1}\n")
    assert compose_recipe(tmp_path, ["device=cpu"]).model.scale == 1


@pytest.mark.parametrize("text", ["defaults: [no_such_base, _self_]\n", "a: [1,\n"])
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
            "trainer.total_traning_steps; did you mean trainer.total_training_steps?",
        ),
        ("rendr: {steps: 8}", "there is no key rendr; did you mean render?"),
    ],
)
def test_a_misspelt_key_in_a_recipe_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "config.yaml").write_text(f"defaults: [blip3o_ppo, _self_]\n{text}\n")
    with pytest.raises(UserError) as error:
        compose_recipe(tmp_path, [])
    assert expected in str(error.value)
    assert str(tmp_path / "config.yaml") in str(error.value)
