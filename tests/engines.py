"""A tiny random policy, as a folder that transformers and vLLM load, and a vLLM engine over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.model.token_layout import add_image_tokens
from blip3o_rl.rollout.vllm_patches import executor

WORKERS = Path(__file__).parent / "rollout"
"""Where the engine finds its worker extension."""
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_policy(
    folder: Path, hidden: int = 64, layers: int = 2, num_image_tokens: int = 96, grid: int = 6, seed: int = 0
) -> Path:
    """Writes a random byte-level policy (float32, tied embeddings) with its tokenizer to `folder`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<|im_start|>",)])
    tokenizer.chat_template = CHAT_TEMPLATE
    layout = add_image_tokens(tokenizer, num_image_tokens, grid)
    config = Blip3oNextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=max(1, hidden // 64),
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
        **layout.config_fields(),
    )
    torch.manual_seed(seed)
    Blip3oNextForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def tiny_engine(policy: Path, async_scheduling: bool = False, ranks: int = 1) -> Iterator[Any]:
    """A vLLM engine in processes of its own, as verl runs it, made to be difficult.

    3 sequences at a time, prefill chunks of at most 32 tokens, a KV cache too small for 3 whole requests (so that
    preemptions must happen), and the msgpack channel without insecure serialisation.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(WORKERS))
        patch.setenv("PYTHONPATH", str(WORKERS))
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
        from vllm import LLM
        from vllm.platforms.cpu import CpuPlatform

        check = CpuPlatform.check_and_update_config

        def check_and_schedule(config: Any) -> None:
            check(config)
            config.scheduler_config.async_scheduling = async_scheduling

        patch.setattr(CpuPlatform, "check_and_update_config", staticmethod(check_and_schedule))
        llm = LLM(
            str(policy),
            dtype="float32",
            max_model_len=128,
            max_num_seqs=3,
            max_num_batched_tokens=32,
            block_size=16,
            num_gpu_blocks_override=10,
            enforce_eager=True,
            disable_log_stats=False,
            tensor_parallel_size=ranks,
            worker_extension_cls="syncing_worker.SyncingWorker",
            **executor(ranks),
        )
        assert llm.collective_rpc("start_capture", args=(64,)) == [True] + [False] * (ranks - 1)
        yield llm
        llm.llm_engine.engine_core.shutdown(timeout=1)
