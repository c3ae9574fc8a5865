"""What is wrong with a run is said in one line, before a model is loaded."""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from editing import POLICY_ONLY, edit_row, editing_copy, text_copy, unplaced_copy, write_rows
from omegaconf import OmegaConf

from blip3o_rl import machine
from blip3o_rl.config.train import compose_recipe, read_settings
from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.report import checkpoints as report_checkpoints
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.training import checkpoints, given_cluster, launch, preflight

RECIPE = "recipes/shapes"
OUTPUT: Any = None
"""Not used before a run starts."""


@pytest.fixture
def model(untrained: Any) -> Path:
    return untrained.folder


@pytest.fixture
def refused(model: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """What `plan` says about some overrides; loading a weight would be an error of another kind."""

    def no_weights(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("load_policy", "load_renderer", "load_image_tokenizer"):
        monkeypatch.setattr(model_folder.ModelFolder, name, no_weights)

    def plan(*overrides: str) -> str:
        with pytest.raises(UserError) as error:
            launch.plan(RECIPE, ["device=cpu", f"model.folder={model}", *overrides])
        assert "\n" not in str(error.value)
        return str(error.value)

    return plan


def test_a_good_run_passes_without_loading_weights(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder.ModelFolder, "load_policy", None)
    config, checked = launch.plan(RECIPE, ["device=cpu", f"model.folder={model}"])
    assert checked.layout.tokens_per_image(config.model.scale) == 81
    assert len(checked.rows) == config.prompts.train


def test_gdpo_sets_verls_estimator_with_every_reward(model: Path) -> None:
    overrides = ["device=cpu", f"model.folder={model}", "reward.aggregation=gdpo"]
    overrides += ["reward.rewards.strict.name=geneval", "reward.rewards.strict.weight=0.25"]
    _, checked = launch.plan(RECIPE, overrides)
    assert checked.algorithm == {
        "adv_estimator": "group_gdpo",
        "gdpo_reward_weights": [1.0, 0.25],
    }
    assert launch.plan(RECIPE, overrides[:2])[1].algorithm == {}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.scale=3", "model.scale=3: must be less than or equal to 2"),
        ("model.folder=/nowhere", "/nowhere: no such folder"),
        ("run.folder=s3://bucket/run", "run.folder: is 's3://bucket/run', an address; give a path"),
        ("data.train_batch_size=0", "data.train_batch_size"),
        (
            "actor_rollout_ref.actor.ppo_mini_batch_size=3",
            "no multiple of actor_rollout_ref.actor.ppo_mini_batch_size=3",
        ),
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=24", "does not divide the 64 samples"),
        ("actor_rollout_ref.rollout.n=1", "rollout.n: is 1; GRPO compares samples"),
        ("trainer.n_gpus_per_node=3", "do not divide over 3 GPUs"),
        ("actor_rollout_ref.rollout.top_k=50", "rollout.top_k: is 50 and must stay -1"),
        ("trainer.total_training_steps=0", "must be greater than or equal to 1"),
        ("render.noise=group_of_two", "render.noise=group_of_two: must be 'group' or 'sample'"),
        ("render.steps=0", "render.steps"),
        ("data.max_prompt_length=20", "data.max_prompt_length is 20"),
        ("run.eval_prompts=100000", "eval.limit=100000: shapes has 98 held-out prompts"),
        ("trainer.logger=[file,wandbb]", "trainer.logger: there is no tracker wandbb; did you mean 'wandb'"),
        ("trainer.logger=[tensorboard]", "trainer.logger: file is missing"),
        ("trainer.logger=[file,swanlab]", "the tracker swanlab is not installed; pip install swanlab"),
        ("trainer.test_freq=5", "set by the launcher; see run.evaluate and eval.every"),
        ("actor_rollout_ref.rollout.enable_chunked_prefill=true", "must stay false"),
        ("trainer.v1.trainer_mode=separate_async", "must be 'sync'"),
        ("actor_rollout_ref.actor.checkpoint.save_contents=[model]", "hf_model is missing"),
        ("prompts.source=poems", "prompts.source=poems"),
        ("prompts.shares.position=-1", "prompts.shares.position=-1: must be greater than or equal to 0"),
        ("+prompts.shares.poems=1", "prompts.shares.poems: there is no such tag of shapes; known: single_object"),
        ("reward.aggregation=mean", "reward.aggregation=mean: must be 'weighted_sum' or 'gdpo'"),
        ("reward.rewards.geneval.only_if.beauty=0.5", "there is no such reward"),
        ("reward.rewards.geneval.only_for=[text]", "no reward is for tag 'single_object'"),
        ("reward.rewards.geneval.held_out=true", "never trained on"),
        ("reward.rewards.geneval.service.replica=2", "did you mean 'replicas'"),
        ("prompts.train=4", "4 prompts are fewer than data.train_batch_size=8"),
        ("reward.rewards.genval.weight=1", "did you mean"),
        ("reward.rewards.geneval.weight=heavy", "reward.rewards.geneval.weight"),
        ("reward.rewards.mine.path=nowhere.py:f", "nowhere.py"),
    ],
)
def test_a_bad_value_names_its_key(refused, override: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    assert expected in refused(override)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return float('nan')", "nan"),
        ("raise RuntimeError('no such font')", "no such font"),
        ("return 'good'", "str"),
    ],
)
def test_a_broken_reward_is_found_before_the_run(refused, tmp_path: Path, body: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "mine.py"
    file.write_text(f"def score(image, prompt):\n    {body}\n")
    text = refused(f"reward.rewards.mine.path={file}:score")
    assert "mine" in text
    assert expected in text


def test_rewards_that_were_checked_are_let_go(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher lives as long as the run, and a learned reward may have taken memory of a GPU."""
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(True))
    emptied: list[bool] = []
    (tmp_path / "mine.py").write_text(
        "import weakref\n"
        "LIVING = weakref.WeakSet()\n"
        "class Mine:\n"
        "    def __init__(self):\n        LIVING.add(self)\n"
        "    def setup(self):\n        self.weights = [0.5]\n"
        "    def score(self, samples):\n        return self.weights * len(samples)\n"
    )
    reward = f"reward.rewards.mine.path={tmp_path}/mine.py:Mine"
    gc.disable()
    try:
        launch.plan(RECIPE, ["device=cpu", f"model.folder={model}", reward])
    finally:
        gc.enable()
    (mine,) = [x for x in sys.modules.values() if getattr(x, "__file__", None) == str(tmp_path / "mine.py")]
    assert not mine.LIVING and emptied


def test_a_reward_that_returns_the_wrong_number_is_found(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "mine.py"
    file.write_text("def score(images):\n    return [0.5]\n")
    assert "1 scores for 2" in refused(f"reward.rewards.mine.path={file}:score")


def test_a_prompt_file_with_a_missing_field_is_named_by_line(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a photo of a circle", "tag": "single_object", "include": []}\n{"tag": "colors"}\n')
    assert f"{file}:" in refused(f"prompts.file={file}")
    assert "or set run.evaluate=false" in refused(f"prompts.file={good_prompts(tmp_path)}")  # one prompt, eight times


def good_prompts(folder: Path) -> Path:
    file = folder / "good.jsonl"
    line = '{"prompt": "a photo of a circle", "tag": "single_object", "include": [{"class": "circle", "count": 1}]}\n'
    file.write_text(line * 8)
    return file


def test_too_little_memory_is_said_before_anything_starts(refused, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine, "memory_gib", lambda: 2.0)
    assert "memory: 2.0 GiB free" in refused()


@pytest.mark.parametrize(
    ("overrides", "copies"),
    [
        (["hardware=1x80gb"], 1 + 1),
        (["hardware=1x40gb"], 1 + 2),
        (["hardware=1x40gb", "trainer.nnodes=4"], 0.25 + 1),
        (["hardware=1x40gb", "actor_rollout_ref.actor.fsdp_config.param_offload=true"], 1 + 3),
        (["hardware=8x80gb"], 1 + 8),
        (["hardware=1x80gb", "actor_rollout_ref.actor.use_kl_loss=false"], 1),
        (["hardware=1x40gb-lora", "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true"], 1),
    ],
)
def test_a_run_on_gpus_needs_main_memory_for_what_it_offloads(
    model: Path, tmp_path: Path, overrides: list[str], copies: float
) -> None:
    """The reference, and optimizer and weights where they are offloaded, or what the processes read at the start."""
    config = compose_recipe("text_3b", [f"model.folder={model}", "model.scale=2", *overrides])
    folder = model_folder.ModelFolder(model, *model_folder.GENERATING)
    wanted = preflight.needs(folder, config, read_settings(config), tmp_path)
    policy = machine.float32_gib(model / "policy")
    assert wanted.memory_gib - preflight.OVERHEAD_GIB == pytest.approx(copies * policy)


def test_too_little_disk_for_the_checkpoints_is_said_before_anything_starts(  # type: ignore[no-untyped-def]
    refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "disk_gib", lambda folder: 0.5)
    text = refused(f"run.folder={tmp_path}")
    assert text.startswith("disk: 0.5 GiB free, about") and f"below {tmp_path} for 3 checkpoints (trainer.max" in text


def test_the_disk_of_the_folder_where_runs_are_made_counts(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not what an unrelated run has left in the working directory."""
    asked: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    saved = tmp_path / "checkpoints" / "global_step_1"
    (saved / "actor").mkdir(parents=True)
    report_checkpoints.mark_complete(saved, 1)
    monkeypatch.setattr(machine, "disk_gib", lambda folder: asked.append(folder) or 0.5)
    for job, root in ((False, Path("runs")), (True, tmp_path / "home" / "blip3o-rl-runs")):
        monkeypatch.setattr(launch.given_cluster, "in_job", lambda job=job: job)
        with pytest.raises(UserError, match="for 3 checkpoints"):
            launch.plan("shapes", ["device=cpu", f"model.folder={model}"])
        assert asked.pop() == root


@pytest.mark.parametrize(
    ("overrides", "there", "expected"),
    [
        ([], 0, 3),
        (["trainer.save_freq=-1"], 0, 1),
        (["trainer.max_actor_ckpt_to_keep=1"], 0, 3),
        (["trainer.max_actor_ckpt_to_keep=null"], 0, 7),
        (["eval.every=0"], 0, 2),
        (["run.evaluate=false"], 0, 2),
        ([], 1, 2),
        ([], 3, 1),
    ],
)
def test_checkpoints_that_a_run_adds_to_its_disk(
    tmp_path: Path, overrides: list[str], there: int, expected: int
) -> None:
    for step in range(1, there + 1):
        saved = tmp_path / "checkpoints" / f"global_step_{step}"
        (saved / "actor").mkdir(parents=True)
        report_checkpoints.mark_complete(saved, step)
    steps = ["trainer.total_training_steps=60", "trainer.save_freq=10", f"run.folder={tmp_path}"]
    settings = read_settings(compose_recipe(RECIPE, ["device=cpu", *steps, *overrides]))
    assert preflight.checkpoints_to_come(settings) == expected


def test_a_gpu_run_is_refused_where_no_gpu_can_be_used(refused, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine, "device", lambda: "cpu")
    assert refused("device=gpu").startswith("device=gpu: no GPU can be used here")


def test_compiling_is_refused_without_a_compiler(refused, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert refused("render.compile=true").startswith("render.compile=true: no C++ compiler here; install g++")


def test_cpus_are_refused_where_vllm_samples_on_gpus_alone(refused, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(machine, "vllm_device", lambda: "cuda")
    assert refused().startswith("device=cpu: the installed vLLM samples on GPUs alone")


def test_gpus_of_a_cluster_are_refused_where_vllm_samples_on_cpus_alone(  # type: ignore[no-untyped-def]
    refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_cluster, "resources", lambda: [{"GPU": 8, "accelerator_type:H100": 1}])
    monkeypatch.setattr(machine, "vllm_device", lambda: "cpu")
    assert refused("device=gpu").startswith("device=gpu: the installed vLLM samples on CPUs alone; use an environment")


def test_verl_is_imported_for_the_device_of_the_run_and_not_of_the_head(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    def store(*_: object) -> None:
        raise Reached

    config, checked = launch.plan(RECIPE, ["device=cpu", f"model.folder={model}"])
    config.trainer.device = "cuda"
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    monkeypatch.setattr(launch.stored, "store", store)
    output: Any = SimpleNamespace(to=lambda file: None)
    with pytest.raises(Reached):
        launch._run(config, checked, RunFolder.create("shapes", path=tmp_path / "run"), output)
    assert launch.os.environ["VERL_PLATFORM"] == "nvidia"


@pytest.mark.parametrize(("device", "gpus", "expected"), [("cpu", 1, 1), ("gpu", 1, 1), ("gpu", 4, 4)])
def test_each_gpu_gets_a_process_for_rollouts_and_rewards(device: str, gpus: int, expected: int) -> None:
    config = compose_recipe(RECIPE, [f"trainer.n_gpus_per_node={gpus}"], device)
    assert config.actor_rollout_ref.rollout.agent.num_workers == expected
    chosen = compose_recipe(RECIPE, ["actor_rollout_ref.rollout.agent.num_workers=3"], device)
    assert chosen.actor_rollout_ref.rollout.agent.num_workers == 3


def test_verls_rollout_correction_is_offered() -> None:
    key = "algorithm.rollout_correction"
    config = compose_recipe(RECIPE, [f"{key}.rollout_is=token", f"{key}.rollout_is_threshold=2.0"])
    assert config.algorithm.rollout_correction.rollout_is == "token"
    with pytest.raises(UserError, match=f"{key}.rollout_is=tokens: must be 'token' or 'sequence'"):
        compose_recipe(RECIPE, [f"{key}.rollout_is=tokens"])


def test_a_run_to_resume_must_exist_and_have_steps_left(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        launch.resume(tmp_path / "gone", [], OUTPUT)
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    folder.append_metrics(1, {})
    with pytest.raises(UserError, match=r"config\.yaml: missing"):
        launch.resume(folder.path, [], OUTPUT)
    config, _ = launch.plan(RECIPE, ["device=cpu", f"model.folder={model}"])
    write_text(folder.config, OmegaConf.to_yaml(config))
    done = folder.checkpoints / "global_step_8"
    (done / "actor").mkdir(parents=True)
    checkpoints.mark_complete(done, 8)
    with pytest.raises(UserError, match=r"has made 8 steps, trainer\.total_training_steps=5; raise it"):
        launch.resume(folder.path, ["trainer.total_training_steps=5"], OUTPUT)


def test_rollouts_may_be_rendered_more_cheaply_than_the_evaluation() -> None:
    words = compose_recipe("words", [])
    assert (words.render.steps, words.render.guidance) == (8, 2.0)
    settings = read_settings(words).render
    assert settings.generation(full=False) == GenerationConfig(steps=2, guidance=1.0)
    assert settings.generation(full=True) == GenerationConfig(steps=8, guidance=2.0)
    some = read_settings(compose_recipe("shapes", ["render.rollout_guidance_interval=[0.3,0.8]"])).render
    assert some.generation(full=False) == GenerationConfig(steps=8, guidance_interval=(0.3, 0.8))
    assert some.generation(full=True) == GenerationConfig(steps=8)


def test_rollouts_are_as_large_as_the_model_can_render(refused, edits: Path, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "render.rollout_size=32: this model has a positional embedding for 64 px" in refused(
        "render.rollout_size=32"
    )
    unplaced = unplaced_copy(model, tmp_path / "unplaced")
    assert "render.rollout_size=30: must be a multiple of 8 pixels" in refused(
        f"model.folder={unplaced}", "render.rollout_size=30"
    )
    launch.plan(RECIPE, ["device=cpu", f"model.folder={unplaced}", "render.rollout_size=32"])
    editor = editing_copy(unplaced, tmp_path / "editor")
    text = refused(*with_edits(edits, f"model.folder={editor}", "render.rollout_size=32"))
    assert text == "render.rollout_size=32: edited images have the model's own size; leave it out"


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """A prompt file with an edit and text-to-image."""
    for seed in range(3):
        edit_row(tmp_path, "x", seed)
    lines = [{"prompt": "make it red", "references": [f"{seed}.png"]} for seed in range(3)]
    (tmp_path / "mine.py").write_text("def score(sample): return float(len(sample.references))\n")
    return write_rows(tmp_path / "edits.jsonl", {"prompt": "a circle"}, *lines)


def with_edits(file: Path, *overrides: str) -> list[str]:
    """A run on the file with the reward next to it."""
    reward = f"reward.rewards.mine.path={file.parent / 'mine.py'}:score"
    small = ["run.evaluate=false", "data.train_batch_size=4", "actor_rollout_ref.rollout.n=2"]
    return [f"prompts.file={file}", "~reward.rewards.geneval", reward, *small, *overrides]


def test_references_need_a_model_that_can_edit(refused, edits: Path, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = refused(*with_edits(edits, f"model.folder={text_copy(model, tmp_path / 'text')}"))
    assert text.startswith(
        f"{edits}:2: has references, and model folder {tmp_path / 'text'}: has no renderer/reference"
    )
    editor = editing_copy(model, tmp_path / "editor")
    shutil.rmtree(editor / "image_tokenizer")
    assert "image_tokenizer/config.json: missing" in refused(*with_edits(edits, f"model.folder={editor}"))


def test_a_model_that_takes_one_reference_gets_one(refused, edits: Path, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with edits.open("a") as file:
        file.write('{"prompt": "put it in", "references": ["0.png", "1.png"]}\n')
    editor = editing_copy(model, tmp_path / "editor")
    text = refused(*with_edits(edits, f"model.folder={editor}"))
    assert f"{edits}:5: " in text and "2 reference images for one prompt, this model takes 1" in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.max_prompt_length=100"], "tokens with the chat and its references, data.max_prompt_length is 100"),
        (["model.scale=0"], "data.max_prompt_length is 256; set it to 7"),
        (["model.scale=0", "data.max_prompt_length=1400"], "more than the policy's 2048 positions; set it to 1318 or"),
    ],
)
def test_an_edit_must_fit(
    refused,
    edits: Path,
    model: Path,
    tmp_path: Path,
    overrides: list[str],
    expected: str,  # type: ignore[no-untyped-def]
) -> None:
    editor = editing_copy(model, tmp_path / "editor", **POLICY_ONLY)
    assert expected in refused(*with_edits(edits, f"model.folder={editor}", *overrides))


def test_a_mixed_file_passes_without_loading_weights(
    edits: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load_policy", "load_renderer", "load_image_tokenizer"):
        monkeypatch.setattr(model_folder.ModelFolder, name, None)
    editor = editing_copy(model, tmp_path / "editor", **POLICY_ONLY)
    _, checked = launch.plan(RECIPE, ["device=cpu", *with_edits(edits, f"model.folder={editor}")])
    assert checked.editing and [len(row.references) for row in checked.rows] == [0, 1, 1, 1]
    _, checked = launch.plan(RECIPE, ["device=cpu", f"model.folder={editor}"])
    assert not checked.editing
