"""The sizes of the released BLIP3o-NEXT models.

An official checkpoint holds the weights of SANA and DC-AE but not their configs: the original fetches those from the
SANA-1.5 repository. They are kept here so that a conversion needs no second download. Sources: the transformer and
vae configs of SANA1.5_1.6B_1024px in diffusers' layout; with them the modules have the 1,604,641,952 parameters and
the 375 tensors of the released weights.
"""

from __future__ import annotations

from typing import Any

DIFFUSION_REPOSITORY = "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers"
VISION_TOWER = "google/siglip2-so400m-patch14-384"

SANA: dict[str, Any] = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "dropout": 0.0,
    "attention_bias": False,
    "sample_size": 32,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "interpolation_scale": None,
    "guidance_embeds": False,
    "qk_norm": "rms_norm_across_heads",
    "timestep_scale": 1.0,
}
"""SanaTransformer2DModel of SANA-1.5 1.6B at 1024 px. No positional embedding (`interpolation_scale` None)."""

_BLOCKS = ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock", "EfficientViTBlock"]
_WIDTHS = [128, 256, 512, 512, 1024, 1024]
_MULTISCALES: list[list[int]] = [[], [], [], [5], [5], [5]]
DC_AE: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": _BLOCKS,
    "decoder_block_types": _BLOCKS,
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": _MULTISCALES,
    "decoder_qkv_multiscales": _MULTISCALES,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
"""AutoencoderDC f32c32 as SANA uses it: 1024 px pictures to 32 x 32 latents of 32 channels."""

TA_TOK: dict[str, Any] = {}
"""TATok: its defaults are the released sizes. `l2_normalized` is known to `ta_tok.pth` alone."""

POLICY: dict[str, Any] = {
    "vocab_size": 217210,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "image_start_tag_id": 151669,
    "image_end_tag_id": 151670,
    "scale_start_token_id": 151671,
    "num_scale_tokens": 3,
    "image_start_token_id": 151674,
    "num_image_tokens": 65536,
}
"""Sizes and token ids of the policy (Qwen3-1.7B). For reference and checks: a conversion reads them from the source."""
