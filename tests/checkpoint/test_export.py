"""What was imported is exported again byte for byte; other software loads what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, SanaPipeline
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from blip3o_rl.checkpoint import export as module
from blip3o_rl.checkpoint import staging
from blip3o_rl.checkpoint.convert import convert, keep_origin
from blip3o_rl.checkpoint.export import export
from blip3o_rl.checkpoint.model_card import Training
from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.rendering import initial_noise, render
from blip3o_rl.sft.model import editing_renderer


@pytest.fixture
def converted(upstream: Callable, tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    def make(**settings: Any) -> tuple[Any, Path]:
        checkpoint = upstream(**settings)
        convert(checkpoint.folder, tmp_path / "model")
        return checkpoint, tmp_path / "model"

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {"shards": 3, "editing": True},
        {"shards": 1, "lm_head": "absent", "dtype": torch.float16},
        {"shards": 2, "lm_head": "separate", "dtype": torch.float32},
        {"tower": False},
    ],
)
def test_an_upstream_checkpoint_comes_back_with_the_same_bytes(
    converted: Callable, tmp_path: Path, settings: dict[str, Any]
) -> None:
    checkpoint, folder = converted(**settings)
    out = export(folder, tmp_path / "out", "upstream")
    assert [file.name for file in sorted(out.glob("*.safetensors"))] == [file.name for file in checkpoint.files]
    for file in checkpoint.files:
        assert (out / file.name).read_bytes() == file.read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (checkpoint.folder / name).read_bytes()
    assert json.loads((out / "config.json").read_text()) == json.loads((checkpoint.folder / "config.json").read_text())
    index = "model.safetensors.index.json"
    if settings.get("shards", 1) > 1:
        assert json.loads((out / index).read_text()) == json.loads((checkpoint.folder / index).read_text())
    else:
        assert not (out / index).exists()


def test_an_export_converts_again_without_further_configs(converted: Callable, tmp_path: Path) -> None:
    _, folder = converted(shards=2, editing=True)
    convert(export(folder, tmp_path / "out", "upstream"), tmp_path / "again")
    for file in folder.rglob("*.safetensors"):
        assert (tmp_path / "again" / file.relative_to(folder)).read_bytes() == file.read_bytes()


def train_a_little(folder: Path, target: Path) -> Path:
    """A model folder as a run writes it: another policy, the frozen parts copied, the origin kept."""
    policy = model_folder.ModelFolder(folder).load_policy()
    with torch.no_grad():
        for value in policy.parameters():
            value.add_(0.5)
    model_folder.save(
        target,
        policy=policy,
        tokenizer=model_folder.ModelFolder(folder).load_tokenizer(),
        renderer=folder / "renderer",
        image_tokenizer=folder / "image_tokenizer",
        source="run/global_step_3",
    )
    keep_origin(folder, target)
    return target


@pytest.mark.parametrize("lm_head", ["copy", "absent", "separate"])
def test_trained_weights_go_back_under_upstream_keys(converted: Callable, tmp_path: Path, lm_head: str) -> None:
    checkpoint, folder = converted(shards=2, lm_head=lm_head)
    trained = train_a_little(folder, tmp_path / "trained")
    out = export(trained, tmp_path / "out", "upstream")
    before = checkpoint.tensors()
    after = {name: value for file in out.glob("*.safetensors") for name, value in load_file(file).items()}
    assert set(after) == set(before)
    policy = model_folder.ModelFolder(trained).load_policy().state_dict()
    for name, value in after.items():
        if name in policy:
            assert value.dtype == torch.float32 and torch.equal(value, policy[name])
        else:
            assert torch.equal(value, before[name])
    assert ("lm_head.weight" in after) == (lm_head != "absent")
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize("mode", ["tokens", "latents"])
@pytest.mark.parametrize("shards", [1, 2])
def test_what_was_learned_after_the_conversion_goes_back_too(
    converted: Callable, tmp_path: Path, shards: int, mode: str
) -> None:
    """A second connector, its flags, and system prompts per task: a conversion of the export has them again."""
    _, folder = converted(shards=shards)
    base = model_folder.ModelFolder(folder)
    policy, renderer = base.load_policy(), editing_renderer(base.load_renderer(), mode, 1)
    policy.config.update({"system_prompts": {"edit": "Change it."}})
    trained = model_folder.save(
        tmp_path / "trained",
        policy=policy,
        tokenizer=base.load_tokenizer(),
        renderer=renderer,
        image_tokenizer=folder / "image_tokenizer",
        source="run",
    )
    keep_origin(folder, trained)
    convert(export(trained, tmp_path / "out", "upstream"), tmp_path / "again")
    again = model_folder.ModelFolder(tmp_path / "again")
    assert again.layout == model_folder.ModelFolder(trained).layout and again.layout.system_prompts.edit == "Change it."
    connector, expected = again.load_renderer().editing_connector(), renderer.editing_connector()
    for use in ("cross_attention", "noise_injection"):
        assert connector.config[use] == expected.config[use] == (mode == "latents")
    assert all(torch.equal(value, connector.state_dict()[name]) for name, value in expected.state_dict().items())


def test_a_folder_that_was_never_upstream_gets_its_terms(tmp_path: Path) -> None:
    out = export("mini", tmp_path / "out", "upstream")
    fields = json.loads((out / "config.json").read_text())
    mini = model_folder.ModelFolder("mini").load_policy().config
    for name in ("hidden_size", "vocab_size", "image_start_tag_id", "scale_start_token_id", "image_start_token_id"):
        assert fields[name] == getattr(mini, name)
    assert fields["rope_theta"] == 1e6 and fields["rope_scaling"] is None and fields["torch_dtype"] == "float16"
    assert "mm_vision_tower" in fields and fields["tie_word_embeddings"] is True
    convert(out, tmp_path / "again")
    packaged = model_folder.resolve("mini")
    for file in packaged.rglob("*.safetensors"):
        again = load_file(tmp_path / "again" / file.relative_to(packaged))
        assert all(torch.equal(value, again[name]) for name, value in load_file(file).items())


def test_shards_are_bounded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 2_000_000)
    out = export("mini", tmp_path / "out", "upstream")
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 4 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    places = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert {name: file.name for file in files for name in load_file(file)} == places
    convert(out, tmp_path / "again")


def test_the_policy_is_a_plain_transformers_folder(converted: Callable, tmp_path: Path) -> None:
    _, folder = converted(dtype=torch.float32)
    out = export(folder, tmp_path / "out", "policy")
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert type(plain) is Qwen3ForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([tokenizer("a photo of <I3>")["input_ids"]])
    own = model_folder.ModelFolder(folder).load_policy()
    assert ids[0, -1] == own.layout.to_ids(torch.tensor(3))
    assert torch.equal(plain(ids).logits, own(ids).logits)


def test_diffusers_renders_what_the_renderer_renders(converted: Callable, tmp_path: Path) -> None:
    _, folder = converted(dtype=torch.float32)
    out = export(folder, tmp_path / "out", "diffusers")
    pipe = DiffusionPipeline.from_pretrained(out, text_encoder=None, tokenizer=None)
    assert type(pipe) is SanaPipeline
    renderer = model_folder.ModelFolder(folder).load_renderer()
    states, seeds, steps = torch.randn(2, 82, 64), [3, 4], 3
    with torch.no_grad():
        condition, null = renderer.condition(states), renderer.null_condition(82).expand(2, -1, -1)
    ones = torch.ones(2, 82)
    pipe.set_progress_bar_config(disable=True)
    rendered = pipe(
        prompt_embeds=condition, prompt_attention_mask=ones, negative_prompt_embeds=null,
        negative_prompt_attention_mask=ones, negative_prompt=None, latents=initial_noise(renderer, seeds),
        sigmas=[1 - i / steps for i in range(steps)], num_inference_steps=steps, guidance_scale=2.0,
        height=64, width=64, use_resolution_binning=False, output_type="np",
    ).images  # fmt: skip
    expected = render(renderer, states, seeds, GenerationConfig(steps=steps))
    assert np.abs(rendered * 255 - expected).max() <= 1.01
    policy = AutoModelForCausalLM.from_pretrained(out / "policy")
    assert type(policy) is Qwen3ForCausalLM and (out / "connector" / "config.json").is_file()


@pytest.mark.parametrize("layout", ["upstream", "diffusers", "policy"])
def test_every_export_has_a_card(converted: Callable, upstream: Callable, tmp_path: Path, layout: str) -> None:
    _, folder = converted()
    (folder / "upstream" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# base\n")
    training = Training("shelves-1", 40, {"geneval": 1.0, "ocr": 0.5}, {"Score": "0.40 before, 0.50 after"})
    text = (export(folder, tmp_path / "out", layout, training) / "README.md").read_text()
    assert text.startswith("---\nlicense: cc-by-4.0\n")
    for words in ("# shelves-1", "40 steps", "geneval (weight 1), ocr (weight 0.5)", "Score: 0.40 before", "upstream0",
                  "inherited from the base model", "NVIDIA", "## Known failure modes", "## Use"):  # fmt: skip
        assert words in text
    assert str(tmp_path) not in text


def test_a_card_claims_no_license_that_nobody_gave(converted: Callable, tmp_path: Path) -> None:
    _, folder = converted()
    text = (export(folder, tmp_path / "out", "policy") / "README.md").read_text()
    assert "license: other\nlicense_name: see-base-model" in text
    assert "No training by blip3o-rl is recorded" in text
    for name in model_folder.PACKAGED:
        own = (export(name, tmp_path / name, "policy") / "README.md").read_text()
        assert "license: apache-2.0" in own and "NVIDIA" not in own


@pytest.mark.parametrize("layout", ["upstream", "diffusers", "policy"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch, layout: str) -> None:
    monkeypatch.setattr(staging, "RESERVE", 10**18)
    with pytest.raises(UserError, match="are free on its disk"):
        export("mini", tmp_path / "out", layout)
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_one_error(converted: Callable, tmp_path: Path) -> None:
    _, folder = converted()
    with pytest.raises(UserError, match="format gguf: there is no such format"):
        export(folder, tmp_path / "out", "gguf")
    with pytest.raises(UserError, match="exists and is not empty"):
        export(folder, folder, "policy")
    (folder / "upstream" / "unused.safetensors").unlink()
    with pytest.raises(UserError, match=r"decoder\.vision_model.* missing, which .*layout\.json lists"):
        export(folder, tmp_path / "out", "upstream")
    assert not (tmp_path / "out").exists()


def test_the_origin_survives_two_trainings(converted: Callable, tmp_path: Path) -> None:
    _, folder = converted()
    once = train_a_little(folder, tmp_path / "once")
    index = json.loads((train_a_little(once, tmp_path / "twice") / "model_index.json").read_text())
    assert index["base"] == "upstream0" and index["converted"]["source"] == "upstream0"
    assert index["source"] == "run/global_step_3" and "sha256" not in index["converted"]
    assert model_folder.ModelFolder(tmp_path / "twice", *model_folder.PARTS)
