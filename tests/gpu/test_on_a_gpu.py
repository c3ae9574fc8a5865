"""What only a GPU can show, in small: `pytest -m gpu`, the first part of `make gpu-check`. Skipped without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.training.log_probs import entropies, log_probs
from blip3o_rl.training.planning import counting, plan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def test_the_samplers_logits_are_the_products_in_float32() -> None:
    from blip3o_rl.rollout.vllm_model import shard_logits

    layout = TokenLayout(0, 1, 2, 3, 5, 4096)
    hidden = torch.randn(64, 2048, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(4101, 2048, device="cuda", dtype=torch.bfloat16)
    found = shard_logits(hidden, weight, 0, 4101, layout, torch.float32)[:, 5:]
    torch.testing.assert_close(found.double(), hidden.double() @ weight[5:].double().T, atol=2e-3, rtol=1e-5)


def test_log_probs_and_entropies_of_a_whole_vocabulary_take_a_chunk_of_memory() -> None:
    logits = torch.randn(4096, 65536, device="cuda", dtype=torch.bfloat16)
    labels = torch.randint(65536, (4096,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = log_probs(logits, labels), entropies(logits)
    assert torch.cuda.max_memory_allocated() - before < 2 * logits.nbytes
    expected = logits[:64].double().log_softmax(-1)
    torch.testing.assert_close(found[0][:64].double(), expected.gather(-1, labels[:64, None])[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1][:64].double(), -(expected.exp() * expected).sum(-1), atol=1e-4, rtol=0)


def test_captured_states_are_written_without_waiting_for_the_gpu_and_freed() -> None:
    from blip3o_rl.rollout.state_pool import StateStore

    store = StateStore(2048, torch.bfloat16, torch.device("cuda"), max_untaken=4)
    request = store.begin("e", "k", 730)
    states = torch.randn(730, 2048, device="cuda", dtype=torch.bfloat16)
    for row in range(730):
        store.pool.write(states[row : row + 1], np.array([request.first + row]))
    store.finish(["e"])
    assert torch.equal(store.take("k"), states.cpu())
    assert len(store.pool.rows) == 1


@pytest.mark.parametrize("batch", [1, 16])
def test_a_batch_is_decoded_within_its_plan(batch: int) -> None:
    model = plan.published()
    with torch.device("cuda"), torch.no_grad():
        renderer = counting.build_renderer(model)
        latents = torch.randn(batch, *renderer.latent_shape)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        renderer.decode(latents)
    used = torch.cuda.max_memory_allocated() - before
    assert used < 1.5 * counting.decoding(model, batch).bytes, "convolutions need workspace, but not that much"
