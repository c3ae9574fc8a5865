"""Log-probs and entropies in chunks are those of a plain log-softmax, gradients included, in float32 and bfloat16."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from blip3o_rl.config.train import compose_recipe
from blip3o_rl.training import log_probs as chunked
from blip3o_rl.training.compat import verl as verl_patches
from blip3o_rl.training.planning.counting import Counter


def reference(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(-1).gather(-1, labels[..., None])[..., 0]


@given(
    shape=st.sampled_from([(1,), (7,), (chunked.CHUNK,), (chunked.CHUNK + 3,), (2, 5), (0,)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(*shape, 33, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(33, shape, generator=generator)
    weights = torch.randn(shape, generator=generator)
    found = chunked.log_probs(logits, labels)
    assert found.dtype == torch.float32 and found.shape == shape
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    other = logits.detach().double().requires_grad_()
    expected = reference(other, labels)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), other)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-6)
    # The normalizer is rounded at the logits' size (200 * 2**-23 = 2.4e-5), which scales every term of the gradient;
    # the weights reach 4. The gradient is rounded to the logits' dtype.
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=2e-4, rtol=rounding)


class Count(TorchDispatchMode):
    """Counts calls into torch."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verl_calls_torch_once_per_token_and_the_patch_per_chunk(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verl.utils.torch_functional import logprobs_from_logits
    from verl.workers.engine.fsdp import transformer_impl

    monkeypatch.setattr(transformer_impl, "logprobs_from_logits", logprobs_from_logits)
    logits, labels = torch.randn(300, 8).to(dtype), torch.zeros(300, dtype=torch.int64)
    with Count() as before:
        slow = transformer_impl.logprobs_from_logits(logits, labels)
    verl_patches.chunked_log_probs()
    with Count() as after:
        fast = transformer_impl.logprobs_from_logits(logits, labels)
    assert before.calls > 300 and after.calls < 30
    torch.testing.assert_close(fast, slow.float(), atol=0.02, rtol=0.02)


@given(
    shape=st.sampled_from([(1,), (7,), (chunked.CHUNK + 3,), (2, 5), (0,)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 2**16),
)
def test_entropies_and_their_gradients(shape: tuple[int, ...], dtype: torch.dtype, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(*shape, 33, generator=generator)).to(dtype).requires_grad_()
    weights = torch.randn(shape, generator=generator)
    found = chunked.entropies(logits)
    assert found.dtype == torch.float32 and found.shape == shape
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    other = logits.detach().double().requires_grad_()
    expected = torch.distributions.Categorical(logits=other).entropy()
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), other)
    # A difference of two numbers of the logits' size, up to 200, each rounded to float32; the gradient has it as well.
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=1e-3, rtol=rounding)


def test_the_update_asks_for_no_entropy_and_the_pass_for_the_old_log_probs_does() -> None:
    """The update would keep the entropy for its gradient: the head of the 3B then takes 1.35 GB a sample, not 0.42."""
    from verl.trainer.ppo.v1 import PPOTrainer

    class Asked(Exception):
        pass

    def ask(batch: SimpleNamespace) -> None:
        raise Asked(batch.extra_info["calculate_entropy"])

    workers = SimpleNamespace(compute_log_prob=ask, update_actor=ask)
    config = compose_recipe("text_3b", ["device=gpu"])
    trainer = SimpleNamespace(config=config, actor_rollout_wg=workers)
    for step, expected in ((PPOTrainer._compute_old_log_prob, True), (PPOTrainer._update_actor, False)):
        with pytest.raises(Asked) as asked:
            step(trainer, SimpleNamespace(extra_info={}), {})
        assert asked.value.args == (expected,)


def test_verls_entropies_keep_copies_of_the_logits_and_the_patch_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.utils.torch_functional import entropy_from_logits
    from verl.workers.engine.fsdp import transformer_impl

    original = getattr(entropy_from_logits, "__wrapped__", entropy_from_logits)  # another test may have patched it
    monkeypatch.setattr(transformer_impl.verl_F, "entropy_from_logits", original)
    monkeypatch.setattr(chunked, "CHUNK", 16)
    logits = torch.nn.Parameter(torch.randn(4, 100, 50))

    def peak() -> float:
        with Counter(torch.nn.ParameterList([logits])) as counter, torch.no_grad():  # type: ignore[arg-type]
            transformer_impl.verl_F.entropy_from_logits(logits)
        return counter.peak / (logits.numel() * 4)

    slow, before = transformer_impl.verl_F.entropy_from_logits(logits), peak()
    verl_patches.chunked_log_probs()
    assert before > 1.5 and peak() < 0.2
    torch.testing.assert_close(transformer_impl.verl_F.entropy_from_logits(logits), slow)
