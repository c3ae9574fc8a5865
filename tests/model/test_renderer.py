from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts
from blip3o_rl.model import renderer as renderer_module
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.renderer import Connector, Renderer
from blip3o_rl.model.rendering import initial_noise, render, sigmas


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    torch.manual_seed(0)
    vae = parts.make_vae()
    vae.register_to_config(scaling_factor=0.5)
    return parts.make_renderer(vae).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    return torch.randn(3, 82, parts.HIDDEN, generator=torch.Generator().manual_seed(1))


def test_save_and_load_render_the_same(renderer: Renderer, states: torch.Tensor, tmp_path: Path) -> None:
    renderer.save_pretrained(tmp_path)
    loaded = Renderer.from_pretrained(tmp_path)
    assert loaded.vae.config.scaling_factor == 0.5
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in renderer.state_dict().items())
    config = GenerationConfig(steps=2)
    images, again = (render(one, states, [1, 2, 3], config) for one in (renderer, loaded))
    assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
    # Equal weights at other addresses in memory: alignment chooses other kernels, whose rounding may move a grey level.
    assert np.abs(images.astype(int) - again).max() <= 1


def test_noise_follows_its_seed_whatever_the_batch(renderer: Renderer) -> None:
    together, alone = initial_noise(renderer, [7, 8, 7]), initial_noise(renderer, [8])
    assert together.dtype == torch.float32 and together.shape == (3, 8, 8, 8)
    assert torch.equal(together[0], together[2]) and torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])


def test_null_condition_is_the_connector_of_zeros(renderer: Renderer) -> None:
    expected = renderer.connector.layers(torch.zeros(1, 5, parts.HIDDEN))
    assert torch.allclose(renderer.null_condition(5), expected, atol=1e-6)
    assert renderer.null_condition().abs().max() > 0.1


def test_one_null_row_stands_for_many(renderer: Renderer) -> None:
    x = initial_noise(renderer, [1, 2])
    one = renderer.predict(x, 0.7, renderer.null_condition(1))
    many = renderer.predict(x, 0.7, renderer.null_condition(82))
    assert torch.allclose(one, many, atol=1e-5)


def test_sigmas() -> None:
    assert sigmas(4).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert sigmas(1).tolist() == [1, 0]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 30, 30))
    assert torch.allclose(sigmas(30), scheduler.sigmas, atol=1e-6)
    with pytest.raises(UserError, match="steps=0"):
        GenerationConfig(steps=0)


def test_guidance_formula(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def predict(x: torch.Tensor, sigma: float, condition: torch.Tensor) -> torch.Tensor:
        calls.append(float(condition))
        return x * condition

    monkeypatch.setattr(renderer, "predict", predict)
    x, condition, null = torch.ones(1), torch.tensor(5.0), torch.tensor(3.0)
    assert renderer.velocity(x, 1.0, condition, null, guidance=2.0).item() == 7.0
    assert renderer.velocity(x, 1.0, condition, null, guidance=0.0).item() == 3.0
    calls.clear()
    assert renderer.velocity(x, 1.0, condition, null, guidance=1.0).item() == 5.0
    assert calls == [5.0]


def test_timestep_is_a_thousand_sigmas(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    original = renderer.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(renderer.transformer, "forward", forward)
    renderer.predict(initial_noise(renderer, [1, 2]), torch.tensor([0.25, 1.0]), renderer.null_condition())
    assert seen["timestep"].tolist() == [250.0, 1000.0]


def test_decode_divides_by_the_scaling_factor(renderer: Renderer) -> None:
    latents = initial_noise(renderer, [3])
    expected = renderer.vae.decode(latents * 2).sample
    expected = ((expected / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    # Two passes may round a value that lies between two grey levels differently.
    assert (renderer.decode(latents).float() - expected).abs().max() <= 1


def test_large_images_are_decoded_a_few_at_a_time(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, together = initial_noise(renderer, list(range(5))), []
    expected = renderer.decode(latents)
    decode = renderer.vae.decode
    monkeypatch.setattr(renderer_module, "DECODE_PIXELS", 2 * 64 * 64)
    monkeypatch.setattr(renderer.vae, "decode", lambda chunk: together.append(len(chunk)) or decode(chunk))
    found = renderer.decode(latents)
    assert together == [2, 2, 1]
    assert (found.int() - expected.int()).abs().max() <= 1, "another batch rounds differently by a grey level at most"


def test_render_equals_the_upstream_loop(renderer: Renderer, states: torch.Tensor) -> None:
    """Both guidance branches in one batch with all null rows, diffusers' scheduler, then decoding."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5))
    latents = initial_noise(renderer, [4, 5, 6])
    with torch.no_grad():
        condition = renderer.connector(torch.cat([torch.zeros_like(states), states]))
        for timestep in scheduler.timesteps:
            both = renderer.transformer(
                torch.cat([latents, latents]),
                encoder_hidden_states=condition,
                timestep=timestep.expand(6),
                return_dict=False,
            )[0]
            null, conditioned = both.chunk(2)
            latents = scheduler.step(null + 3.0 * (conditioned - null), timestep, latents, return_dict=False)[0]
        expected = renderer.decode(latents).numpy().astype(int)
    found = render(renderer, states, [4, 5, 6], GenerationConfig(steps=5, guidance=3.0)).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_mistakes_are_named(renderer: Renderer, states: torch.Tensor) -> None:
    with pytest.raises(UserError, match="3 rows of states, 1 seeds"):
        render(renderer, states, [1])
    with pytest.raises(UserError, match="not from the same model"):
        Renderer(Connector(parts.HIDDEN, 64), renderer.transformer, renderer.vae)
