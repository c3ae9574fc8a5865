"""Images to indices: upstream's preprocessing, nearest entries, one policy for numbers, files of all kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from blip3o_rl.data.images import read_image
from blip3o_rl.errors import UserError
from blip3o_rl.model.image_tokenizer import TATok, nearest, whole_float32

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


def test_l2_normalized_tokenizer_compares_directions(pixels: torch.Tensor) -> None:
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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 2}, r"also hold encoder.*\(16 tensors in all\); copy"),
        ({"num_hidden_layers": 4}, r"lack encoder.*\(16 tensors in all\); copy"),
        ({"image_size": 56}, "expected shape"),
        ({"l2_normalised": True}, "did you mean 'l2_normalized'"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights_is_refused(changes: dict, says: str, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=says) as error:
        TATok.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    file.write_text("[]")
    with pytest.raises(UserError, match="is no JSON object"):
        TATok.from_pretrained(tmp_path)


def test_unknown_scale_is_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="scale 3"):
        tiny().encode(pixels, 3)


def noisy(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """An image in which every pixel matters, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_the_indices_of_a_png_are_those_of_upstreams_preprocessing(tmp_path: Path) -> None:
    """By hand with PIL: squash, bicubic, 1/255, mean and deviation 0.5. The image is neither square nor small."""
    Image.fromarray(noisy(200, 90)).save(tmp_path / "a.png")
    tokenizer = tiny()
    with Image.open(tmp_path / "a.png") as image:
        square = np.asarray(image.convert("RGB").resize((54, 54), resample=Image.Resampling.BICUBIC))
    by_hand = torch.tensor((square / 255 - 0.5) / 0.5, dtype=torch.float32).permute(2, 0, 1)[None]
    prepared = tokenizer.preprocess([read_image(tmp_path / "a.png")])
    torch.testing.assert_close(prepared, by_hand, atol=1e-6, rtol=0)
    for scale in (0, 1, 2):
        expected = tokenizer.encode(by_hand, scale)
        assert torch.equal(tokenizer.tokenize([read_image(tmp_path / "a.png")], scale), expected)


def test_preprocessing_is_siglips_processor_bit_by_bit() -> None:
    images = [noisy(*size) for size in ((200, 90), (30, 31), (384, 384))]
    processor = SiglipImageProcessorPil(size={"height": 384, "width": 384}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    expected = torch.from_numpy(np.stack(processor([Image.fromarray(image) for image in images])["pixel_values"]))
    found = tiny(image_size=384, patch_size=14).preprocess(images)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_batches_do_not_change_the_indices() -> None:
    images = [noisy(60 + i, 50, seed=i) for i in range(5)]
    tokenizer = tiny()
    together = tokenizer.tokenize(images, 0)
    assert together.shape == (5, 729)
    assert torch.equal(tokenizer.tokenize(images, 0, batch_size=2), together)
    assert torch.equal(torch.cat([tokenizer.tokenize([image], 0) for image in images]), together)


def test_the_codebook_is_projected_once(pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, made = tiny(), []
    original = tokenizer.codebook
    monkeypatch.setattr(tokenizer, "codebook", lambda: made.append(1) or original())
    first = tokenizer.encode(pixels, 2)
    assert torch.equal(tokenizer.encode(pixels, 2), first) and len(made) == 1
    assert torch.equal(tokenizer.half().float().encode(pixels, 2), tokenizer.encode(pixels, 2)) and len(made) == 2


def test_half_precision_weights_are_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="bfloat16.*float32"):
        tiny().bfloat16().encode(pixels)


def test_autocast_and_shortened_products_do_not_reach_the_indices(pixels: torch.Tensor) -> None:
    tokenizer = tiny()
    expected = tokenizer.features(pixels)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert (tokenizer.features(pixels) - expected).abs().max() > 1e-3
            with whole_float32(torch.device("cpu")):
                assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
                # Another pass may round the last bits; shortened products differ by more than 1e-3.
                torch.testing.assert_close(tokenizer.features(pixels), expected, atol=1e-6, rtol=1e-5)
            indices = tokenizer.encode(pixels)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(indices, tokenizer.encode(pixels))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(1, 1e3))
def test_near_ties_are_settled_in_float64(seed: int, length: float) -> None:
    """Entries far from the origin, two of them closer to each other than float32 can tell by |c|^2 - 2 z c."""
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(40, 16, generator=generator) + length
    codebook[7] = codebook[31]
    codebook[7, 0] += 1e-4 * length
    vectors = codebook[31] + 1e-3 * torch.randn(60, 16, generator=generator)
    exact = (vectors[:, None].double() - codebook.double()).square().sum(-1).argmin(-1)
    assert torch.equal(nearest(vectors, codebook), exact)


def test_of_equally_near_entries_the_first_is_taken() -> None:
    codebook = torch.tensor([[5.0], [1.0], [-1.0], [1.0], [-1.0]])
    assert nearest(torch.tensor([[0.0], [2.0]]), codebook).tolist() == [1, 1]


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), Image.new("RGB", (4, 4))]
)
def test_anything_but_rgb_arrays_is_refused(image: Any) -> None:
    with pytest.raises(ValueError, match="read_image"):
        tiny().preprocess([image])
