from __future__ import annotations

import pytest
import torch

from blip3o_rl.data.synthetic.scenes import TAGS, all_metadata
from blip3o_rl.mini import parts
from blip3o_rl.model.token_layout import TokenLayout, check_tokenizer, encode_prompt

PROMPTS = [line["prompt"] for tag in TAGS for line in all_metadata(tag)]


def test_tokenizer_speaks_qwen_and_images() -> None:
    tokenizer, layout = parts.make_tokenizer(PROMPTS)
    check_tokenizer(tokenizer, layout)
    assert layout.num_image_tokens == 512 and layout.image_ids.stop == len(tokenizer)
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
