"""Operations and memory of the real modules, counted without weights and without a GPU.

The modules are built at full size and run on fake tensors: every operation has its shapes and no values. Operations are
counted by torch's own formulas. (Its `FlopCounterMode` keeps activations alive, so memory cannot be counted under it.)
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.model.renderer import Connector, ReferenceConnector, Renderer
from blip3o_rl.model.rendering import latent_side
from blip3o_rl.training.log_probs import entropies, log_probs

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FORMULAS: dict[Any, Any] = {
    **flop_registry,
    _ATTENTION: lambda q, k, v, *_, out_val, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, out_val, **__: sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)
    ),
}
"""torch's formulas, and those of the attention that fake tensors on the CPU take."""


@dataclass(frozen=True)
class Cost:
    """Of one pass over a batch.

    Attributes:
        flops: multiplications and additions, two per product.
        bytes: alive at once, besides weights and their gradients.
    """

    flops: float
    bytes: float


@dataclass(frozen=True, eq=False)
class Model:
    """Configurations of a model's parts, as their classes read them.

    An editing model is counted as it edits: with its second connector, and the size of its image tokenizer.
    """

    policy: Blip3oNextConfig
    transformer: dict[str, Any]
    vae: dict[str, Any]
    reference_connector: dict[str, Any] | None = None
    image_tokenizer_gib: float = 0.0

    @property
    def takes_latents(self) -> bool:
        """The renderer gets a reference's latent, which changes its shapes."""
        config = self.reference_connector
        return config is not None and ReferenceConnector.from_config(config).takes_latents


@cache
def parameters(model: Model) -> tuple[int, int]:
    """Number of weights of the policy and of the renderer."""
    with fake():
        policy, renderer = (
            sum(p.numel() for p in part.parameters()) for part in (build_policy(model), build_renderer(model))
        )
    return policy, renderer


@cache
def policy_pass(model: Model, batch: int, tokens: int, update: bool, checkpointing: bool = False) -> Cost:
    """One micro-batch of the trainer: forward and backward, or the forward pass for log-probs and entropies.

    Args:
        batch, tokens: samples, and tokens of prompt and image together.
        update: with gradients.
        checkpointing: the update computes each layer's activations twice instead of keeping them.
    """
    with fake(), torch.set_grad_enabled(update):
        policy = build_policy(model).train()
        policy.image_vocabulary_only = not model.policy.full_vocabulary
        if checkpointing:
            policy.gradient_checkpointing_enable()
        ids, labels = torch.zeros(batch, tokens, dtype=torch.int64), torch.zeros(batch * tokens, dtype=torch.int64)

        def call() -> None:
            logits = policy(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            if not update:
                entropies(logits)
            # verl takes the padding out, which is a copy.
            found = log_probs(torch.cat(list(logits.unbind())), labels)
            if update:
                found.sum().backward()

        return counted(policy, call)


@cache
def renderer_condition(model: Model, batch: int, rows: int, guided: bool, size: int | None = None) -> Cost:
    """What the Euler steps of a batch share; `rows` hidden states per image."""
    return _rendering(model, batch, rows, guided, steps=0, size=size)


@cache
def renderer_step(model: Model, batch: int, rows: int, guided: bool, size: int | None = None) -> Cost:
    """One Euler step, with the branch without a condition if it is guided; the bytes are those of steps and what they
    share together. `size` is the side of the images in pixels, None the model's own."""
    whole = _rendering(model, batch, rows, guided, steps=1, size=size)
    return Cost(whole.flops - renderer_condition(model, batch, rows, guided, size).flops, whole.bytes)


def denoising(model: Model, batch: int, rows: int, config: GenerationConfig) -> float:
    """Operations of all Euler steps of a batch, with what they share."""
    guided, plain = (renderer_step(model, batch, rows, branches, config.size).flops for branches in (True, False))
    shared = renderer_condition(model, batch, rows, config.guided_steps > 0, config.size).flops
    return shared + config.guided_steps * guided + (config.steps - config.guided_steps) * plain


def _rendering(model: Model, batch: int, rows: int, guided: bool, steps: int, size: int | None) -> Cost:
    with fake(), torch.no_grad():
        renderer = build_renderer(model)
        noise = _latents(renderer, batch, size)
        states = torch.zeros(batch, rows, model.policy.hidden_size)
        edits = model.takes_latents and noise.shape[1:] == renderer.latent_shape  # edits have the model's own size
        latents = noise if edits else None

        def call() -> None:
            condition = null = renderer.attended(renderer.condition(states, latents))
            if guided:
                null = renderer.attended(renderer.null_condition(rows if edits else 1, edits))
            for _ in range(steps):
                renderer.velocity(noise, 0.5, condition, null, 2.0 if guided else 1.0, latents)

        return counted(renderer, call)


@cache
def decoding(model: Model, batch: int, size: int | None = None) -> Cost:
    """The autoencoder's decoding of a batch of images of `size` pixels, in the renderer's chunks."""
    with fake(), torch.no_grad():
        renderer = build_renderer(model)
        latents = _latents(renderer, batch, size)
        return counted(renderer, lambda: renderer.decode(latents))


def _latents(renderer: Renderer, batch: int, size: int | None) -> torch.Tensor:
    side = latent_side(renderer, size)
    return torch.zeros(batch, renderer.latent_shape[0], side, side)


class Counter(TorchDispatchMode):
    """Counts operations, and the bytes of all storages that are alive, a module's weights left out."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.flops = self.peak = self._now = 0
        self._known = WeakIdKeyDictionary()
        for tensor in (*module.parameters(), *module.buffers()):
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if formula := FORMULAS.get(function._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and (storage := value.untyped_storage()) not in self._known:
                self._known[storage] = True
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return result

    def _change(self, size: int) -> None:
        self._now += size
        self.peak = max(self.peak, self._now)


def counted(module: torch.nn.Module, call: Callable[[], Any]) -> Cost:
    """The cost of a call, the module's weights left out; use it within `fake`."""
    for parameter in module.parameters():
        # FSDP hands a gradient on as soon as it is complete.
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with Counter(module) as counter:
        call()
    return Cost(counter.flops, counter.peak)


@contextmanager
def fake() -> Iterator[None]:
    """Tensors made here have shapes and no values."""
    before = torch.get_default_dtype()
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def build_policy(model: Model) -> Any:
    """The policy of these sizes in bfloat16, untrained."""
    torch.set_default_dtype(torch.bfloat16)
    policy = Blip3oNextForCausalLM(model.policy)
    torch.set_default_dtype(torch.float32)
    return policy


def build_renderer(model: Model) -> Renderer:
    """The renderer of these sizes in bfloat16, untrained, in evaluation mode."""
    torch.set_default_dtype(torch.bfloat16)
    transformer = SanaTransformer2DModel.from_config(model.transformer)
    connector = Connector(model.policy.hidden_size, transformer.config.caption_channels)
    config = model.reference_connector
    second = ReferenceConnector.from_config(config) if config else None
    renderer = Renderer(connector, transformer, AutoencoderDC.from_config(model.vae), second).eval()
    torch.set_default_dtype(torch.float32)
    return renderer
