"""What rendering computes once instead of once per step or image, against a plainly written loop that does not.

The loop is upstream's: the connector and both guidance branches, with all null rows, in every Euler step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SanaTransformer2DModel

from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.renderer import Connector, ReferenceConnector, Renderer
from blip3o_rl.model.rendering import denoise, initial_noise, render, sigmas

N = 81
SEEDS = [4, 5, 6]
TOLERANCE = {"atol": 1e-4, "rtol": 0}


def make(**changes: Any) -> Renderer:
    torch.manual_seed(0)
    placed = parts.make_renderer(parts.make_vae())
    transformer = SanaTransformer2DModel.from_config({**placed.transformer.config, **changes})
    connector = Connector(parts.HIDDEN, transformer.config.caption_channels)
    return Renderer(connector, transformer, placed.vae, ReferenceConnector(8, 192)).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["placed", "unplaced", "without qk norm"])
def renderer(request: pytest.FixtureRequest) -> Renderer:
    changes = {"placed": {}, "unplaced": {"interpolation_scale": None}, "without qk norm": {"qk_norm": None}}
    return make(**changes[request.param])


@pytest.fixture(scope="module")
def plain() -> Renderer:
    return make()


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    return torch.randn(len(SEEDS), N + 1, parts.HIDDEN, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(len(SEEDS), 8, 8, 8, generator=torch.Generator().manual_seed(2))


def naive(
    renderer: Renderer,
    states: torch.Tensor,
    steps: int,
    guidance: Callable[[float], float],
    latents: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Latents after each step of a loop that keeps nothing."""
    x = initial_noise(renderer, SEEDS)
    for sigma, following in itertools.pairwise(sigmas(steps).tolist()):
        rows = renderer.connector(torch.cat([torch.zeros_like(states), states]))
        given = x
        if latents is not None:
            extra = renderer.reference_connector(latents.movedim(1, -1).flatten(1, 2))
            rows = torch.cat([rows, torch.cat([torch.zeros_like(extra), extra])], dim=1)
            given = torch.cat([x, latents], dim=-1)
        timestep = torch.full((2 * len(x),), 1000 * sigma)
        both = renderer.transformer(torch.cat([given, given]), rows, timestep, return_dict=False)[0]
        null, conditioned = both[..., : x.shape[-1]].chunk(2)
        x = x + (following - sigma) * (null + guidance(sigma) * (conditioned - null))
        yield x


def steps_of(renderer: Renderer, states: torch.Tensor, config: GenerationConfig, **given: Any) -> list[torch.Tensor]:
    editing = "latents" in given
    condition = renderer.condition(states, given.get("latents"))
    null = renderer.null_condition(N + 1 if editing else 1, editing)
    return list(denoise(renderer, initial_noise(renderer, SEEDS), condition, null, config, **given))


def calls(monkeypatch: pytest.MonkeyPatch, module: torch.nn.Module) -> list[torch.Size]:
    """The shapes of what a module is called with from now on."""
    shapes: list[torch.Size] = []
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda x, *rest: shapes.append(x.shape) or forward(x, *rest))
    return shapes


def test_keys_and_values_are_computed_once_per_image_and_layer(
    renderer: Renderer, states: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(naive(renderer, states, 6, lambda sigma: 3.0))
    counts = [calls(monkeypatch, block.attn2.to_k) for block in renderer.transformer.transformer_blocks]
    connected = calls(monkeypatch, renderer.connector)
    found = steps_of(renderer, states, GenerationConfig(steps=6, guidance=3.0))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)
    assert counts == [[(3, N + 1, 192)]] * len(counts), "the null row needs no keys"
    assert connected == [(3, N + 1, parts.HIDDEN), (1, 1, parts.HIDDEN)]


