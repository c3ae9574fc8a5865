from __future__ import annotations

import pytest
import torch

from blip3o_rl.data.synthetic.scenes import TAGS, all_metadata
from blip3o_rl.mini import parts
from blip3o_rl.mini.autoencoders import TokenizerTraining, cluster_centers
from blip3o_rl.mini.worlds import random_images
from blip3o_rl.model.token_layout import TokenLayout, check_tokenizer, encode_prompt

PROMPTS = [line["prompt"] for tag in TAGS for line in all_metadata(tag)]


def test_tokenizer_speaks_qwen_and_images() -> None:
    tokenizer, layout = parts.make_tokenizer(PROMPTS)
    check_tokenizer(tokenizer, layout)
    assert layout.num_image_tokens == parts.NUM_IMAGE_TOKENS and layout.image_ids.stop == len(tokenizer)
    for special in parts.QWEN_SPECIALS:
        assert len(tokenizer(special, add_special_tokens=False)["input_ids"]) == 1
    ids = encode_prompt(tokenizer, "a photo of a red circle and a blue square", 2, layout)
    assert len(ids) <= 40 and ids[-1] == layout.scale_token_id(2)
    assert tokenizer.decode(ids[:-2]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPlease generate image based on "
        "the following caption: a photo of a red circle and a blue square<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", ["ein Grüß Gott 42", "日本語", "<I5> is text to the user"])
def test_any_text_survives_the_byte_level_tokenizer(text: str) -> None:
    tokenizer, _ = parts.make_tokenizer(PROMPTS[:50])
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_parts_fit_together() -> None:
    torch.manual_seed(0)
    tokenizer, layout = parts.make_tokenizer(PROMPTS[:50])
    policy = parts.make_policy(tokenizer, layout)
    renderer = parts.make_renderer(parts.make_vae())
    assert TokenLayout.from_config(policy.config) == layout
    assert policy.get_output_embeddings().weight is policy.get_input_embeddings().weight
    assert policy.config.vocab_size == len(tokenizer)
    assert renderer.connector.config.in_features == policy.config.hidden_size
    assert renderer.latent_shape == (8, 8, 8)
    assert parts.make_image_tokenizer().grid == layout.grid


def test_cluster_centers_follow_their_seed_and_find_the_clusters() -> None:
    places = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    vectors = places.repeat(50, 1) + 0.1 * torch.randn(150, 2, generator=generator)
    centers = cluster_centers(vectors, 3, seed=1)
    assert torch.equal(centers, cluster_centers(vectors, 3, seed=1))
    assert float(torch.cdist(places, centers).min(dim=1).values.max()) < 0.1


def test_the_codebook_is_seeded_from_the_images_and_unused_entries_are_moved() -> None:
    torch.manual_seed(0)
    model = TokenizerTraining(parts.make_image_tokenizer(), (108, 64), unquantized=1, revive_until=100)
    pixels, target = random_images(2, (108, 64), seed=0)
    before = model.tokenizer.codebook().detach().clone()
    assert model(pixels, target, 2, number=0).keys() == {"loss", "pixel", "edge"}
    assert torch.equal(model.tokenizer.codebook(), before)
    losses = model(pixels, target, 2, number=1)
    assert losses.keys() == {"loss", "pixel", "edge", "pull", "used"} and all(map(torch.isfinite, losses.values()))
    seeded = model.tokenizer.codebook().detach().clone()
    assert not torch.isclose(seeded, before).any(dim=1).all()
    model.usage[:7] = 0.0
    model(pixels, target, 2, number=50)
    moved = (model.tokenizer.codebook() != seeded).any(dim=1)
    assert moved[:7].all() and not moved[7:].any()
    losses["loss"].backward()
    assert model.tokenizer.bottleneck.regularizer.embedding.weight.grad is not None
