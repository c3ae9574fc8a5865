"""Where the image tokens are, and how a prompt is spelled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts
from blip3o_rl.model.policy import Blip3oNextConfig
from blip3o_rl.model.token_layout import (
    KEEP_INSTRUCTION,
    SystemPrompts,
    TokenLayout,
    check_tokenizer,
    encode_edit_prompt,
    encode_prompt,
    task_of,
)

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


def test_each_task_has_its_system_prompt_and_the_others_keep_upstreams(tmp_path: Path) -> None:
    """Read back from the policy's config.json; ids without a prompt of one's own are those of a plain layout."""
    tokenizer, plain = parts.make_tokenizer([PROMPT])
    prompts = SystemPrompts(edit="Change what is asked.", subject="Show it anew.")
    policy = Blip3oNextConfig(**replace(plain, system_prompts=prompts).config_fields())
    policy.save_pretrained(tmp_path)
    layout = TokenLayout.from_config(Blip3oNextConfig.from_pretrained(tmp_path))
    assert layout.system_prompts == prompts and "system_prompts" not in plain.config_fields()
    sent = TokenLayout.from_config(OmegaConf.create(layout.config_fields()))
    assert sent == layout, "as the launcher hands it to the agent loops"

    tokens = torch.zeros(1, 81, dtype=torch.int64)

    def edit(layout: TokenLayout, instruction: str, task: Any = None) -> list[int]:
        return encode_edit_prompt(tokenizer, instruction, tokens, 2, layout, task)

    def system(ids: list[int]) -> str:
        return tokenizer.decode(ids).split("<|im_end|>")[0].removeprefix("<|im_start|>system\n")

    assert system(edit(layout, PROMPT)) == "Change what is asked."
    assert system(edit(layout, PROMPT, "subject")) == "Show it anew."
    assert edit(layout, KEEP_INSTRUCTION) == edit(plain, KEEP_INSTRUCTION)
    assert edit(layout, PROMPT, "keep") == edit(plain, PROMPT)
    assert encode_prompt(tokenizer, PROMPT, 2, layout) == encode_prompt(tokenizer, PROMPT, 2, plain)
    both = replace(plain, system_prompts=SystemPrompts(text_to_image="Paint."))
    assert system(encode_prompt(tokenizer, PROMPT, 2, both)) == "Paint."


def test_the_sentence_that_keeps_names_its_task() -> None:
    assert [task_of(text) for text in ("Keep the image unchanged.", "keep the image unchanged", "keep it")] == [
        *["keep"] * 2,
        "edit",
    ]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [({"edti": "x"}, r"system_prompts\.edti: there is no such task; .*did you mean 'edit'"), ({"edit": 3}, "be text")],
)
def test_system_prompts_that_are_none(prompts: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TokenLayout.from_config(SimpleNamespace(**UPSTREAM.config_fields(), system_prompts=prompts))


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer, layout = parts.make_tokenizer([PROMPT])
    shifted = TokenLayout(**{**vars(layout), "image_start_token_id": layout.image_start_token_id + 1})
    with pytest.raises(UserError, match="<I0> has id"):
        check_tokenizer(tokenizer, shifted)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(UserError, match="scale=3: must be one of 0, 1, 2"):
        UPSTREAM.tokens_per_image(3)
