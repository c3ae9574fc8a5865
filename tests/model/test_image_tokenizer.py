from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from blip3o_rl.model.image_tokenizer import TATok, nearest

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


def tiny(**changes: object) -> TATok:
    """A small random tokenizer, its weights large enough that different patches get different codes."""
    torch.manual_seed(0)
    sizes = {"image_size": 54, "patch_size": 2, "bottleneck_dim": 8, "num_image_tokens": 64} | SIZES | changes
    tokenizer = TATok(**sizes).eval()
    with torch.no_grad():
        for layer in (tokenizer.encoder.embeddings.patch_embedding, tokenizer.bottleneck.in_linear):
            layer.weight.mul_(20)
    return tokenizer


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 54, 54, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("scale", "count"), [(0, 729), (1, 169), (2, 81)])
def test_token_counts_and_ranges(pixels: torch.Tensor, scale: int, count: int) -> None:
    indices = tiny().encode(pixels, scale)
    assert indices.shape == (2, count) and indices.dtype == torch.int64
    assert int(indices.min()) >= 0 and int(indices.max()) < 64
    assert len(indices.unique()) > 8


def test_features_are_the_last_but_one_hidden_states_of_the_full_encoder(pixels: torch.Tensor) -> None:
    tokenizer = tiny()
    full = SiglipVisionModel(SiglipVisionConfig(image_size=54, patch_size=2, vision_use_head=False, **SIZES)).eval()
    missing, unexpected = full.load_state_dict(tokenizer.encoder.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("encoder.layers.2.", "post_layernorm.")) for name in missing)
    with torch.no_grad():
        hidden = full(pixels, output_hidden_states=True).hidden_states[-2]
        pooled = hidden.view(2, 27, 27, 32)[:, :26, :26].reshape(2, 13, 2, 13, 2, 32).mean((2, 4)).flatten(1, 2)
        expected = tokenizer.bottleneck.in_linear(tokenizer.encode_task_layer(pooled))
        assert torch.allclose(tokenizer.features(pixels, scale=1), expected, atol=1e-5)


def test_indices_are_nearest_effective_entries(pixels: torch.Tensor) -> None:
    tokenizer = tiny()
    vq = tokenizer.bottleneck.regularizer
    with torch.no_grad():
        entries = vq.embedding_proj(vq.embedding.weight)
        distances = torch.cdist(tokenizer.features(pixels, 2), entries.expand(2, -1, -1))
    assert torch.equal(tokenizer.encode(pixels, 2), distances.argmin(-1))


def test_l2_normalised_tokenizer_compares_directions(pixels: torch.Tensor) -> None:
    plain, directional = tiny(), tiny(l2_normalized=True)
    directional.load_state_dict(plain.state_dict())
    with torch.no_grad():
        similarity = F.normalize(plain.features(pixels, 2), dim=-1) @ F.normalize(plain.codebook(), dim=-1).T
    assert torch.equal(directional.encode(pixels, 2), similarity.argmax(-1))
    assert not torch.equal(directional.encode(pixels, 2), plain.encode(pixels, 2))


def test_nearest_in_chunks_equals_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(3, 700, 4, generator=generator), torch.randn(50, 4, generator=generator)
    assert torch.equal(nearest(vectors, codebook), torch.cdist(vectors, codebook.expand(3, -1, -1)).argmin(-1))


def test_training_forgets_the_kept_codebook(pixels: torch.Tensor) -> None:
    tokenizer = tiny()
    before = tokenizer.encode(pixels, 2)
    tokenizer.train()
    with torch.no_grad():
        tokenizer.bottleneck.regularizer.embedding.weight.neg_()
    assert not torch.equal(tokenizer.eval().encode(pixels, 2), before)


def test_save_and_load(pixels: torch.Tensor, tmp_path: Path) -> None:
    tokenizer = tiny(l2_normalized=True)
    tokenizer.save_pretrained(tmp_path)
    loaded = TATok.from_pretrained(tmp_path).eval()
    assert loaded.config.l2_normalized and loaded.grid == 27
    assert torch.equal(loaded.encode(pixels, 0), tokenizer.encode(pixels, 0))


def test_unknown_scale_is_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="scale 3"):
        tiny().encode(pixels, 3)
