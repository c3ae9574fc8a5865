"""The stages of `bench gpu` at tiny size, on whatever is here, and how they are run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blip3o_rl.cli import main as cli
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.model.token_layout import encode_prompt
from blip3o_rl.training.gpu_check import model as random_model
from blip3o_rl.training.gpu_check import runner, stages
from blip3o_rl.training.planning import plan


def test_every_stage_says_what_it_does_and_how_long() -> None:
    assert list(runner.EXPECTED_S) == list(stages.STAGES)
    assert all(function.__doc__ for function in stages.STAGES.values())


def test_a_check_on_a_gpu_ends_in_its_25_minutes() -> None:
    """The tests before the stages count; 512 images are left out when time is short."""
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    (tests_s,), (minutes,) = (re.findall(text, makefile) for text in (r"timeout (\d+) ", r"bench gpu --minutes (\S+)"))
    assert int(tests_s) + 60 * float(minutes) <= runner.BUDGET_S == 25 * 60
    assert sum(runner.EXPECTED_S.values()) - runner.EXPECTED_S["train-512"] <= 60 * float(minutes)


def test_rates_stand_next_to_what_the_gpu_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stages._of_bound("images_per_s", 2.0, lambda gpu: 8.0) == {"images_per_s": 2.0}
    monkeypatch.setattr(stages, "_device", lambda: "cuda")
    for name, rate in (("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA A100-SXM4-40GB", 312.0)):
        monkeypatch.setattr(stages.torch.cuda, "get_device_name", lambda name=name: name)
        assert stages._of_bound("images_per_s", 2.0, lambda gpu: gpu.tflops) == {
            "images_per_s": 2.0, "images_per_s_bound": rate, "images_per_s_share": 2.0 / rate,
        }  # fmt: skip
    monkeypatch.setattr(stages.torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert stages._of_bound("images_per_s", 2.0, lambda gpu: gpu.tflops) == {"images_per_s": 2.0}


def test_without_a_gpu_it_says_what_it_would_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "gpu_name", lambda: None)
    assert cli.run(["bench", "gpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("no GPU here") and all(f"  {name} " in shown for name in stages.STAGES)
    assert cli.run(["bench", "gpu", "rendr"]) == 2
    assert "did you mean 'render'" in capsys.readouterr().err


def test_what_was_measured_is_kept_when_a_later_stage_fails_or_time_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def run_stage(name: str, size: str, work: Path, limit_s: float) -> dict[str, Any]:
        file = tmp_path / "results" / "nvidia-h100-80gb-hbm3.json"
        seen.append(json.loads(file.read_text())["stages"] if file.is_file() else {})
        return {"status": "failed: out of memory" if name == "capture" else "ok", "seconds": 1.0}

    monkeypatch.setattr(runner, "gpu_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(runner, "run_stage", run_stage)
    monkeypatch.setitem(runner.EXPECTED_S, "train-512", 10**6)
    file = runner.check(["capture", "render", "train-512"], "full", tmp_path / "results", tmp_path / "work", str)
    assert [list(stages) for stages in seen] == [[], ["model"], ["model", "capture"]]
    found = json.loads(file.read_text())
    assert found["device"] == "NVIDIA H100 80GB HBM3" and "torch" in found["versions"]
    assert {name: stage["status"].split(":")[0] for name, stage in found["stages"].items()} == {
        "model": "ok", "capture": "failed", "render": "ok", "train-512": "left out",
    }  # fmt: skip


def test_a_later_check_adds_its_stages_and_makes_no_second_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run_stage(name: str, size: str, work: Path, limit_s: float) -> dict[str, Any]:
        ran.append(name)
        (work / stages.MODEL_FILE).write_text("{}")
        return {"status": "ok", "seconds": float(len(ran))}

    def check(*names: str) -> dict[str, float]:
        file = runner.check(list(names), "tiny", tmp_path, tmp_path / "work", str)
        return {name: stage["seconds"] for name, stage in json.loads(file.read_text())["stages"].items()}

    monkeypatch.setattr(runner, "run_stage", run_stage)
    assert check("render") == {"model": 1, "render": 2}
    assert check("capture", "render") == {"model": 1, "render": 4, "capture": 3}
    monkeypatch.setitem(runner.EXPECTED_S, "render", 10**6)  # no time: what was measured stays
    assert check("render") == {"model": 1, "render": 4, "capture": 3}
    monkeypatch.setattr(runner, "PACKAGES", ("verl",))  # other versions: what they measured is not mixed
    assert check("capture") == {"capture": 5}


def test_a_run_that_its_limit_ends_leaves_what_its_finished_steps_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"step": 1, "rollout/score": 0.5, "rollout/sample_s": 5.7},
        {"step": 1, "timing_s/step": 47.3, "actor/perf/max_memory_allocated_gb": 34.6, "critic/score/max": 0.5},
        {"step": 2, "rollout/score": 0.4, "rollout/sample_s": 2.0},  # sampled, and not trained
    ]
    run = tmp_path / "runs" / "train-16"

    class Endless:
        """Stands for the stage's process, which has finished one step when its limit comes."""

        pid = 2**30  # of no process

        def __init__(self, *_: object, **__: object) -> None:
            assert not run.exists(), "an earlier run is taken for this one's"
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            self.code: int | None = None

        def wait(self, timeout: float | None = None) -> None:
            if timeout is not None:
                raise subprocess.TimeoutExpired("stage", timeout)

        def poll(self) -> int | None:
            return self.code

    (run / "logs").mkdir(parents=True)  # of an earlier check
    monkeypatch.setattr(runner, "gpu_name", lambda: None)
    monkeypatch.setattr(runner.subprocess, "Popen", Endless)
    found = runner.run_stage("train-16", "tiny", tmp_path, limit_s=1)
    assert (found["status"], found["steps"]) == ("ended by its limit", 1)
    assert found["last_step"] == {
        "rollout/score": 0.5, "rollout/sample_s": 5.7, "timing_s/step": 47.3,
        "actor/perf/max_memory_allocated_gb": 34.6,
    }  # fmt: skip