def test_the_null_condition_is_one_row_for_the_batch(
    plain: Renderer, states: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, rows = initial_noise(plain, SEEDS), plain.null_condition(N + 1)
    expected = plain.transformer(x, rows.expand(3, -1, -1), torch.full((3,), 700.0), return_dict=False)[0]
    values = calls(monkeypatch, plain.transformer.transformer_blocks[0].attn2.to_v)
    queries = calls(monkeypatch, plain.transformer.transformer_blocks[0].attn2.to_q)
    torch.testing.assert_close(plain.predict(x, 0.7, plain.attended(plain.null_condition())), expected, **TOLERANCE)
    assert values == [(1, 1, 192)] and queries == []


def test_guidance_1_has_no_second_branch(
    plain: Renderer, states: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(naive(plain, states, 5, lambda sigma: 1.0))
    networks = calls(monkeypatch, plain.transformer.patch_embed)
    found = steps_of(plain, states, GenerationConfig(steps=5, guidance=1.0))
    torch.testing.assert_close(found[-1], expected[-1], **TOLERANCE)
    assert networks == [(3, 8, 8, 8)] * 5


@pytest.mark.parametrize(("interval", "guided"), [((0.0, 1.0), 5), ((0.4, 0.8), 3), ((0.9, 1.0), 1), ((0.0, 0.3), 1)])
def test_guidance_only_within_an_interval_of_sigma(
    interval: tuple[float, float],
    guided: int,
    plain: Renderer,
    states: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def guidance(sigma: float) -> float:
        return 3.0 if interval[0] <= round(sigma, 3) <= interval[1] else 1.0

    expected = list(naive(plain, states, 5, guidance))
    networks = calls(monkeypatch, plain.transformer.patch_embed)
    config = GenerationConfig(steps=5, guidance=3.0, guidance_interval=interval)
    torch.testing.assert_close(steps_of(plain, states, config)[-1], expected[-1], **TOLERANCE)
    assert len(networks) == 5 + guided == 5 + config.guided_steps


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"guidance_interval": (0.6, 0.4)}, "two noise levels, low < high"),
        ({"guidance_interval": (0.0, 1.5)}, "from 0 to 1"),
        ({"guidance_interval": (0.2, 0.8), "guidance": 1.0}, "guidance=1 is none"),
        ({"guidance_interval": (0.6, 0.9), "steps": 2}, "none of the 2 steps"),
    ],
)
def test_an_interval_without_a_sense_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        GenerationConfig(**given)
    assert str(error.value).startswith("guidance_interval=[") and "\n" not in str(error.value)


def test_images_are_decoded_together(plain: Renderer, latents: torch.Tensor) -> None:
    alone = torch.cat([plain.decode_pixels(one[None]) for one in latents])
    torch.testing.assert_close(plain.decode_pixels(latents), alone, **TOLERANCE)


def test_edits_equal_the_loop_that_keeps_nothing(plain: Renderer, states: torch.Tensor, latents: torch.Tensor) -> None:
    expected = list(naive(plain, states, 4, lambda sigma: 3.0, latents))
    found = steps_of(plain, states, GenerationConfig(steps=4, guidance=3.0), latents=latents)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


def test_whole_images_equal_the_loops(plain: Renderer, states: torch.Tensor) -> None:
    *_, last = naive(plain, states, 30, lambda sigma: 2.0)
    found = render(plain, states, SEEDS).astype(int)
    assert np.abs(found - plain.decode(last).numpy()).max() <= 1


def test_each_image_may_have_its_own_noise_level(plain: Renderer, states: torch.Tensor) -> None:
    x, levels = initial_noise(plain, SEEDS), torch.tensor([0.25, 0.5, 1.0])
    condition = plain.condition(states)
    torch.testing.assert_close(
        plain.predict(x, levels, plain.attended(condition)), plain.predict(x, levels, condition), **TOLERANCE
    )


def test_half_precision_rounds_as_diffusers_does(plain: Renderer, states: torch.Tensor) -> None:
    half = make().to(torch.bfloat16)
    x, condition = initial_noise(half, SEEDS), half.condition(states)
    exact = plain.predict(x, 0.5, plain.condition(states))
    theirs, ours = (half.predict(x, 0.5, given) - exact for given in (condition, half.attended(condition)))
    assert ours.square().mean() < 1.5 * theirs.square().mean(), "no more rounding than diffusers' own forward pass"
