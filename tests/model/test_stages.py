"""Each stage from prompt to image, called alone on given inputs, against the upstream arithmetic written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel
from torch.nn import functional as F

from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts
from blip3o_rl.model import sampling
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.renderer import Connector, ReferenceConnector, Renderer
from blip3o_rl.model.rendering import check_size, denoise, initial_noise, latent_side, render
from blip3o_rl.model.sampling import PolicySampler, pad_left

PROMPTS = ["a red circle", "a photo of a very long prompt " * 4, "a photo of two squares"]
SEEDS = [3, 4, 5]
SCALE_2 = GenerationConfig(scale=2)
TOLERANCE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def pipe() -> Blip3oPipeline:
    torch.manual_seed(0)
    tokenizer, layout = parts.make_tokenizer(PROMPTS)
    vae = parts.make_vae()
    vae.register_to_config(scaling_factor=0.4)
    policy = parts.make_policy(tokenizer, layout).eval()
    with torch.no_grad():
        policy.model.norm.weight.uniform_(0.5, 2)  # so that states before the final norm would be seen
    renderer = parts.make_renderer(vae).eval().requires_grad_(False)
    renderer.reference_connector = None
    return Blip3oPipeline(policy, tokenizer, renderer)


@pytest.fixture(scope="module")
def unplaced() -> Renderer:
    """A renderer whose transformer has no positional embedding, as upstream."""
    torch.manual_seed(0)
    config = {**parts.make_renderer(parts.make_vae()).transformer.config, "interpolation_scale": None}
    transformer = SanaTransformer2DModel.from_config(config)
    return Renderer(Connector(parts.HIDDEN, 192), transformer, parts.make_vae()).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens(pipe: Blip3oPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return pipe.layout.to_ids(torch.randint(pipe.layout.num_image_tokens, (3, 81), generator=generator))


@pytest.fixture(scope="module")
def states(pipe: Blip3oPipeline, tokens: torch.Tensor) -> torch.Tensor:
    return pipe.hidden_states(pipe.prompt_ids(PROMPTS, 2), tokens, 2)


def grey_levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


def test_prompt_ids(pipe: Blip3oPipeline) -> None:
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Please generate image based on the following caption: a red circle<|im_end|>\n<|im_start|>assistant\n"
    )
    written = pipe.tokenizer(text + "<im_start><S2>", add_special_tokens=False)["input_ids"]
    assert pipe.prompt_ids(PROMPTS, 2)[0] == written


def test_padding_is_on_the_left() -> None:
    ids, mask = pad_left([[7], [5, 6]], pad_token_id=9)
    assert ids.tolist() == [[9, 7], [5, 6]] and mask.tolist() == [[0, 1], [1, 1]]


def test_hidden_states_are_post_norm_and_begin_at_the_scale_token(
    pipe: Blip3oPipeline, tokens: torch.Tensor, states: torch.Tensor
) -> None:
    """One prompt at a time without padding, mask or positions, as upstream; hidden_states[-1]."""
    assert states.shape == (3, 82, parts.HIDDEN)
    for row, prompt in enumerate(pipe.prompt_ids(PROMPTS, 2)):
        ids = torch.tensor([prompt + tokens[row].tolist()])
        with torch.inference_mode():
            every = pipe.policy(ids, output_hidden_states=True).hidden_states[-1][0]
        start = prompt.index(pipe.layout.image_start_tag_id) + 1
        assert prompt[start] == pipe.layout.scale_token_id(2)
        torch.testing.assert_close(states[row], every[start:], **TOLERANCE)


def test_sampled_tokens_follow_the_softmax_over_the_image_tokens(pipe: Blip3oPipeline) -> None:
    """Every token is the largest of log-probability plus Gumbel noise from the image's own seed."""
    rows = pipe.prompt_ids(PROMPTS, 2)
    tokens, states = PolicySampler(pipe.policy, pipe.tokenizer.pad_token_id)(rows, SEEDS, SCALE_2)
    image = slice(pipe.layout.image_ids.start, pipe.layout.image_ids.stop)
    with torch.inference_mode():
        log_probs = pipe.policy.lm_head(states)[..., image].log_softmax(-1)
    for row, seed in enumerate(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        for step in range(81):
            uniform = torch.rand(pipe.layout.num_image_tokens, generator=generator)
            scores = log_probs[row, step] - torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
            chosen = tokens[row, step] - image.start
            assert scores[chosen] >= scores.max() - 1e-4
    torch.testing.assert_close(states, pipe.hidden_states(rows, tokens, 2), **TOLERANCE)


def test_sampling_is_at_temperature_one() -> None:
    """A policy whose logits are known: the frequencies of its first token are the softmax."""
    torch.manual_seed(0)
    tokenizer, layout = parts.make_tokenizer(["a"])
    sampler = PolicySampler(parts.make_policy(tokenizer, layout).eval(), tokenizer.pad_token_id)
    logits = torch.full((layout.num_image_tokens,), -1e9)
    logits[:3] = torch.tensor([0.0, 1.0, 2.0])
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    sampled = layout.to_indices(sampler._choose(logits.expand(4000, -1), generators))
    found = torch.bincount(sampled, minlength=3) / 4000
    torch.testing.assert_close(found[:3], logits[:3].softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(2, 1.0, [2, 3]), (0, 0.6, [3]), (0, 0.8, [2, 3]), (1, 0.1, [3])])
