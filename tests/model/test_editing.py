"""Editing: each stage against what upstream's inference does, computed by hand; mixed batches; mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel
from editing import text_copy
from PIL import Image

from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts
from blip3o_rl.model import editing as reference
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.editing import Reference
from blip3o_rl.model.folder import GENERATING, ModelFolder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.policy import Blip3oNextForCausalLM
from blip3o_rl.model.renderer import Connector, ReferenceConnector, Renderer
from blip3o_rl.model.rendering import denoise, initial_noise, render
from blip3o_rl.model.token_layout import TokenLayout, encode_edit_prompt, encode_prompt

INSTRUCTION = "make the circle blue"
N = 81
"""Image tokens at scale 2."""
ROWS = 64
"""Positions of an 8 x 8 latent."""


def make_renderer(**uses: bool) -> Renderer:
    """The mini model's sizes, without a positional embedding as upstream, with a reference connector."""
    torch.manual_seed(0)
    vae = parts.make_vae()
    vae.register_to_config(scaling_factor=0.5)
    base = parts.make_renderer(vae)
    transformer = SanaTransformer2DModel.from_config(base.transformer.config, interpolation_scale=None)
    renderer = Renderer(base.connector, transformer, vae, ReferenceConnector(8, 192, **uses))
    return renderer.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return make_renderer()


@pytest.fixture(scope="module")
def text_renderer(renderer: Renderer) -> Renderer:
    """The same weights without the editing part."""
    return Renderer(renderer.connector, renderer.transformer, renderer.vae).eval()


@pytest.fixture(scope="module")
def image_tokenizer() -> TATok:
    torch.manual_seed(0)
    return parts.make_image_tokenizer().eval()


@pytest.fixture(scope="module")
def words() -> tuple[Any, TokenLayout]:
    return parts.make_tokenizer([INSTRUCTION])


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    return torch.randn(3, N + 1, parts.HIDDEN, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(2))


def some_indices(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(parts.NUM_IMAGE_TOKENS, (count, N), generator=torch.Generator().manual_seed(seed))


def noisy_image(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Prompt


def test_the_prompt_reads_as_upstream(words: tuple[Any, TokenLayout]) -> None:
    tokenizer, layout = words
    indices = some_indices(1)
    ids = encode_edit_prompt(tokenizer, INSTRUCTION, indices, 2, layout)
    tokens = "".join(f"<I{index}>" for index in indices[0].tolist())
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nPlease edit this image according to the following instruction: {INSTRUCTION}.\n"
        f"<|vision_start|>{tokens}<|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\n<im_start><S2>"
    )
    assert ids.index(layout.image_start_tag_id) == len(ids) - 2, "references have no <im_start> of their own"


@pytest.mark.parametrize(("count", "which"), [(1, "this image"), (3, "these images")])
def test_prompt_ids_equal_replacing_placeholders(words: tuple[Any, TokenLayout], count: int, which: str) -> None:
    """Upstream: one <|image_pad|> per token in the text, and in the ids each replaced in order."""
    tokenizer, layout = words
    indices = some_indices(count)
    block = "<|vision_start|>" + "<|image_pad|>" * (N * count) + "<|vision_end|>"
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nPlease edit {which} according to the following instruction: {INSTRUCTION}.\n{block}"
        "<|im_end|>\n<|im_start|>assistant\n<im_start><S2>"
    )
    expected = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    expected[expected == tokenizer.convert_tokens_to_ids("<|image_pad|>")] = layout.to_ids(indices.flatten())
    assert encode_edit_prompt(tokenizer, INSTRUCTION, indices, 2, layout) == expected.tolist()


def test_an_instruction_may_spell_out_the_tags(words: tuple[Any, TokenLayout]) -> None:
    tokenizer, layout = words
    plain = encode_edit_prompt(tokenizer, INSTRUCTION, some_indices(1), 2, layout)
    spelled = encode_edit_prompt(tokenizer, INSTRUCTION + "<|image_pad|><|vision_end|>", some_indices(1), 2, layout)
    pad, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|image_pad|>", "<|vision_end|>"))
    at = spelled.index(pad)
    assert spelled[at + 1] == end and spelled[:at] == plain[:at]
    assert spelled[-(N + 7) :] == plain[-(N + 7) :]


@pytest.mark.parametrize("shape", [(0, N), (5, N), (1, N - 1), (N,)])
def test_wrong_reference_tokens_are_named(words: tuple[Any, TokenLayout], shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="1 to 4 references of 81 tokens"):
        encode_edit_prompt(words[0], INSTRUCTION, torch.zeros(shape, dtype=torch.int64), 2, words[1])


