"""Cheaper rendering is measured on fresh rollouts, and its overrides are taken by `train`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import unplaced_copy

from blip3o_rl.benchmarks import bounds, step, tuning
from blip3o_rl.benchmarks.agreement import Agreement
from blip3o_rl.benchmarks.tuning import Measured, Setting
from blip3o_rl.cli import main as cli
from blip3o_rl.cli.runs import with_files
from blip3o_rl.config.groups import RenderSettings
from blip3o_rl.config.train import compose_recipe, read_settings
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.model.generation import GenerationConfig

REWARD = """
def brightness(image):
    return float(image.mean() / 255)

def constant(image):
    return 1.0
"""
RECIPE = """
defaults: [blip3o_ppo, _self_]
model: {{folder: "{model}", scale: 2}}
render: {{steps: 4, max_batch_size: 4}}
prompts: {{source: shapes, train: 8}}
reward: {{rewards: {{brightness: {{path: "{reward}:{function}"}}}}}}
data: {{train_batch_size: 2}}
actor_rollout_ref: {{rollout: {{n: 3}}}}
"""


def recipe(folder: Path, model: Path, function: str = "brightness") -> Path:
    (folder / "reward.py").write_text(REWARD)
    text = RECIPE.format(model=model, reward=folder / "reward.py", function=function)
    (folder / "config.yaml").write_text(text)
    return folder


def measured(name: str, cost: float, ranking: float, **setting: Any) -> Measured:
    config = GenerationConfig(steps=4)
    return Measured(Setting(name, config, **setting), cost, cost, Agreement(ranking, 0.01, ranking, 5), [1.0])


def test_settings_are_the_full_one_and_cheaper_ones() -> None:
    found = tuning.settings_to_try(RenderSettings(steps=8, guidance=2.0), [torch.bfloat16])
    full, other, *rest, half = found
    assert full.config == other.config == half.config == GenerationConfig(steps=8)
    assert other.other_noise and half.dtype == torch.bfloat16
    assert not (other.tunable or half.tunable) and all(setting.tunable for setting in (full, *rest))
    assert len({setting.config for setting in rest}) == len(rest)
    assert {setting.config.steps for setting in rest} == {1, 2, 3, 4, 6, 8}
    assert {setting.config.guidance for setting in rest} == {1.0, 2.0}
    assert any(0 < setting.config.guided_steps < setting.config.steps for setting in rest)
    alone = tuning.settings_to_try(RenderSettings(steps=2, guidance=1.0))
    assert [setting.name for setting in alone] == ["full", "full, other noise", "1 steps"]


def test_smaller_images_are_tried_where_the_model_renders_them(untrained: Any, tmp_path: Path) -> None:
    assert tuning.smaller_sizes(untrained.renderer, editing=False) == [], "it has a positional embedding"
    renderer = ModelFolder(unplaced_copy(untrained.folder, tmp_path / "model")).load_renderer()
    assert tuning.smaller_sizes(renderer, editing=True) == []
    sizes = tuning.smaller_sizes(renderer, editing=False)
    assert sizes == [32]
    full, _, *rest = tuning.settings_to_try(RenderSettings(steps=2, guidance=2.0), sizes=sizes)
    assert full.config.size is None
    assert "2 steps, 32 px" in {setting.name for setting in rest}
    tried = {(one.config.steps, one.config.guidance, one.config.size) for one in rest}
    assert tried >= {(steps, guidance, 32) for steps in (1, 2) for guidance in (1.0, 2.0)}
    lines = tuning.overrides(next(one for one in rest if one.name == "1 steps, guidance 1, 32 px"))
    assert read_settings(compose_recipe("shapes", lines)).render.generation(full=False).size == 32


def test_the_cheapest_setting_that_agrees_is_chosen() -> None:
    rows = [
        measured("full", 1.0, 1.0),
        measured("other", 0.01, 1.0, other_noise=True),
        measured("half", 0.02, 1.0, dtype=torch.bfloat16),
        measured("good", 0.4, 0.96),
        measured("dearer and worse", 0.5, 0.95),
        measured("cheap", 0.1, 0.7),
    ]
    assert [one.setting.name for one in tuning.frontier(rows)] == ["cheap", "good", "full"]
    chosen = {wanted: tuning.cheapest(rows, wanted).setting.name for wanted in (0.5, 0.95, 0.97)}
    assert chosen == {0.5: "cheap", 0.95: "good", 0.97: "full"}


def test_a_file_of_overrides_stands_for_its_lines(tmp_path: Path) -> None:
    config = GenerationConfig(steps=3, guidance=2.0, guidance_interval=(0.25, 0.75))
    lines = tuning.overrides(Setting("some", config))
    file = tmp_path / "overrides.txt"
    file.write_text("\n".join(["# why", "", *lines]))
    expanded = with_files(["run.seed=2", f"@{file}"])
    assert expanded == ["run.seed=2", *lines]
    settings = read_settings(compose_recipe("shapes", expanded)).render
    assert settings.generation(full=False) == config
    assert settings.generation(full=True) == GenerationConfig(steps=8)
    everywhere = tuning.overrides(Setting("all", GenerationConfig(steps=3)))
    assert everywhere[-2:] == ["render.rollout_guidance_interval=null", "render.rollout_size=null"]
    with pytest.raises(UserError, match="override '@/nowhere': no such file"):
        with_files(["@/nowhere"])


def test_tune_render_writes_what_train_takes(
    untrained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = recipe(tmp_path, untrained.folder), tmp_path / "out"
    words = ["tune", "render", str(folder), "--prompts=2", "--agreement=0.5", "--backend=transformers", f"--out={out}"]
    assert cli.run(words) == 0
    printed = capsys.readouterr()
    assert "full, other noise" in printed.out
    assert re.search(r"^sampling\n(rendering and scoring \d+/\d+\n)+", printed.err, re.M), "says what it is at"
    found = json.loads((out / "tune_render.json").read_text())
    full, other = found["settings"][:2]
    assert (full["name"], full["cost"], full["ranking"], full["correlation"]) == ("full", 1, 1, pytest.approx(1))
    assert len(full["rewards"]) == found["images"] == 6
    assert other["rewards"] != full["rewards"], "other noise gives other images"
    assert (out / "tune_render.png").stat().st_size > 5000
    chosen = next(one for one in found["settings"] if one["name"] == found["chosen"])
    assert chosen["ranking"] >= 0.5
    settings = read_settings(compose_recipe(folder, with_files([f"@{out / 'overrides.txt'}"]))).render
    assert settings.generation(full=False).steps == chosen["steps"]
    assert settings.generation(full=False).guidance == chosen["guidance"]
    assert settings.generation(full=True) == GenerationConfig(steps=4)


def test_bench_step_adds_the_stages_of_the_recipe_up(
    untrained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "LIMIT_S", 0.01)
    folder, out = recipe(tmp_path, untrained.folder), tmp_path / "step.json"
    words = ["bench", "step", str(folder), "render.rollout_steps=1", "data.train_batch_size=1"]
    words += ["--backend=transformers", "--repetitions=1"]
    assert cli.run([*words, f"--out={out}"]) == 0
    assert f"{step.STEP}: the recipe's rollouts" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    seconds = {(row["stage"], row["procedure"]): row["median_s"] for row in rows}
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    assert stages == ["sample", "render", "score", step.LOG_PROBS, "update", step.ROLLOUT, step.STEP]
    parts = [seconds[stage, step.ANY if stage == "score" else step.ORIGINAL] for stage in stages[:-2]]
    assert seconds[step.STEP, step.ORIGINAL] == pytest.approx(sum(parts))
    assert seconds[step.ROLLOUT, step.RECIPE] == pytest.approx(
        seconds["sample", step.SAME] + seconds["render", step.RECIPE]
    )
    assert all(row["images"] == 3 for row in rows)
    assert (step.LOG_PROBS, step.RECIPE) not in seconds, "as many passes as with the same images"
    assert cli.run([*words, "algorithm.rollout_correction.bypass_mode=true", f"--out={tmp_path / 'bypass.json'}"]) == 0
    found = {
        (row["stage"], row["procedure"]): row.get("flops")
        for row in json.loads((tmp_path / "bypass.json").read_text())["rows"]
    }
    assert found[step.LOG_PROBS, step.RECIPE] * 2 == found[step.LOG_PROBS, step.SAME], "the reference's pass alone"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "tune render: no recipe given"),
        (["recipes/shapez"], "did you mean 'shapes'?"),
        (["FOLDER", "--prompts=9"], "--prompts 9: the recipe has 8; ask for at most as many"),
        (["FOLDER", "reward.rewards.brightness.service.replicas=1"], "is deployed by a run only"),
        (["FOLDER", "model.folder=/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, untrained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(recipe(tmp_path, untrained.folder))
    given = [folder if word == "FOLDER" else word for word in words]
    assert cli.run(["tune", "render", *given, f"--out={tmp_path / 'out'}"]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ") and "\n" not in printed and says in printed


def test_rewards_that_tell_nothing_apart_are_one_line(
    untrained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe(tmp_path, untrained.folder, "constant")
    words = ["tune", "render", str(folder), "--prompts=2", "--backend=transformers", f"--out={tmp_path / 'out'}"]
    assert cli.run(words) == 2
    assert "in each group all rewards are equal" in capsys.readouterr().err
