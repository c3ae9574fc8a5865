"""The upstream layout at full size, by key and shape alone; and what a difference is called."""

from __future__ import annotations

import math

import pytest
import torch

from blip3o_rl.checkpoint import upstream_config
from blip3o_rl.checkpoint import upstream_keys as upstream
from blip3o_rl.errors import UserError
from blip3o_rl.model.policy import Blip3oNextConfig
from blip3o_rl.model.token_layout import TokenLayout


@pytest.fixture(scope="module")
def manifest(full_size: dict) -> dict[str, tuple[int, ...]]:
    return upstream.manifest(full_size)


def test_full_size_modules_are_built_without_memory(full_size: dict) -> None:
    assert {value.device.type for module in full_size.values() for value in module.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("model.embed_tokens.weight", (217210, 2048)),
        ("model.layers.27.self_attn.q_proj.weight", (2048, 2048)),
        ("model.layers.0.self_attn.k_proj.weight", (1024, 2048)),
        ("model.layers.0.self_attn.q_norm.weight", (128,)),
        ("model.layers.27.mlp.down_proj.weight", (2048, 6144)),
        ("model.norm.weight", (2048,)),
        ("model.diffusion_connector.0.weight", (2304, 2048)),
        ("model.diffusion_connector.2.bias", (2304,)),
        ("model.diffusion_connector.3.weight", (2304,)),
        ("model.sana.patch_embed.proj.weight", (2240, 32, 1, 1)),
        ("model.sana.caption_projection.linear_1.weight", (2240, 2304)),
        ("model.sana.caption_norm.weight", (2240,)),
        ("model.sana.transformer_blocks.19.attn2.norm_q.weight", (2240,)),
        ("model.sana.transformer_blocks.19.ff.conv_inverted.weight", (11200, 2240, 1, 1)),
        ("model.sana.proj_out.weight", (32, 2240)),
        ("model.und_image_vae_connector.0.weight", (2304, 32)),
        ("model.vision_tower.vision_tower.encoder.embeddings.patch_embedding.weight", (1152, 3, 14, 14)),
        ("model.vision_tower.vision_tower.encoder.embeddings.position_embedding.weight", (729, 1152)),
        ("model.vision_tower.vision_tower.encoder.encoder.layers.25.mlp.fc1.weight", (4304, 1152)),
        ("model.vision_tower.vision_tower.encode_task_layer.0.weight", (1152, 1152)),
        ("model.vision_tower.vision_tower.bottleneck.in_linear.weight", (1536, 1152)),
        ("model.vision_tower.vision_tower.bottleneck.regularizer.embedding.weight", (65536, 1536)),
        ("model.vision_tower.vision_tower.bottleneck.regularizer.embedding_proj.bias", (1536,)),
    ],
)
def test_full_size_keys_and_shapes(manifest: dict, key: str, shape: tuple[int, ...]) -> None:
    assert manifest[key] == shape


