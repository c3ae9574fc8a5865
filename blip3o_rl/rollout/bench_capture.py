"""What keeping the hidden states costs the sampler: `python -m blip3o_rl.rollout.bench_capture`.

One engine over a random policy, generation of the same requests with and without capture in turns, and the ratio of the
medians: turns, because on a shared machine two runs one after the other compare the machine's moods. Handing the
states over is timed apart, since a caller does it while other requests are being sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.rollout.state_capture import sampling_params, unpack_states

LAYOUT = TokenLayout(256, 257, 258, 3, 261, 1024)
PROMPT_LENGTHS = (20, 33, 46, 59)


def write_random_policy(folder: Path, hidden: int, layers: int) -> None:
    """A policy without a tokenizer; 3.5 M parameters at hidden 256 and 4 layers."""
    fields: dict[str, Any] = dict(LAYOUT.config_fields())
    config = Blip3oNextConfig(
        vocab_size=LAYOUT.image_ids.stop,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        intermediate_size=3 * hidden,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **fields,
    )
    torch.manual_seed(0)
    Blip3oNextForCausalLM(config).save_pretrained(folder)


def benchmark(
    requests: int = 64, scale: int = 2, rounds: int = 7, hidden: int = 256, layers: int = 4
) -> dict[str, Any]:
    """Times generation with and without capture.

    Args:
        requests: images a round, all sampled at once.
        scale: 0, 1, 2 for 730, 170, 82 tokens an image.
        rounds: timings of each kind, after one round of warm-up.
        hidden, layers: size of the random policy.

    Returns:
        Median seconds of generation without and with capture, their ratio, milliseconds to hand over one image's
        states, and the settings.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        write_random_policy(Path(folder), hidden, layers)
        llm = LLM(
            folder,
            skip_tokenizer_init=True,
            dtype="auto" if torch.cuda.is_available() else "float32",
            max_model_len=1024,
            max_num_seqs=requests,
            worker_extension_cls="blip3o_rl.rollout.state_capture.StateCapture",
        )
    llm.collective_rpc("start_capture", args=(requests,))
    ids = [f"request{i}" for i in range(requests)]
    prompts: list[Any] = [
        {"prompt_token_ids": torch.randint(256, (PROMPT_LENGTHS[i % 4],)).tolist()} for i in range(requests)
    ]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    handing_over = []
    for turn in range(2 * (rounds + 1)):
        capture = bool(turn % 2)
        asked = [sampling_params(LAYOUT, scale, request_id if capture else None) for request_id in ids]
        start = time.perf_counter()
        llm.generate(prompts, asked, use_tqdm=False)
        seconds[capture].append(time.perf_counter() - start)
        if capture:
            start = time.perf_counter()
            for request_id in ids:
                unpack_states(llm.collective_rpc("take_states", args=(request_id,)))
            handing_over.append((time.perf_counter() - start) / requests)
    plain, captured = (statistics.median(seconds[kind][1:]) for kind in (False, True))
    return {
        "plain_s": round(plain, 4),
        "capture_s": round(captured, 4),
        "ratio": round(captured / plain, 4),
        "take_states_ms": round(1000 * statistics.median(handing_over[1:]), 3),
        "requests": requests,
        "tokens": LAYOUT.tokens_per_image(scale) + 1,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("requests", 64), ("scale", 2), ("rounds", 7), ("hidden", 256), ("layers", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    print(json.dumps(benchmark(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
