"""Presets of the published 3B model by hardware: `hardware=8x80gb`, or `hardware=1x40gb-lora` to train adapters.

A Hydra group that comes on top of a recipe: the number of GPUs, and what makes a step of the recipe fit into their
memory. Overrides on the command line come on top of it. Each preset is planned to fit with recipe `text_3b`
(`tests/training/planning/test_presets.py`); none has been run.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore

GROUP = "hardware"
COUNTS = (1, 2, 4, 8)
MEMORIES = (40, 80, 141)
"""GB: A100 40 GB; A100 80 GB or H100; H200."""
LORA: dict[str, Any] = {
    "model": {"lora_rank": 32, "lora_alpha": 64},
    "actor": {"optim": {"lr": 1.0e-5}},
    "rollout": {"load_format": "safetensors"},
}
"""Adapters on all linear layers, with ten times the usual learning rate; vLLM loads the base weights once, itself."""
TIGHT: dict[str, Any] = {
    "actor": {"ppo_micro_batch_size_per_gpu": 2, "fsdp_config": {"optimizer_offload": True}},
    "rollout": {"log_prob_micro_batch_size_per_gpu": 16},
    "ref": {"log_prob_micro_batch_size_per_gpu": 16},
}
"""All weights on one GPU of 40 GB: small updates, and the optimizer in main memory while images are made."""


def preset(count: int, memory: int, lora: bool) -> dict[str, Any]:
    """What a preset sets, by group."""
    tight = count * memory <= 40 and not lora
    return {"trainer": {"n_gpus_per_node": count}, "actor_rollout_ref": LORA if lora else TIGHT if tight else {}}


for _count in COUNTS:
    for _memory in MEMORIES:
        for _lora in (False, True):
            _name = f"{_count}x{_memory}gb{'-lora' if _lora else ''}"
            ConfigStore.instance().store(_name, preset(_count, _memory, _lora), group=GROUP, package="_global_")
