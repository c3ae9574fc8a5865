"""Losses of edits: by hand through the renderer's own inference, per row; and what is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import LAYOUT, tiny_policy, tiny_renderer
from torch.nn import functional as F

from blip3o_rl.mini import parts
from blip3o_rl.model.renderer import ReferenceConnector, Renderer
from blip3o_rl.sft import losses as sft
from blip3o_rl.sft.model import LossConfig, SFTModel, editing_renderer

N, COUNT, SEED = 9, 6, 5
References = list[torch.Tensor | None]
USES = [(True, True), (True, False), (False, True), (False, False)]
KINDS = {"mixed": (True, False, True, True, False, True), "edits": (True,) * COUNT, "text": (False,) * COUNT}


def editing(cross_attention: bool, noise_injection: bool) -> Renderer:
    base = tiny_renderer()
    torch.manual_seed(5)
    connector = ReferenceConnector(8, 192, cross_attention, noise_injection)
    return Renderer(base.connector, base.transformer, base.vae, connector).eval().requires_grad_(False)


def inputs(kind: str) -> tuple[torch.Tensor, torch.Tensor, References]:
    generator = torch.Generator().manual_seed(7)
    states = torch.randn(COUNT, N + 1, 32, generator=generator)
    latents, known = (torch.randn(COUNT, 8, 8, 8, generator=generator) for _ in range(2))
    return states, latents, [latent if edit else None for latent, edit in zip(known, KINDS[kind], strict=True)]


def by_hand(renderer: Renderer, states: torch.Tensor, latents: torch.Tensor, references: References) -> float:
    """Each row alone, as inference predicts it without guidance: with its condition, or with the null one."""
    generator = torch.Generator().manual_seed(SEED)
    keep = torch.rand(COUNT, generator=generator) >= 0.5
    noise = torch.randn(latents.shape, generator=generator)
    torch.rand(COUNT, generator=generator)  # which levels are from the upper part
    levels = ((torch.rand(COUNT, generator=generator) * 1000).floor() + 1) / 1000
    assert 0 < keep.sum() < COUNT
    errors = []
    for row, reference in enumerate(references):
        known = None if reference is None else reference[None]
        null = renderer.null_condition(N + 1, editing=known is not None)
        condition = renderer.condition(states[row : row + 1], known) if keep[row] else null
        sigma = levels[row : row + 1]
        x = (1 - sigma) * latents[row : row + 1] + sigma * noise[row : row + 1]
        velocity = renderer.velocity(x, sigma, condition, null, 1.0, known)
        errors.append(F.mse_loss(velocity, noise[row : row + 1] - latents[row : row + 1]))
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("uses", USES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_each_row_in_inference(kind: str, uses: tuple[bool, bool]) -> None:
    """Mixed batches are their parts; a dropped condition is inference's null one; both inputs are inference's."""
    renderer, (states, latents, references) = editing(*uses), inputs(kind)
    with torch.no_grad():
        found = sft.diffusion_loss(
            renderer, states, latents, torch.Generator().manual_seed(SEED), 1, 0.5, references=references
        )
        expected = by_hand(renderer, states, latents, references)
    assert float(found) == pytest.approx(expected, rel=1e-5)  # float32 sums of batches and of single rows


def test_upstreams_null_condition_is_another_one() -> None:
    """Upstream's training zeroes all rows after the connectors; the losses must be able to tell the two apart."""
    renderer, (states, _, references) = editing(True, True), inputs("edits")
    known = torch.stack([reference for reference in references if reference is not None])
    dropped = sft.dropped_condition(renderer, states, torch.zeros(COUNT, dtype=torch.bool), known)
    torch.testing.assert_close(dropped, renderer.null_condition(N + 1, editing=True).expand_as(dropped))
    assert float(dropped[:, : N + 1].abs().max()) > 0.1