def test_a_prompt_without_a_reference_is_a_caption(words: tuple[Any, TokenLayout], latents: torch.Tensor) -> None:
    tokenizer, layout = words
    assert reference.prompt_ids(tokenizer, "a dog", None, 2, layout) == encode_prompt(tokenizer, "a dog", 2, layout)
    edit = Reference(some_indices(1), latents[0])
    assert reference.prompt_ids(tokenizer, "a dog", edit, 2, layout) == encode_edit_prompt(
        tokenizer, "a dog", edit.indices, 2, layout
    )


# Pixels and latents


def test_the_autoencoder_sees_the_center() -> None:
    image = noisy_image(101, 64)
    found = reference.autoencoder_pixels(image, 64)
    expected = np.asarray(image)[:, 18:82].transpose(2, 0, 1) / 127.5 - 1  # (101 - 64) / 2 = 18.5, rounded to even
    assert found.dtype == torch.float32 and found.shape == (3, 64, 64)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_the_shorter_side_is_resized_and_the_longer_rounded_down() -> None:
    image = noisy_image(50, 77)
    whole = np.asarray(Image.fromarray(image).resize((64, 98), Image.Resampling.BILINEAR))  # 64 * 77 / 50 = 98.56
    expected = whole[17:81].transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(reference.autoencoder_pixels(image, 64).numpy(), expected, atol=1e-6)


def test_latents_are_scaled_encodings(renderer: Renderer) -> None:
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    expected = renderer.vae.encode(pixels).latent * 0.5
    torch.testing.assert_close(renderer.encode_latents(pixels), expected)


def test_all_images_become_tokens_and_the_first_a_latent(image_tokenizer: TATok) -> None:
    renderer = make_renderer(noise_injection=False)
    images = [noisy_image(80, 64, seed) for seed in (1, 2)]
    found = reference.encode_reference(images, image_tokenizer, renderer, scale=2)
    assert torch.equal(found.indices, image_tokenizer.tokenize(images, 2)) and found.indices.shape == (2, N)
    first = renderer.encode_latents(reference.autoencoder_pixels(images[0], 64)[None])[0]
    torch.testing.assert_close(found.latents, first)


# Condition, null condition, input


def test_reference_rows_follow_the_tokens_rows(renderer: Renderer, states: torch.Tensor, latents: torch.Tensor) -> None:
    found = renderer.condition(states, latents)
    assert found.shape == (3, N + 1 + ROWS, 192)
    torch.testing.assert_close(found[:, : N + 1], renderer.connector(states))
    connector = renderer.reference_connector
    assert connector is not None
    for row, column in ((0, 0), (0, 1), (1, 0), (7, 7)):
        expected = connector.layers(latents[:, :, row, column])
        torch.testing.assert_close(found[:, N + 1 + 8 * row + column], expected)


def test_null_rows_are_the_connector_of_zeros_and_then_plain_zeros(renderer: Renderer) -> None:
    null = renderer.null_condition(N + 1, editing=True)
    assert null.shape == (1, N + 1 + ROWS, 192)
    torch.testing.assert_close(null[:, : N + 1], renderer.connector(torch.zeros(1, N + 1, parts.HIDDEN)))
    assert null[:, : N + 1].abs().max() > 0.1
    assert not null[:, N + 1 :].any()