def test_nothing_follows_a_model_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_stage", lambda *_: {"status": "failed: no space"})
    file = runner.check(["render"], "tiny", tmp_path, tmp_path, str)
    assert list(json.loads(file.read_text())["stages"]) == ["model"]


@pytest.mark.slow
def test_a_stage_is_a_process_whose_end_is_told(tmp_path: Path) -> None:
    failed = runner.run_stage("render", "tiny", tmp_path, limit_s=300)
    assert failed["status"].startswith("failed: ") and "model_folder.json" in failed["status"]
    assert runner.run_stage("model", "tiny", tmp_path, limit_s=0.01)["status"] == "ended by its limit"


def test_a_random_model_is_a_model_folder_with_the_ids_of_its_layout(tmp_path: Path) -> None:
    mini = plan.of_folder("mini")
    fields, more = mini.policy.to_dict(), 5000  # text tokens that no text has
    fields["vocab_size"] += more
    for name in ("image_start_tag_id", "image_end_tag_id", "scale_start_token_id", "image_start_token_id"):
        fields[name] += more
    model = plan.Model(type(mini.policy).from_dict(fields), mini.transformer, mini.vae)
    folder = random_model.write_random(tmp_path / "model", model, "cpu")
    parts = ModelFolder(folder, "policy", "renderer")
    layout = parts.layout
    assert layout.image_start_token_id == ModelFolder("mini").layout.image_start_token_id + more
    assert encode_prompt(parts.load_tokenizer(), "a dog", 2, layout)[-1] == layout.scale_token_id(2)
    policy, renderer = parts.load_policy(), parts.load_renderer()
    assert sum(p.numel() for p in policy.parameters()) + sum(p.numel() for p in renderer.parameters()) == sum(
        plan.counting.parameters(model)
    )


@pytest.mark.slow
def test_capture_and_rendering_at_tiny_size(tmp_path: Path) -> None:
    """A minute: a vLLM engine."""
    file = runner.check(["capture", "render"], "tiny", tmp_path / "results", tmp_path / "work", print)
    found = json.loads(file.read_text())["stages"]
    assert {name: stage["status"] for name, stage in found.items()} == dict.fromkeys(
        ("model", "capture", "render"), "ok"
    )
    assert found["capture"]["states_relative_difference"] < 1e-4
    assert found["render"]["images_per_s"] > 0


@pytest.mark.long
def test_generation_at_tiny_size(tmp_path: Path) -> None:
    file = runner.check(["generate"], "tiny", tmp_path / "results", tmp_path / "work", print)
    generate = json.loads(file.read_text())["stages"]["generate"]
    assert (generate["status"], generate["images"]) == ("ok", 2)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("stage", ["train-16", "train-lora"])
def test_training_at_tiny_size(stage: str, tmp_path: Path) -> None:
    """Three minutes each: a training run of two steps."""
    file = runner.check([stage], "tiny", tmp_path / "results", tmp_path / "work", print, budget_s=3600)
    found = json.loads(file.read_text())["stages"][stage]
    assert found["status"] == "ok"
    assert found["last_step"]["timing_s/step"] > 0
    assert found["last_step"]["rollout/probs_diff"] < 1e-4
    assert set(found["planned_gib"]) == {"rollout", "log-probs", "update"}


def test_a_command_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"blip3o-rl generate ended with 2: error: .*no such folder.*run\.log"):
        stages._command(["generate", "a dog", "--model=/nowhere"], tmp_path / "run.log")