def test_full_size_parameter_counts_are_the_published_ones(manifest: dict) -> None:
    def count(prefix: str) -> int:
        return sum(math.prod(shape) for key, shape in manifest.items() if key.startswith(prefix))

    assert count("model.sana.") == 1_604_641_952
    assert sum(key.startswith("model.sana_vae.") for key in manifest) == 375
    assert round(count("model.sana_vae.") / 1e6, 2) == 312.25
    assert count("model.diffusion_connector.") == 10_033_920
    policy = sum(count(prefix) for prefix in ("model.embed_tokens.", "model.layers.", "model.norm."))
    assert policy == 1_854_256_128 and "lm_head.weight" not in manifest


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("lm_head.weight", ("policy", "lm_head.weight")),
        ("model.diffusion_connector.3.weight", ("renderer/connector", "layers.3.weight")),
        ("model.sana.scale_shift_table", ("renderer/transformer", "scale_shift_table")),
        ("model.sana_vae.decoder.conv_in.bias", ("renderer/vae", "decoder.conv_in.bias")),
        ("model.und_image_vae_connector.2.bias", ("renderer/reference_connector", "layers.2.bias")),
        (upstream.TOWER + "encode_task_layer.0.bias", ("image_tokenizer", "encode_task_layer.0.bias")),
        (upstream.TOWER + "encoder.encoder.layers.26.mlp.fc1.bias", ("upstream",) * 2),
        (upstream.TOWER + "encoder.head.probe", ("upstream",) * 2),
        (upstream.TOWER + "decoder.vision_model.post_layernorm.bias", ("upstream",) * 2),
        ("model.und_image_vae_as_noise_connector.0.weight", ("upstream",) * 2),
        (upstream.TOWER + "encoder.encoder.layers.27.mlp.fc1.bias", None),
        ("model.layers.28.mlp.up_proj.weight", None),
        ("model.sana.transformer_blocks.20.scale_shift_table", None),
        ("model.vision_tower.encode_task_layer.0.bias", None),
    ],
)
def test_each_key_has_one_place(manifest: dict, key: str, place: tuple[str, str] | None) -> None:
    found = upstream.place(key, manifest)
    assert found == (place if place is None or place[0] != "upstream" else ("upstream", key))


def stored(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_differences_name_every_key() -> None:
    used = {upstream.EMBEDDING: (8, 4), **{f"model.layers.{n}.mlp.up_proj.weight": (6, 4) for n in range(4)}}
    found = {
        upstream.EMBEDDING: stored((8, 2)),
        "lm_head.weight": stored((8, 2)),
        "model.layers.3.mlp.up_proj.weight": stored((6, 4), torch.int8),
        "model.layers.0.mlp.up_proj.weight": stored((6, 4)),
        "model.vision.x": stored((1,)),
    }
    assert upstream.differences(used, found) == (
        "2 missing: model.layers.{1-2}.mlp.up_proj.weight; 1 unexpected: model.vision.x; "
        "2 of the wrong shape: lm_head.weight, model.embed_tokens.weight [8, 2] instead of [8, 4]; "
        "1 of dtype int8: model.layers.3.mlp.up_proj.weight"
    )
    assert not upstream.differences(used, {key: stored(shape) for key, shape in used.items()})


def test_a_config_of_another_module_is_refused(full_size_policy: Blip3oNextConfig) -> None:
    with pytest.raises(UserError, match=r"config of renderer/vae: describes no such module"):
        upstream.build_modules(full_size_policy, upstream_config.SANA, {"encoder_block_types": "NoSuchBlock"}, None)


@pytest.mark.parametrize(
    ("fields", "keys", "flags"),
    [
        ({}, [], None),
        ({"use_und_image_vae_as_noise": True}, [upstream.REFERENCE + "0.bias"], (True, True)),
        ({}, [upstream.REFERENCE + "0.bias"], (True, False)),
        ({}, [upstream.REFERENCE + "0.bias", "model.und_image_vae_as_noise_connector.0.bias"], (True, True)),
        ({"only_use_und_image_vae_as_noise": True, "use_und_image_vae_as_noise": True},
         [upstream.REFERENCE + "0.bias"], (False, True)),
    ],
)  # fmt: skip
def test_how_an_editing_checkpoint_uses_its_reference(fields: dict, keys: list[str], flags) -> None:
    found = upstream_config.reference_flags(fields, dict.fromkeys(keys))
    assert found == (None if flags is None else {"cross_attention": flags[0], "noise_injection": flags[1]})


def test_full_size_layout_is_the_published_one(full_size_policy: Blip3oNextConfig) -> None:
    layout = TokenLayout.from_config(full_size_policy)
    assert (layout.image_ids.start, layout.image_ids.stop) == (151674, 217210)
    assert layout.tokens_per_image(0) == 729
    assert torch.equal(layout.to_ids(torch.tensor([65535])), torch.tensor([217209]))