def test_both_branches_see_the_reference_at_the_same_timestep(
    renderer: Renderer, states: torch.Tensor, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def forward(x: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
        seen.append({"x": x, **kwargs})
        return (torch.full_like(x, 5.0 if len(seen) == 1 else 3.0),)

    monkeypatch.setattr(renderer.transformer, "forward", forward)
    x = initial_noise(renderer, [1, 2, 3])
    condition, null = renderer.condition(states, latents), renderer.null_condition(N + 1, editing=True)
    found = renderer.velocity(x, 0.25, condition, null, 2.0, latents)
    assert found.shape == x.shape and torch.equal(found, torch.full_like(x, 3.0 + 2.0 * (5.0 - 3.0)))
    for call, rows in zip(seen, (condition, null.expand(3, -1, -1)), strict=True):
        assert torch.equal(call["x"], torch.cat([x, latents], dim=3))
        assert call["timestep"].tolist() == [250.0] * 3
        assert torch.equal(call["encoder_hidden_states"], rows)


@pytest.mark.parametrize(
    ("uses", "rows", "width"),
    [
        ({"cross_attention": False}, N + 1, 16),
        ({"noise_injection": False}, N + 1 + ROWS, 8),
    ],
)
def test_each_use_can_be_off(
    uses: dict[str, bool],
    rows: int,
    width: int,
    states: torch.Tensor,
    latents: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renderer = make_renderer(**uses)
    condition, null = renderer.condition(states, latents), renderer.null_condition(N + 1, editing=True)
    assert condition.shape[1] == null.shape[1] == rows
    widths = []

    def forward(x: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
        widths.append(x.shape[-1])
        return (x,)

    monkeypatch.setattr(renderer.transformer, "forward", forward)
    x = initial_noise(renderer, [1, 2, 3])
    torch.testing.assert_close(renderer.velocity(x, 0.5, condition, null, 1.0, latents), x)
    assert widths == [width]


# Whole images


def test_editing_equals_the_upstream_loop(renderer: Renderer, states: torch.Tensor, latents: torch.Tensor) -> None:
    """One image, both guidance branches in a batch, the scheduler steps the full width, then the noise is cut off."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5))
    connector = renderer.reference_connector
    assert connector is not None
    known, x = latents[:1], initial_noise(renderer, [4])
    condition, null_rows = renderer.condition(states[:1], known), renderer.null_condition(N + 1, editing=True)
    with torch.no_grad():
        found = list(denoise(renderer, x, condition, null_rows, GenerationConfig(steps=5, guidance=3.0), known))
        rows = renderer.connector(torch.cat([torch.zeros_like(states[:1]), states[:1]]))
        extra = connector(known.movedim(1, -1).reshape(-1, 8))
        rows = torch.cat([rows, torch.stack([torch.zeros_like(extra), extra])], dim=1)
        for timestep, step in zip(scheduler.timesteps, found, strict=True):
            both = renderer.transformer(
                torch.cat([torch.cat([x, known], dim=-1)] * 2),
                encoder_hidden_states=rows,
                timestep=timestep.expand(2),
                return_dict=False,
            )[0]
            null, conditioned = both.chunk(2)
            whole = torch.cat([x, known], dim=-1)
            whole = scheduler.step(null + 3.0 * (conditioned - null), timestep, whole, return_dict=False)[0]
            x = whole[..., :8]
            torch.testing.assert_close(step, x, atol=1e-4, rtol=0)
        expected = renderer.decode(x).numpy().astype(int)
    rendered = render(renderer, states[:1], [4], GenerationConfig(steps=5, guidance=3.0), [known[0]]).astype(int)
    assert np.abs(rendered - expected).max() <= 1


def test_a_mixed_batch_is_its_parts(
    renderer: Renderer, text_renderer: Renderer, states: torch.Tensor, latents: torch.Tensor
) -> None:
    first, last = latents[0], latents[2]
    three = GenerationConfig(steps=3)
    mixed = render(renderer, states, [1, 2, 3], three, [first, None, last]).astype(int)
    alone = [
        render(renderer, states[:1], [1], three, [first]),
        render(text_renderer, states[1:2], [2], three),
        render(renderer, states[2:], [3], three, [last]),
    ]
    assert np.abs(mixed - np.concatenate(alone)).max() <= 1
    plain = render(text_renderer, states, [1, 2, 3], three).astype(int)
    assert all(np.abs(mixed[row] - plain[row]).max() > 1 for row in (0, 2)), "the reference has no effect"


def test_progress_counts_the_steps_of_both_kinds(
    renderer: Renderer, states: torch.Tensor, latents: torch.Tensor
) -> None:
    seen: list[tuple[str, int, int]] = []
    kinds = [None, latents[0], None]
    render(renderer, states, [1, 2, 3], GenerationConfig(steps=2), kinds, lambda *given: seen.append(given))
    assert seen == [("steps", done, 4) for done in (1, 2, 3, 4)]


def test_a_mixed_left_padded_batch_gives_the_states_of_single_samples(
    words: tuple[Any, TokenLayout], latents: torch.Tensor
) -> None:
    tokenizer, layout = words
    torch.manual_seed(0)
    policy: Blip3oNextForCausalLM = parts.make_policy(tokenizer, layout).eval()
    kinds = [Reference(some_indices(2), latents[0]), None, Reference(some_indices(1), latents[1])]
    tokens = layout.to_ids(some_indices(1, seed=5))[0].tolist()
    rows = [reference.prompt_ids(tokenizer, INSTRUCTION, kind, 2, layout) + tokens for kind in kinds]
    width = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        together = policy.model(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)
        ).last_hidden_state
        for row, found in zip(rows, together, strict=True):
            alone = policy.model(input_ids=torch.tensor([row])).last_hidden_state[0]
            torch.testing.assert_close(found[-(N + 1) :], alone[-(N + 1) :], atol=1e-4, rtol=0)


def test_the_pipeline_renders_a_mixed_batch_like_its_parts(
    words: tuple[Any, TokenLayout], renderer: Renderer, image_tokenizer: TATok
) -> None:
    torch.manual_seed(0)
    policy = parts.make_policy(*words).eval()
    pipe = Blip3oPipeline(policy, words[0], renderer, image_tokenizer=image_tokenizer)
    prompts, kinds = [INSTRUCTION, "a photo of two squares"], [[noisy_image(80, 64)], None]
    mixed = pipe(prompts, [1, 2], GenerationConfig(scale=2, steps=2), kinds)
    for row in range(2):
        alone = pipe(prompts[row : row + 1], [row + 1], GenerationConfig(scale=2, steps=2), kinds[row : row + 1])
        assert torch.equal(mixed.tokens[row], alone.tokens[0])
        torch.testing.assert_close(mixed.states[row], alone.states[0], atol=1e-5, rtol=0)
        assert np.abs(mixed.images[row].astype(int) - alone.images[0]).max() <= 1
    unreferenced = pipe(prompts[:1], [1], GenerationConfig(scale=2, steps=2))
    assert not torch.equal(unreferenced.tokens[0], mixed.tokens[0]), "the policy does not see the reference"


def test_where_both_uses_are_off_the_policy_alone_edits(words: tuple[Any, TokenLayout], image_tokenizer: TATok) -> None:
    """The reference is in the prompt, no latent is computed, and the renderer treats an edit as any image."""
    renderer = make_renderer(cross_attention=False, noise_injection=False)
    found = reference.encode_reference([noisy_image(80, 64)] * 2, image_tokenizer, renderer, 2)
    assert found.latents is None and found.indices.shape == (2, N)
    torch.manual_seed(0)
    pipe = Blip3oPipeline(parts.make_policy(*words).eval(), words[0], renderer, image_tokenizer=image_tokenizer)
    two = GenerationConfig(scale=2, steps=2)
    edit = pipe([INSTRUCTION], [1], two, [[noisy_image(80, 64)]])
    assert np.array_equal(edit.images, render(renderer, edit.states, [1], two))
    assert not torch.equal(edit.tokens, pipe([INSTRUCTION], [1], two).tokens), "the policy does not see the reference"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_length_of_a_prompt_is_known_before_anything_is_encoded(
    words: tuple[Any, TokenLayout], latents: torch.Tensor, count: int
) -> None:
    tokenizer, layout = words
    kind = Reference(some_indices(count), latents[0]) if count else None
    ids = reference.prompt_ids(tokenizer, INSTRUCTION, kind, 2, layout)
    assert reference.prompt_length(tokenizer, INSTRUCTION, count, 2, layout) == len(ids)


# Folders


@pytest.fixture(scope="module")
def saved(
    words: tuple[Any, TokenLayout], renderer: Renderer, image_tokenizer: TATok, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    torch.manual_seed(0)
    return model_folder.save(
        tmp_path_factory.mktemp("editing"),
        policy=parts.make_policy(*words),
        tokenizer=words[0],
        renderer=renderer,
        image_tokenizer=image_tokenizer,
        source="test",
    )


def test_an_editing_folder_round_trips(
    saved: Path, renderer: Renderer, states: torch.Tensor, latents: torch.Tensor
) -> None:
    folder = ModelFolder(saved)
    folder.check_editing()
    with pytest.raises(UserError, match="2 reference images for one prompt, this model takes 1; give fewer"):
        folder.check_editing(2)
    assert folder.path == saved.resolve()
    loaded = folder.load_renderer()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in renderer.state_dict().items())
    condition = loaded.condition(states, latents)
    torch.testing.assert_close(condition, renderer.condition(states, latents))
    assert dict(loaded.reference_connector.config)["noise_injection"] is True


def test_the_uses_of_the_reference_are_kept(tmp_path: Path) -> None:
    make_renderer(cross_attention=False).save_pretrained(tmp_path)
    connector = Renderer.from_pretrained(tmp_path).reference_connector
    assert connector is not None
    assert (connector.config.cross_attention, connector.config.noise_injection) == (False, True)


def test_a_text_renderer_is_as_before(renderer: Renderer, text_renderer: Renderer, tmp_path: Path) -> None:
    assert not [name for name in text_renderer.state_dict() if name.startswith("reference")]
    renderer.save_pretrained(tmp_path)
    text_renderer.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["connector", "transformer", "vae"]
    assert Renderer.from_pretrained(tmp_path).reference_connector is None


def test_an_incomplete_editing_folder_is_refused(saved: Path) -> None:
    part = saved / "renderer" / "reference_connector"
    hidden = saved / "hidden"
    part.rename(hidden)
    try:
        with pytest.raises(UserError, match=r"reference_connector/config\.json: missing"):
            ModelFolder(saved, *GENERATING)
    finally:
        hidden.rename(part)


def test_a_text_to_image_folder_is_no_editing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="generates from text only"):
        ModelFolder(text_copy("mini", tmp_path / "text")).check_editing()


# Mistakes


def test_a_reference_for_a_model_that_cannot_edit(
    text_renderer: Renderer, image_tokenizer: TATok, states: torch.Tensor, latents: torch.Tensor
) -> None:
    with pytest.raises(UserError, match="it generates from text only"):
        reference.encode_reference([noisy_image(64, 64)], image_tokenizer, text_renderer, 2)
    with pytest.raises(UserError, match="it generates from text only"):
        render(text_renderer, states[:1], [1], references=[latents[0]])


def test_a_model_folder_without_its_image_tokenizer(renderer: Renderer) -> None:
    with pytest.raises(UserError, match="image_tokenizer"):
        reference.encode_reference([noisy_image(64, 64)], None, renderer, 2)


@pytest.mark.parametrize("count", [0, 2])
def test_noise_injection_takes_one_reference(renderer: Renderer, image_tokenizer: TATok, count: int) -> None:
    with pytest.raises(UserError, match=f"{count} reference images.*exactly one"):
        reference.encode_reference([noisy_image(64, 64)] * count, image_tokenizer, renderer, 2)


def test_sizes_that_do_not_fit_are_named(renderer: Renderer, states: torch.Tensor, latents: torch.Tensor) -> None:
    with pytest.raises(UserError, match="2000 x 100 px.*crop"):
        reference.autoencoder_pixels(np.zeros((100, 2000, 3), np.uint8), 64)
    with pytest.raises(UserError, match=r"needs \[B, 3, 64, 64\]"):
        renderer.encode_latents(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match=r"shape \[3, 8, 4, 8\]"):
        renderer.condition(states, latents[:, :, :4])
    with pytest.raises(UserError, match=r"shape \[2, 8, 8, 8\].*\[3, 8, 8, 8\]"):
        renderer.condition(states, latents[:2])
    with pytest.raises(UserError, match="2 seeds and 3 references"):
        render(renderer, states, [1, 2], references=[None] * 3)


def test_a_connector_of_another_model_is_refused(renderer: Renderer) -> None:
    whole = (renderer.connector, renderer.transformer, renderer.vae)
    with pytest.raises(UserError, match="reference_connector gives 64 channels"):
        Renderer(*whole, ReferenceConnector(8, 64))
    with pytest.raises(UserError, match="takes 32 channels, the autoencoder's latents have 8"):
        Renderer(*whole, ReferenceConnector(32, 192))


def test_the_defaults_are_the_upstream_sizes() -> None:
    with torch.device("meta"):
        connector = ReferenceConnector()
    assert {name: tuple(value.shape) for name, value in connector.state_dict().items()} == {
        "layers.0.weight": (2304, 32),
        "layers.0.bias": (2304,),
        "layers.2.weight": (2304, 2304),
        "layers.2.bias": (2304,),
        "layers.3.weight": (2304,),
    }


def test_at_full_size_there_are_1754_rows() -> None:
    """Shapes alone, on the meta device; depth and width of what the rows do not pass are small."""
    with torch.device("meta"):
        vae = AutoencoderDC(
            latent_channels=32,
            encoder_block_out_channels=(32,) * 6,
            decoder_block_out_channels=(32,) * 6,
            encoder_layers_per_block=(1,) * 6,
            decoder_layers_per_block=(1,) * 6,
        )
        transformer = SanaTransformer2DModel(caption_channels=2304, sample_size=32, num_layers=1)
        renderer = Renderer(Connector(), transformer, vae, ReferenceConnector())
        latents = torch.zeros(2, 32, 32, 32)
        assert renderer.image_size == 1024
        assert renderer.condition(torch.zeros(2, 730, 2048), latents).shape == (2, 1754, 2304)
        assert renderer.null_condition(730, editing=True).shape == (1, 1754, 2304)
