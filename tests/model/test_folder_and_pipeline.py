"""The model folder keeps what it is given, refuses what is incomplete; the pipeline is seeded and right in batches."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.folder import GENERATING, ModelFolder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.policy import image_logits

TWO_STEPS = GenerationConfig(scale=2, steps=2)
PROMPTS = ["a photo of a red circle", "a photo of two squares"]


@pytest.fixture
def pipe(untrained: Any) -> Blip3oPipeline:
    return Blip3oPipeline(untrained.policy, untrained.tokenizer, untrained.renderer)


@pytest.fixture
def saved(untrained: Any) -> Path:
    return untrained.folder


def test_a_folder_round_trips(pipe: Blip3oPipeline, saved: Path) -> None:
    policy = ModelFolder(saved).load_policy()
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in pipe.policy.state_dict().items())
    renderer = ModelFolder(saved).load_renderer()
    assert all(torch.equal(value, renderer.state_dict()[name]) for name, value in pipe.renderer.state_dict().items())
    assert ModelFolder(saved).layout == pipe.layout
    again = Blip3oPipeline.from_pretrained(saved)
    first, second = (
        pipe(PROMPTS, [3, 4], TWO_STEPS),
        again(PROMPTS, [3, 4], TWO_STEPS),
    )
    assert torch.equal(first.tokens, second.tokens)
    difference = np.abs(first.images.astype(int) - second.images)
    assert difference.max() <= 1, "loaded weights lie elsewhere in memory, which may round the last bit"


@pytest.mark.parametrize(("name", "latents"), [("mini", False), ("mini-edits", True)])
def test_the_packaged_models_are_complete_and_edit(name: str, latents: bool) -> None:
    """A file that git leaves out would be missed here."""
    folder = ModelFolder(name, *model_folder.PARTS)
    folder.check_editing()
    assert set(folder.index["parts"]) == {*model_folder.PARTS, "renderer/reference_connector"}
    uses = folder.load_renderer().reference_connector
    assert uses is not None and uses.config.noise_injection is uses.config.cross_attention is latents
    assert '"/' not in "".join(file.read_text() for file in folder.path.rglob("*config.json")), "a path of a machine"
    package_data = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert f"{folder.path.name}/**/*" in package_data["package-data"]["blip3o_rl.mini"]


def test_no_path_of_this_machine_is_written(saved: Path, pipe: Blip3oPipeline, tmp_path: Path) -> None:
    renderer = ModelFolder(saved).load_renderer()
    again = model_folder.save(
        tmp_path / "again", policy=pipe.policy, tokenizer=pipe.tokenizer, renderer=renderer, source="test"
    )
    assert not [file for file in again.rglob("*.json") if str(saved) in file.read_text()]


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ("model_index.json", "not a complete model folder"),
        ("policy/config.json", "policy/config.json: missing"),
        ("renderer/vae/config.json", "vae/config.json: missing"),
        ("renderer/connector/diffusion_pytorch_model.safetensors", "connector: no .safetensors file"),
    ],
)
def test_a_missing_part_is_named(saved: Path, tmp_path: Path, part: str, match: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    (broken / part).unlink()
    with pytest.raises(UserError, match=match):
        ModelFolder(broken, *GENERATING)


@pytest.mark.parametrize("size", [0, 7, 2000, -1])
def test_a_copy_that_was_cut_short_is_named(saved: Path, tmp_path: Path, size: int) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    weights = broken / "renderer" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(UserError, match=r"vae/diffusion_pytorch_model\.safetensors: truncated.*; copy the model again"):
        ModelFolder(broken, *GENERATING)


def test_a_home_of_nobody_is_no_folder() -> None:
    with pytest.raises(UserError, match="model folder ~nobody-here/model: no such folder"):
        ModelFolder("~nobody-here/model")


def test_same_seed_same_image_other_seed_another(pipe: Blip3oPipeline) -> None:
    a, b = (
        pipe(PROMPTS[:1] * 2, [7, 8], TWO_STEPS),
        pipe(PROMPTS[:1] * 2, [7, 8], TWO_STEPS),
    )
    assert torch.equal(a.tokens, b.tokens)
    # Buffers at other addresses may take other kernels, whose rounding moves a grey level.
    assert np.abs(a.images.astype(int) - b.images).max() <= 1
    assert not torch.equal(a.tokens[0], a.tokens[1])


def test_a_left_padded_batch_gives_the_states_of_single_prompts(pipe: Blip3oPipeline) -> None:
    long = [PROMPTS[0], "a photo of a very long prompt " * 3]
    together = pipe.sampler(pipe.prompt_ids(long, 2), [1, 2], GenerationConfig(scale=2))
    for row, prompt in enumerate(long):
        alone = pipe.sampler(pipe.prompt_ids([prompt], 2), [row + 1], GenerationConfig(scale=2))
        assert torch.equal(alone[0][0], together[0][row])
        torch.testing.assert_close(alone[1][0], together[1][row], atol=1e-4, rtol=0)


def test_states_are_those_of_a_plain_forward_with_the_scale_token_first(pipe: Blip3oPipeline) -> None:
    tokens, states = pipe.sampler(pipe.prompt_ids(PROMPTS[:1], 2), [1], GenerationConfig(scale=2))
    ids = torch.cat([torch.tensor(pipe.prompt_ids(PROMPTS[:1], 2)), tokens], dim=1)
    with torch.inference_mode():
        expected = pipe.policy.model(ids).last_hidden_state[:, -82:]
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=0)


def test_image_log_probs_equal_a_masked_full_softmax(pipe: Blip3oPipeline) -> None:
    hidden = torch.randn(5, pipe.policy.config.hidden_size)
    full = pipe.policy.lm_head(hidden)
    masked = torch.full_like(full, float("-inf"))
    image = slice(pipe.layout.image_ids.start, pipe.layout.image_ids.stop)
    masked[:, image] = full[:, image]
    found = image_logits(pipe.policy, hidden).log_softmax(-1)
    torch.testing.assert_close(found, masked.log_softmax(-1)[:, image], atol=1e-5, rtol=0)


def test_the_trainers_forward_returns_those_logits(pipe: Blip3oPipeline) -> None:
    ids = torch.tensor(pipe.prompt_ids(PROMPTS[:1], 2))
    full = pipe.policy(ids).logits
    pipe.policy.image_vocabulary_only = True
    try:
        found = pipe.policy(ids).logits
    finally:
        del pipe.policy.image_vocabulary_only
    image = slice(pipe.layout.image_ids.start, pipe.layout.image_ids.stop)
    torch.testing.assert_close(found, full[..., image], atol=1e-5, rtol=0)


def test_prompts_without_seeds_are_refused(pipe: Blip3oPipeline) -> None:
    with pytest.raises(UserError, match="2 images and 1 seeds"):
        pipe(PROMPTS, [1])
