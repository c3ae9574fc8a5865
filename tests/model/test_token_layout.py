"""Where the image tokens are, and how a prompt is spelled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts
from blip3o_rl.model.token_layout import TokenLayout, check_tokenizer, encode_prompt

UPSTREAM = TokenLayout(151669, 151670, 151671, 3, 151674, 65536)
PROMPT = "a photo of a red circle"


def test_the_upstream_ids() -> None:
    assert UPSTREAM.image_ids == range(151674, 217210)
    assert [UPSTREAM.tokens_per_image(scale) for scale in (0, 1, 2)] == [729, 169, 81]
    assert [UPSTREAM.scale_token_id(scale) for scale in (0, 1, 2)] == [151671, 151672, 151673]


def test_config_fields_round_trip() -> None:
    assert TokenLayout.from_config(SimpleNamespace(**UPSTREAM.config_fields())) == UPSTREAM


def test_a_text_only_model_is_named_as_such() -> None:
    with pytest.raises(UserError, match="image_start_tag_id.*no BLIP3o-NEXT policy"):
        TokenLayout.from_config(SimpleNamespace(vocab_size=100))


def test_text_ids_are_no_image_tokens() -> None:
    assert UPSTREAM.to_indices(torch.tensor([151674, 217209])).tolist() == [0, 65535]
    with pytest.raises(ValueError, match="outside the image vocabulary"):
        UPSTREAM.to_indices(torch.tensor([151673]))


def test_the_prompt_is_qwens_chat_with_the_tag_and_the_scale_token() -> None:
    tokenizer, layout = parts.make_tokenizer([PROMPT])
    ids = encode_prompt(tokenizer, PROMPT, 1, layout)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nPlease generate image based on the following caption: {PROMPT}<|im_end|>\n"
        "<|im_start|>assistant\n<im_start><S1>"
    )
    assert ids[-2:] == [layout.image_start_tag_id, layout.scale_token_id(1)]


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer, layout = parts.make_tokenizer([PROMPT])
    shifted = TokenLayout(**{**vars(layout), "image_start_token_id": layout.image_start_token_id + 1})
    with pytest.raises(UserError, match="<I0> has id"):
        check_tokenizer(tokenizer, shifted)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(UserError, match="scale=3: must be one of 0, 1, 2"):
        UPSTREAM.tokens_per_image(3)
