"""Operations and memory counted on fake tensors are those of a real run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from editing import POLICY_ONLY, editing_copy, text_copy

from blip3o_rl.training.planning import counting, plan


@pytest.fixture(scope="module")
def mini() -> counting.Model:
    return plan.of_folder("mini")


def test_the_published_model_has_its_published_sizes() -> None:
    policy, renderer = counting.parameters(plan.published())
    assert policy == 1_854_256_128
    assert renderer > 1_604_641_952, "SANA, connector and autoencoder"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_count_what_a_real_run_counts(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    faked = counting.policy_pass(plan.of_folder("mini"), 2, 100, True, checkpointing)
    monkeypatch.setattr(counting, "fake", contextlib.nullcontext)
    real = counting.policy_pass(plan.of_folder("mini"), 2, 100, True, checkpointing)
    assert real.flops == faked.flops
    assert real.bytes == pytest.approx(faked.bytes, rel=0.1), "some operations are taken apart on fake tensors"


def test_operations_are_two_per_weight_and_token_and_three_times_with_gradients(mini: counting.Model) -> None:
    batch, tokens = 2, 64
    forward = counting.policy_pass(mini, batch, tokens, update=False).flops
    layers = counting.parameters(mini)[0] - mini.policy.vocab_size * mini.policy.hidden_size
    head = mini.policy.num_image_tokens * mini.policy.hidden_size
    products = 2 * batch * tokens * (layers + head)
    attention = 4 * batch * tokens**2 * mini.policy.num_attention_heads * mini.policy.head_dim
    assert forward == pytest.approx(products + attention * mini.policy.num_hidden_layers, rel=0.01)
    assert counting.policy_pass(mini, batch, tokens, update=True).flops == pytest.approx(3 * forward, rel=0.05)


def test_memory_grows_with_the_batch_and_falls_with_checkpointing(mini: counting.Model) -> None:
    kept = [counting.policy_pass(mini, batch, 100, True).bytes for batch in (2, 4)]
    assert 1.5 * kept[0] < kept[1] < 2.1 * kept[0]
    assert counting.policy_pass(mini, 4, 100, True, checkpointing=True).bytes < 0.8 * kept[1]
    assert counting.policy_pass(mini, 4, 100, False).bytes < 0.8 * kept[1]
    assert torch.get_default_dtype() == torch.float32


def test_guidance_costs_less_than_twice_because_its_condition_is_one_row(mini: counting.Model) -> None:
    plain, guided = (counting.renderer_step(mini, 4, 82, guided).flops for guided in (False, True))
    assert 1.5 * plain < guided < 2 * plain


def test_a_step_does_not_project_the_condition_again(mini: counting.Model) -> None:
    """The keys and values of 82 rows in each layer, at least, are counted once per image."""
    width, layers = 192, mini.transformer["num_layers"]
    shared = counting.renderer_condition(mini, 4, 82, False).flops
    assert shared > 2 * 4 * 82 * 2 * width**2 * layers
    few, many = (counting.renderer_step(mini, 4, rows, False).flops for rows in (82, 164))
    assert many - few == 4 * 4 * 64 * 82 * width * layers, "attention over more rows, nothing else"


def test_an_editing_model_is_counted_with_its_reference(tmp_path: Path) -> None:
    """Twice the width of the network's input, and rows for the reference's latent."""
    plain, editor = (plan.of_folder(copy("mini", tmp_path / copy.__name__)) for copy in (text_copy, editing_copy))
    text, edit = (counting.renderer_step(model, 4, 82, True).flops for model in (plain, editor))
    assert 1.5 * text < edit < 2.5 * text
    assert counting.parameters(editor)[1] > counting.parameters(plain)[1]
    assert editor.image_tokenizer_gib > plain.image_tokenizer_gib == 0
    alone = plan.of_folder(editing_copy("mini", tmp_path / "policy_only", **POLICY_ONLY))
    assert counting.renderer_step(alone, 4, 82, True).flops == text