def test_top_k_and_top_p_leave_the_unlikely_tokens_out(
    pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch, top_k: int, top_p: float, kept: list[int]
) -> None:
    probabilities = torch.tensor([[0.04, 0.06, 0.25, 0.65]])
    monkeypatch.setattr(sampling, "image_logits", lambda policy, state: probabilities.log())
    config = GenerationConfig(top_k=top_k, top_p=top_p)
    logits = PolicySampler(pipe.policy, 0)._logits(torch.zeros(1), config)
    assert logits[0].isfinite().nonzero().flatten().tolist() == kept
    torch.testing.assert_close(logits[0, kept], probabilities[0, kept].log())


@pytest.mark.parametrize("wrong", [{"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}])
def test_filters_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="top_k=.*top_p="):
        GenerationConfig(**wrong)


def test_the_full_vocabulary_is_sampled_where_the_policy_says_so(
    pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token is the largest of log-probability plus Gumbel noise over *all* tokens, text among them."""
    monkeypatch.setattr(pipe.policy.config, "full_vocabulary", True)
    rows = pipe.prompt_ids(PROMPTS, 2)
    tokens, states = PolicySampler(pipe.policy, pipe.tokenizer.pad_token_id)(rows, SEEDS, SCALE_2)
    with torch.inference_mode():
        log_probs = pipe.policy.lm_head(states).log_softmax(-1)
    image = (tokens >= pipe.layout.image_ids.start) & (tokens < pipe.layout.image_ids.stop)
    image_ids = slice(pipe.layout.image_ids.start, pipe.layout.image_ids.stop)
    expected = float(log_probs[:, :-1, image_ids].exp().sum(-1).mean())
    assert 0.1 < expected < 0.9
    assert abs(float(image.float().mean()) - expected) < 0.12, "4 standard errors of 243 tokens"
    for row, seed in enumerate(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        for step in range(81):
            uniform = torch.rand(log_probs.shape[-1], generator=generator)
            scores = log_probs[row, step] - torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
            assert scores[tokens[row, step]] >= scores.max() - 1e-4


def test_condition_is_the_connector_written_out(pipe: Blip3oPipeline, states: torch.Tensor) -> None:
    first, _, second, norm = pipe.renderer.connector.layers

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, first.weight, first.bias)
        y = 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
        y = F.linear(y, second.weight, second.bias)
        return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * norm.weight

    torch.testing.assert_close(pipe.renderer.condition(states), by_hand(states), **TOLERANCE)
    null = pipe.renderer.null_condition(82)
    torch.testing.assert_close(null, by_hand(torch.zeros(1, 82, parts.HIDDEN)), **TOLERANCE)
    assert float(null.abs().max()) > 0.1


def test_each_euler_step_is_the_schedulers(pipe: Blip3oPipeline, states: torch.Tensor) -> None:
    """Both branches in one batch, null first; shift 1; timesteps 1000, 800, ...; compared after every step."""
    renderer = pipe.renderer
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5))
    condition, null = renderer.condition(states), renderer.null_condition()
    noise = initial_noise(renderer, SEEDS)
    trace = list(denoise(renderer, noise, condition, null, GenerationConfig(steps=5)))
    assert len(trace) == 5
    x = noise
    both = torch.cat([null.expand_as(condition), condition])
    with torch.inference_mode():
        for timestep, found in zip(scheduler.timesteps, trace, strict=True):
            out = renderer.transformer(
                torch.cat([x, x]), encoder_hidden_states=both, timestep=timestep.expand(6), return_dict=False
            )[0]
            u, c = out.chunk(2)
            x = scheduler.step(u + 2.0 * (c - u), timestep, x, return_dict=False)[0]
            torch.testing.assert_close(found, x, **TOLERANCE)


def test_decode_before_rounding(pipe: Blip3oPipeline) -> None:
    latents = initial_noise(pipe.renderer, SEEDS)
    with torch.inference_mode():
        expected = (pipe.renderer.vae.decode(latents / 0.4).sample / 2 + 0.5).clamp(0, 1)
        found = pipe.renderer.decode_pixels(latents)
        rounded = pipe.renderer.decode(latents)
    assert found.shape == (3, 3, 64, 64) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, **TOLERANCE)
    # Two passes may round a value that lies between two grey levels differently.
    assert ((found * 255).round().permute(0, 2, 3, 1) - rounded.float()).abs().max() <= 1


def test_prompts_of_different_lengths_in_a_batch_are_rendered_as_alone(pipe: Blip3oPipeline) -> None:
    together = pipe(PROMPTS, SEEDS, GenerationConfig(scale=2, steps=3))
    for row in range(3):
        alone = pipe(PROMPTS[row : row + 1], SEEDS[row : row + 1], GenerationConfig(scale=2, steps=3))
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert grey_levels_apart(alone.images[0], together.images[row]) <= 1
    assert len({image.tobytes() for image in together.images}) == 3


def test_batch_size_changes_nothing(pipe: Blip3oPipeline) -> None:
    one, two = (pipe(PROMPTS, SEEDS, GenerationConfig(scale=2, steps=2, batch_size=size)) for size in (1, 2))
    assert torch.equal(one.tokens, two.tokens)
    assert grey_levels_apart(one.images, two.images) <= 1


def test_rendering_sampled_tokens_again_gives_the_same_image(pipe: Blip3oPipeline) -> None:
    first = pipe(PROMPTS, SEEDS, GenerationConfig(scale=2, steps=2))
    indices = pipe.layout.to_indices(first.tokens)
    again = pipe.render_tokens(indices, SEEDS, PROMPTS, GenerationConfig(scale=2, steps=2, batch_size=2))
    torch.testing.assert_close(again.states, first.states, **TOLERANCE)
    assert torch.equal(again.tokens, first.tokens)
    assert grey_levels_apart(again.images, first.images) <= 1
    uncaptioned = pipe.render_tokens(indices, SEEDS, config=GenerationConfig(scale=2, steps=2))
    expected = pipe.hidden_states(pipe.prompt_ids([""] * 3, 2), first.tokens, 2)
    torch.testing.assert_close(uncaptioned.states, expected, **TOLERANCE)


def test_tokens_that_cannot_be_rendered_are_refused(pipe: Blip3oPipeline) -> None:
    fitting = torch.zeros(2, 81, dtype=torch.int64)
    for wrong, words in (
        (fitting + pipe.layout.num_image_tokens, "outside the image vocabulary"),
        (fitting - 1, "outside the image vocabulary"),
        (fitting[:, :80], r"\[2, 80\]: \[2, 81\] expected"),
    ):
        with pytest.raises(UserError, match=words):
            pipe.render_tokens(wrong, [1, 2], config=SCALE_2)
    with pytest.raises(UserError, match=r"\[2, 81\]: \[2, 729\] expected"):
        pipe.render_tokens(fitting, [1, 2])
    with pytest.raises(UserError, match="2 images and 1 seeds"):
        pipe.render_tokens(fitting, [1], config=SCALE_2)
    with pytest.raises(UserError, match="2 rows of tokens and 1 prompts"):
        pipe.render_tokens(fitting, [1, 2], ["a"], SCALE_2)
    with pytest.raises(UserError, match="batch_size=0"):
        GenerationConfig(batch_size=0)


def test_another_sampler_takes_the_policys_place(pipe: Blip3oPipeline, states: torch.Tensor) -> None:
    asked: list[Any] = []

    def sampler(prompts: list[list[int]], seeds: list[int], config: GenerationConfig, progress: Any) -> Any:
        asked.append((prompts, seeds, config.scale))
        return torch.zeros(len(prompts), 81, dtype=torch.int64), states[: len(prompts)]

    other = Blip3oPipeline(None, pipe.tokenizer, pipe.renderer, sampler, pipe.layout)
    images = other(PROMPTS, SEEDS, GenerationConfig(scale=2, steps=2)).images
    assert asked == [(pipe.prompt_ids(PROMPTS, 2), SEEDS, 2)]
    assert grey_levels_apart(images, render(pipe.renderer, states, SEEDS, GenerationConfig(steps=2))) == 0


def test_progress_is_reported_for_every_token_and_step(pipe: Blip3oPipeline) -> None:
    reported: list[tuple[str, int, int]] = []
    config = GenerationConfig(scale=2, steps=3, batch_size=1)
    pipe(PROMPTS[:2], [1, 2], config, progress=lambda *given: reported.append(given))
    batch = [("tokens", done, 81) for done in range(82)] + [("steps", done, 3) for done in (1, 2, 3)]
    assert reported == batch * 2


def test_other_sizes_without_a_positional_embedding(unplaced: Renderer, pipe: Blip3oPipeline) -> None:
    assert [latent_side(unplaced, size) for size in (None, 64, 96, 8)] == [8, 8, 12, 1]
    other = Blip3oPipeline(pipe.policy, pipe.tokenizer, unplaced)
    rendered = other(PROMPTS[:1], [1], GenerationConfig(scale=2, steps=2, size=96))
    assert rendered.images.shape == (1, 96, 96, 3)
    assert initial_noise(unplaced, [1], 96).shape == (1, 8, 12, 12)
    assert torch.equal(initial_noise(unplaced, [1, 2]), initial_noise(unplaced, [1, 2], 64))
    for size in (65, 4, 0, -8):
        with pytest.raises(UserError, match=f"size={size}: must be a multiple of 8 pixels.*own size is 64"):
            other(PROMPTS[:1], [1], GenerationConfig(scale=2, size=size))


def test_no_other_size_with_a_positional_embedding(pipe: Blip3oPipeline, unplaced: Renderer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="positional embedding for 64 px"):
        pipe(PROMPTS[:1], [1], GenerationConfig(scale=2, size=128))
    for renderer, name in ((pipe.renderer, "placed"), (unplaced, "unplaced")):
        renderer.save_pretrained(tmp_path / name)
    check_size(tmp_path / "placed", 64)
    check_size(tmp_path / "unplaced", 128)
    with pytest.raises(UserError, match="positional embedding for 64 px"):
        check_size(tmp_path / "placed", 128)
    with pytest.raises(UserError, match="must be a multiple of 8"):
        check_size(tmp_path / "unplaced", 100)


def test_references_need_a_model_that_edits(pipe: Blip3oPipeline) -> None:
    image = [np.zeros((64, 64, 3), np.uint8)]
    with pytest.raises(UserError, match="generates from text only"):
        pipe(PROMPTS, SEEDS, SCALE_2, references=[image, None, None])
    with pytest.raises(UserError, match="3 prompts and 1 references"):
        pipe(PROMPTS, SEEDS, SCALE_2, references=[image])


def test_a_batch_may_mix_captions_and_edits(pipe: Blip3oPipeline, unplaced: Renderer) -> None:
    torch.manual_seed(1)
    both = Renderer(unplaced.connector, unplaced.transformer, unplaced.vae, ReferenceConnector(8, 192)).eval()
    edit = Blip3oPipeline(pipe.policy, pipe.tokenizer, both, image_tokenizer=parts.make_image_tokenizer().eval())
    image = [np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)]
    references, config = [None, image, None], GenerationConfig(scale=2, steps=2)
    mixed = edit(PROMPTS, SEEDS, config, references)
    for row in range(3):
        alone = edit(PROMPTS[row : row + 1], [SEEDS[row]], config, [references[row]])
        assert torch.equal(alone.tokens[0], mixed.tokens[row])
        assert grey_levels_apart(alone.images[0], mixed.images[row]) <= 1
    plain = edit(PROMPTS, SEEDS, GenerationConfig(scale=2, steps=2))
    assert [torch.equal(a, b) for a, b in zip(plain.tokens, mixed.tokens, strict=True)] == [True, False, True]
    with pytest.raises(UserError, match="size=96: edited images have the model's own size"):
        edit(PROMPTS, SEEDS, GenerationConfig(scale=2, size=96), references)