def test_noise_levels_of_a_row_share_its_reference() -> None:
    """Two levels per image are the same as the batch twice; a shifted order would mix rows up."""
    renderer, (states, latents, references) = editing(True, True), inputs("mixed")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def predict(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        seen.append((x, condition))
        return torch.zeros_like(x)

    renderer.predict = predict  # type: ignore[method-assign]
    sft.diffusion_loss(renderer, states, latents, torch.Generator().manual_seed(SEED), 2, 0.0, references=references)
    edits = [row for row, reference in enumerate(references) if reference is not None]
    x, condition = seen[1]
    whole = renderer.condition(states[edits], torch.stack([references[row] for row in edits]))  # type: ignore[misc]
    for draw in range(2):
        part = slice(draw * len(edits), (draw + 1) * len(edits))
        assert torch.equal(x[part, :, :, 8:], torch.stack([references[row] for row in edits]))  # type: ignore[misc]
        torch.testing.assert_close(condition[part], whole)


def batch_of(kind: str) -> sft.Batch:
    generator = torch.Generator().manual_seed(0)
    prompts = [[1, 2, 3, *[15 + number] * number, 10, 14] for number in range(COUNT)]
    _, latents, references = inputs(kind)
    indices = torch.randint(20, (COUNT, N), generator=generator)
    return sft.collate(prompts, indices, latents, LAYOUT, 0, references)


def test_token_losses_of_a_mixed_batch_are_those_of_its_rows() -> None:
    policy, batch = tiny_policy().eval(), batch_of("mixed")
    with torch.no_grad():
        whole = float(sft.token_loss(policy, sft.image_states(policy, batch), batch))
        alone = []
        for row in range(COUNT):
            kept = batch.attention_mask[row].bool()
            one = sft.Batch(batch.input_ids[row, kept][None], batch.attention_mask[row, kept][None],
                            batch.indices[row : row + 1], batch.latents[row : row + 1])  # fmt: skip
            alone.append(float(sft.token_loss(policy, sft.image_states(policy, one), one)))
    assert whole == pytest.approx(sum(alone) / COUNT, rel=1e-4)


TRAINED: list[tuple[str, str, set[str]]] = [
    ("caption", "latents", {"connector", "reference_connector", "caption_projection", "caption_norm"}),
    ("caption", "tokens", {"connector", "caption_projection", "caption_norm"}),
    ("editing", "latents", {"connector", "reference_connector", "caption_projection", "caption_norm", "patch_embed",
                            "proj_out"}),
]  # fmt: skip


@pytest.mark.parametrize(("trainable", "mode", "expected"), TRAINED)
def test_what_is_trained(trainable: str, mode: str, expected: set[str]) -> None:
    model = SFTModel(tiny_policy(), editing_renderer(tiny_renderer(), mode, 1), LossConfig(trainable=trainable))
    names = [name for name, value in model.named_parameters() if value.requires_grad and not name.startswith("policy")]
    assert {name.removeprefix("transformer.").partition(".")[0] for name in names} == expected
    rates = {id(value): group["lr"] for group in model.parameter_groups() for value in group["params"]}
    assert len(rates) == len(names) + len(list(model.policy.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_weight_has_a_gradient_in_every_batch(kind: str) -> None:
    """Several processes wait for all gradients; without a reference that of its connector is 0."""
    renderer = editing_renderer(tiny_renderer(), "latents", 1)
    model = SFTModel(tiny_policy(), renderer, LossConfig(trainable="editing", condition_drop=0.0))
    model(batch_of(kind), 0, 0)["loss"].backward()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert all(value.grad is not None for value in trained.values())
    of_reference = [value.grad for name, value in trained.items() if name.startswith("reference_connector")]
    moved = any(float(gradient.abs().max()) > 0 for gradient in of_reference if gradient is not None)
    assert moved == (kind != "text")


def test_a_new_connector_follows_from_the_seed_and_fits_the_model() -> None:
    base = tiny_renderer()
    torch.manual_seed(11)
    before: Any = torch.get_rng_state()
    first, second, other = (editing_renderer(base, "latents", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [renderer.editing_connector().layers[0].weight for renderer in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert (first.editing_connector().config.in_features, weights[0].shape[0]) == (8, 192)
    assert editing_renderer(base, None, 1) is base and first.image_size == parts.IMAGE_SIZE
