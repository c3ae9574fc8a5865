"""Adapters are merged as peft merges them, from the files that transformers writes for a peft model's state dict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from blip3o_rl.errors import UserError
from blip3o_rl.training import lora


def saved_run(actor: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Writes what verl writes for a LoRA run; returns the weights merged by peft."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    wrapped = get_peft_model(
        Qwen3ForCausalLM(config).to(dtype), LoraConfig(r=4, lora_alpha=12, target_modules="all-linear")
    )
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.2)
    states = {name: value.clone() for name, value in wrapped.state_dict().items() if "lm_head" not in name}
    Qwen3ForCausalLM(config).save_pretrained(actor / "huggingface", state_dict=states)
    (actor / lora.META).write_text(json.dumps({"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM"}))
    return wrapped.merge_and_unload().state_dict()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_merge_is_pefts(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    expected = saved_run(tmp_path, dtype)
    names = [name for file in (tmp_path / "huggingface").glob("*.safetensors") for name in load_file(file)]
    assert lora.is_lora(names)
    found = lora.merged(tmp_path / "huggingface", tmp_path)
    assert set(found) == set(expected) - {"lm_head.weight"} and not lora.is_lora(list(found))
    for name, value in found.items():
        assert value.dtype == dtype
        torch.testing.assert_close(value, expected[name], atol=tolerance, rtol=tolerance)


def test_rank_and_alpha_must_be_recorded(tmp_path: Path) -> None:
    saved_run(tmp_path, torch.float32)
    (tmp_path / lora.META).unlink()
    with pytest.raises(UserError, match="lora_train_meta.json: missing"):
        lora.merged(tmp_path / "huggingface", tmp_path)
