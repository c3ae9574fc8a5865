"""The losses, each against a second way to compute it, and the module that sums them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from tiny import LAYOUT, tiny_policy, tiny_renderer
from torch.nn import functional as F
from transformers import TrainingArguments

from blip3o_rl.model.renderer import Renderer
from blip3o_rl.sft import losses as sft
from blip3o_rl.sft.losses import Batch
from blip3o_rl.sft.model import LossConfig, SFTModel
from blip3o_rl.sft.run import FSDP

PROMPTS = [[1, 2, 3, 10, 14], [4, 5, 6, 7, 8, 9, 10, 14], [3, 10, 14]]


def tiny_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(20, (3, 9), generator=generator)
    return sft.collate(PROMPTS, indices, torch.randn(3, 8, 8, 8, generator=generator), LAYOUT, pad_id=0)


@pytest.mark.parametrize("full_vocabulary", [False, True])
def test_token_loss_equals_each_row_alone(full_vocabulary: bool) -> None:
    """Token j + 1 is predicted at the position of token j; any other shift or row changes the number."""
    policy, batch = tiny_policy(full_vocabulary=full_vocabulary).eval(), tiny_batch()
    losses = []
    with torch.no_grad():
        found = sft.token_loss(policy, sft.image_states(policy, batch), batch)
        for prompt, indices in zip(PROMPTS, batch.indices, strict=True):
            ids = torch.tensor([*prompt, *(indices + 15).tolist()])
            logits = policy(input_ids=ids[None]).logits[0]
            for position in range(len(prompt), len(ids)):
                row = logits[position - 1] if full_vocabulary else logits[position - 1, 15:35]
                target = ids[position] if full_vocabulary else ids[position] - 15
                losses.append(F.cross_entropy(row, target))
    assert len(losses) == 27
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)


def test_condition_states_start_at_the_scale_token() -> None:
    policy, batch = tiny_policy().eval(), tiny_batch()
    with torch.no_grad():
        states = sft.image_states(policy, batch)
        for row, prompt in enumerate(PROMPTS):
            ids = torch.tensor([*prompt, *(batch.indices[row] + 15).tolist()])
            alone = policy.model(input_ids=ids[None]).last_hidden_state[0, len(prompt) - 1 :]
            assert alone.shape == (10, 32)
            assert torch.allclose(states[row], alone, atol=1e-4)


def test_velocity_target_is_noise_minus_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that knows x0 can answer (x - x0) / sigma; the loss of that answer must vanish."""
    renderer, batch = tiny_renderer(), tiny_batch()
    monkeypatch.setattr(
        renderer, "predict", lambda x, sigma, _: (x - batch.latents.repeat(4, 1, 1, 1)) / sigma[:, None, None, None]
    )
    states = torch.randn(3, 10, 32)
    generator = torch.Generator().manual_seed(0)
    loss = sft.diffusion_loss(renderer, states, batch.latents, generator, draws=4, drop=0.1)
    assert float(loss) < 1e-4


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> tuple[Renderer, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A renderer that predicts zeros, and the (sigma, condition) it was asked with."""
    renderer, seen = tiny_renderer(), []

    def predict(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        seen.append((sigma, condition))
        return torch.zeros_like(x)

    monkeypatch.setattr(renderer, "predict", predict)
    return renderer, seen


def test_levels_are_uniform_over_the_whole_range(predictions: tuple[Renderer, list[tuple]]) -> None:
    renderer, seen = predictions
    latents, states = torch.zeros(500, 8, 1, 1), torch.zeros(500, 1, 32)
    sft.diffusion_loss(renderer, states, latents, torch.Generator().manual_seed(0), draws=4, drop=0.0)
    levels = seen[0][0]
    assert levels.shape == (2000,)
    assert 0 < float(levels.min()) < 0.01 and 0.99 < float(levels.max()) <= 1
    assert float(levels.mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("part", "bound"), [(1.0, 0.85), (0.5, 0.7)])
def test_high_noise_levels(part: float, bound: float, predictions: tuple[Renderer, list[tuple]]) -> None:
    renderer, seen = predictions
    latents, states = torch.zeros(2000, 8, 1, 1), torch.zeros(2000, 1, 32)
    generator = torch.Generator().manual_seed(0)
    sft.diffusion_loss(renderer, states, latents, generator, draws=1, drop=0.0, high_noise=(part, bound))
    assert float((seen[0][0] > bound).float().mean()) == pytest.approx(part + (1 - part) * (1 - bound), abs=0.04)
    assert float(seen[0][0].max()) <= 1


def test_place_loss_tells_cells_apart() -> None:
    """A state that is the target itself is read by the identity; the states of moved cells are not."""
    targets = sft.place_targets(81)
    assert targets.shape == (81, 20)
    assert float(torch.pdist(targets).min()) > 0.3
    head = torch.nn.Linear(20, 20, bias=False)
    torch.nn.init.eye_(head.weight)
    right = torch.cat([torch.zeros(1, 20), targets])[None]
    assert float(sft.place_loss(head, right).detach()) == pytest.approx(0, abs=1e-9)
    assert float(sft.place_loss(head, right.roll(1, dims=1)).detach()) > 0.1


def test_losses_are_weighed_and_a_weight_of_zero_leaves_the_renderer_out() -> None:
    batch = tiny_batch()
    both = SFTModel(tiny_policy(), tiny_renderer(), LossConfig(diffusion_weight=0.5, place_weight=2.0))
    losses = {name: value.detach() for name, value in both(batch, 0, 0).items()}
    assert float(losses["loss"]) == pytest.approx(float(losses["tokens"] + losses["flow"] / 2 + 2 * losses["place"]))
    alone = SFTModel(tiny_policy(), tiny_renderer(), LossConfig(diffusion_weight=0.0))
    assert alone(batch, 0, 0).keys() == {"loss", "tokens"}
    assert [len(group["params"]) for group in alone.parameter_groups()] == [len(list(alone.policy.parameters()))]


def test_noise_follows_from_the_batchs_number() -> None:
    model, batch = SFTModel(tiny_policy(), tiny_renderer(), LossConfig(align_batches=1)), tiny_batch()
    flows = [float(model(batch, number, seed)["flow"].detach()) for number, seed in ((1, 0), (2, 0), (1, 1), (1, 0))]
    assert flows[0] == flows[3] and len(set(flows)) == 3
    plain = SFTModel(model.policy, tiny_renderer(), LossConfig())
    assert plain(batch, 1, 0)["flow"] == flows[0]
    assert plain(batch, 0, 0)["flow"] != model(batch, 0, 0)["flow"]


def test_dropped_images_get_the_null_condition(predictions: tuple[Renderer, list[tuple]]) -> None:
    renderer, seen = predictions
    states = torch.randn(400, 2, 32)
    sft.diffusion_loss(renderer, states, torch.zeros(400, 8, 1, 1), torch.Generator().manual_seed(0), 1, drop=0.1)
    dropped = torch.isclose(seen[0][1], renderer.null_condition(2), atol=1e-5).all(-1).all(-1)
    assert 0.05 < float(dropped.float().mean()) < 0.15


def test_diffusion_gradient_reaches_the_policy() -> None:
    policy, renderer, batch = tiny_policy(), tiny_renderer(), tiny_batch()
    SFTModel(policy, renderer, LossConfig(trainable="all"))
    states = sft.image_states(policy, batch)
    sft.diffusion_loss(renderer, states, batch.latents, torch.Generator().manual_seed(0), 1, drop=0.0).backward()
    assert float(policy.model.layers[0].mlp.up_proj.weight.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in renderer.vae.parameters())


def test_what_is_trainable() -> None:
    renderer = tiny_renderer()
    SFTModel(tiny_policy(), renderer, LossConfig(trainable="caption"))
    trained = {name for name, parameter in renderer.named_parameters() if parameter.requires_grad}
    assert all(name.startswith("connector.") or "caption" in name for name in trained)
    assert {"transformer.caption_norm.weight", "connector.layers.0.weight"} <= trained


def test_fsdp_knows_the_blocks_of_policy_and_renderer(tmp_path: Path) -> None:
    """accelerate looks the names up in the model and refuses those it does not find."""
    args = TrainingArguments(str(tmp_path), fsdp=True, fsdp_config=dict(FSDP), use_cpu=True)
    plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    model = SFTModel(tiny_policy(), tiny_renderer(), LossConfig())
    plugin.set_auto_wrap_policy(model)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    blocks = [*model.policy.model.layers, *model.transformer.transformer_blocks]
    assert plugin.fsdp_version == 2 and {type(block) for block in blocks} == wrapped
