"""What a run needs per GPU, phase by phase, and how long its stages take; known before a weight is loaded.

Everything is on the same GPUs: the trainer's state always, vLLM while samples are made and asleep afterwards, the
renderer and the rewards all the time. The phases are those of a step. Samples are rendered and scored while others are
still sampled, so that rollout is one phase.

Memory of activations and operations are counted on the real modules (`counting`); sizes of states follow from verl's
and vLLM's settings. Times assume the shares of a GPU's peak rates below. docs/the_3b.md has what was measured on an
H100 and an H200, with random weights and 16 images: memory as planned, stages but rendering two to five times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blip3o_rl.checkpoint.upstream_config import DC_AE, SANA, read_config
from blip3o_rl.config.composition import find_recipe
from blip3o_rl.config.groups import RenderSettings
from blip3o_rl.config.train import read_settings
from blip3o_rl.errors import UserError
from blip3o_rl.machine import float32_gib
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.training.planning import counting, rewards
from blip3o_rl.training.planning.counting import Cost, Model
from blip3o_rl.training.planning.gpus import CONTEXT_GIB, Gpu

GIB = 2**30
ASLEEP_GIB = 1.0
"""What vLLM keeps while it sleeps, besides its context."""
ENGINE_GIB = 1.5
"""Activations and graphs that vLLM takes from its share, besides weights and cache."""
USABLE = 0.95
"""Share of the memory that allocators can use before fragmentation ends a run."""
COMPUTE, BANDWIDTH, RENDERING = 0.4, 0.7, 0.2
"""Shares of the peak rates that stages reach: assumed, but that of rendering, measured on an H100 (docs/the_3b.md)."""
ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
MICRO, LOG_PROB_MICRO = f"{ACTOR}ppo_micro_batch_size_per_gpu", f"{ROLLOUT}log_prob_micro_batch_size_per_gpu"
CHECKPOINTING = "actor_rollout_ref.model.enable_gradient_checkpointing"
PARAM_OFFLOAD, OPTIMIZER_OFFLOAD = f"{ACTOR}fsdp_config.param_offload", f"{ACTOR}fsdp_config.optimizer_offload"
UTILIZATION, LORA = f"{ROLLOUT}gpu_memory_utilization", "actor_rollout_ref.model.lora_rank"
RENDER_BATCH, BYPASS = "render.max_batch_size", "algorithm.rollout_correction.bypass_mode"
MAX_CHANGES = 40


@cache
def published() -> Model:
    """The published 3B model, for plans before its weights are at hand; one object, since its counts are kept by it."""
    from blip3o_rl.model.policy import Blip3oNextConfig

    layout = TokenLayout(151669, 151670, 151671, 3, 151674, 65536)
    sizes = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    sizes |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 217210}
    return Model(Blip3oNextConfig(**sizes, **layout.config_fields(), tie_word_embeddings=True), SANA, DC_AE)


def of_folder(folder: str | Path) -> Model:
    """The model of a folder, from its configs alone."""
    from blip3o_rl.model.folder import GENERATING, REFERENCE_CONNECTOR, ModelFolder

    model = ModelFolder(folder, *GENERATING)
    parts = ("transformer", "vae", *([REFERENCE_CONNECTOR] if model.can_edit else []))
    configs = {part: read_config(model.path / "renderer" / part) for part in parts}
    tokenizer = float32_gib(model.path / "image_tokenizer") if model.can_edit else 0.0
    return Model(model.policy_config, **configs, image_tokenizer_gib=tokenizer)


@dataclass
class Plan:
    """A run on GPUs of one kind.

    Attributes:
        config: composed for GPUs.
        changes: overrides that were added to make it fit.
    """

    config: DictConfig
    model: Model
    gpu: Gpu
    changes: dict[str, Any] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the configuration, changes included."""
        found = self.changes[key] if key in self.changes else OmegaConf.select(self.config, key)
        return default if found is None else found

    @cached_property
    def _settings(self) -> Any:
        return read_settings(self.config)

    @property
    def gpus(self) -> int:
        return self._settings.trainer.gpus

    @property
    def samples(self) -> int:
        """Samples of a step on one GPU."""
        return math.ceil(self._settings.data.train_batch_size * self._settings.actor_rollout_ref.rollout.n / self.gpus)

    @property
    def image_tokens(self) -> int:
        return TokenLayout.from_config(self.model.policy).tokens_per_image(self._settings.model.scale)

    @property
    def tokens(self) -> int:
        """Of the longest prompt and the image together."""
        return self._settings.data.max_prompt_length + self.image_tokens

    @property
    def render(self) -> RenderSettings:
        return self._settings.render.model_copy(update={"max_batch_size": self.get(RENDER_BATCH)})

    def phases(self) -> dict[str, dict[str, float]]:
        """Phase -> what is on the fullest GPU in it, GiB."""
        policy, renderer = counting.parameters(self.model)
        trained = self._adapter_parameters() or policy
        layer = (policy - self.model.policy.vocab_size * self.model.policy.hidden_size) / self._layers()
        weights = {"trainer: weights": 4 * policy / self.gpus / GIB}
        optimizer = {"trainer: optimizer": 8 * trained / self.gpus / GIB}
        # FSDP gathers a layer, the next one and the embedding in bfloat16.
        gathered = {"trainer: gathered layers": 2 * (policy - (self._layers() - 2) * layer) / GIB}
        always = {
            "contexts": 3 * CONTEXT_GIB,
            "renderer: weights": 2 * renderer / GIB,
            "image tokenizer": self.model.image_tokenizer_gib,
            "rewards": rewards.shared_gib(self._settings),
        }
        sleeps = bool(self.get(f"{ROLLOUT}free_cache_engine", True))
        engine = {"vLLM": self._engine_gib(), "captured states": self._states_gib()}
        asleep = {"vLLM, asleep": ASLEEP_GIB} if sleeps else engine
        resident = ({} if self.get(PARAM_OFFLOAD) else weights) | ({} if self.get(OPTIMIZER_OFFLOAD) else optimizer)
        pass_, update = self._log_prob_cost(), self._update_cost()
        step = {"trainer: gradients": 4 * trained / self.gpus / GIB, "trainer: activations": update.bytes / GIB}
        return {
            "rollout": always | resident | engine | {"renderer: activations": self._render_bytes() / GIB},
            "log-probs": always | resident | weights | gathered | asleep | {"trainer: activations": pass_.bytes / GIB},
            "update": always | weights | optimizer | gathered | asleep | step,
        }  # fmt: skip

    @property
    def limit_gib(self) -> float:
        return USABLE * self.gpu.memory_gib

    def overflow(self) -> dict[str, float]:
        """Phase -> GiB that are missing; `cache` is what vLLM's share lacks for one sequence."""
        missing = {name: sum(parts.values()) - self.limit_gib for name, parts in self.phases().items()}
        missing["cache"] = (1 - self.cache_sequences()) * self._sequence_gib()
        return {name: size for name, size in missing.items() if size > 0}

    def cache_sequences(self) -> float:
        """Sequences whose keys and values fit into vLLM's share at once."""
        free = self._engine_gib() - ENGINE_GIB - 2 * counting.parameters(self.model)[0] / GIB
        return free / self._sequence_gib()

    def _sequence_gib(self) -> float:
        """Keys and values of a whole sequence in bfloat16."""
        config = self.model.policy
        return 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * self.tokens / GIB

    def _engine_gib(self) -> float:
        return float(self.get(UTILIZATION)) * self.gpu.memory_gib

    def _states_gib(self) -> float:
        """The pool of captured states, which grows by doubling."""
        rows = min(self.get(f"{ROLLOUT}max_num_seqs"), self.samples) * (self.image_tokens + 1)
        return 2 * 2 * rows * self.model.policy.hidden_size / GIB

    def _render_bytes(self) -> float:
        return max(self._denoising_bytes(), self._decoding_bytes())

    def _denoising_bytes(self) -> float:
        """Of rollouts or evaluations, whichever needs more."""
        return max(
            counting.renderer_step(*self._render_sizes(), config.guided_steps > 0, config.size).bytes
            for config in map(self.render.generation, (False, True))
        )

    def _decoding_bytes(self) -> float:
        return max(self._decoding(self.render.generation(full)).bytes for full in (False, True))

    def _layers(self) -> int:
        return self.model.policy.num_hidden_layers

    def _adapter_parameters(self) -> int:
        """Trained weights of a LoRA run on all linear layers, or 0."""
        rank, config = int(self.get(LORA, 0)), self.model.policy
        heads, values = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        width, inner = config.hidden_size, config.intermediate_size
        sides = 2 * (width + heads) + 2 * (width + values) + 3 * (width + inner)
        return rank * sides * self._layers()

    def _update_cost(self) -> Cost:
        return counting.policy_pass(self.model, self.get(MICRO), self.tokens, True, bool(self.get(CHECKPOINTING)))

    def _log_prob_cost(self) -> Cost:
        return counting.policy_pass(self.model, self.get(LOG_PROB_MICRO), self.tokens, False, False)

    def _render_sizes(self) -> tuple[Model, int, int]:
        return self.model, self.render.max_batch_size, self.image_tokens + 1

    def _decoding(self, config: GenerationConfig) -> Cost:
        return counting.decoding(self.model, self.render.max_batch_size, config.size)

    def seconds(self) -> dict[str, float]:
        """Stage -> planned seconds per step."""
        rate, bandwidth = COMPUTE * self.gpu.tflops * 1e12, BANDWIDTH * self.gpu.gb_s * 1e9
        policy = counting.parameters(self.model)[0]
        at_once = max(1, min(self.samples, self.get(f"{ROLLOUT}max_num_seqs"), int(self.cache_sequences())))
        # Over the length of a sequence half of its cache is there on average.
        read = 2 * policy + at_once * self._sequence_gib() * GIB / 2
        token = max(read / bandwidth, 2 * policy * at_once / rate)
        images = self.samples * self.gpus / (self.render.replicas or self.gpus)
        rollout = self.render.generation(full=False)
        denoising = counting.denoising(*self._render_sizes(), rollout)
        image = (denoising + self._decoding(rollout).flops) / self.render.max_batch_size
        log_probs = self._log_prob_cost().flops / self.get(LOG_PROB_MICRO)
        return {
            "sample": math.ceil(self.samples / at_once) * self.image_tokens * token,
            "render": images * image / (RENDERING * self.gpu.tflops * 1e12),
            "log-probs (policy and reference)": (2 - self.get(BYPASS)) * self.samples * log_probs / rate,
            "update": self.samples * self._update_cost().flops / self.get(MICRO) / rate,
        }


def fit(plan: Plan) -> Plan:
    """The plan with the smallest change that makes it fit.

    Raises:
        UserError: nothing does.
    """
    for _ in range(MAX_CHANGES):
        missing = plan.overflow()
        if not missing:
            return _without_needless(plan)
        phase = max(missing, key=missing.__getitem__)
        remedies = _remedies(plan, phase)
        if not remedies:
            break
        plan = Plan(plan.config, plan.model, plan.gpu, plan.changes | remedies[0])
    phases = ", ".join(f"{name} {size:.1f} GiB" for name, size in plan.overflow().items())
    raise UserError(
        f"{plan.gpus} x {plan.gpu.name}: too small whatever is changed (missing: {phases}); take more or larger GPUs"
    )


def _without_needless(plan: Plan) -> Plan:
    """The plan without the changes that a later one made unnecessary."""
    for key in list(plan.changes):
        rest = {name: value for name, value in plan.changes.items() if name != key}
        smaller = Plan(plan.config, plan.model, plan.gpu, rest)
        if not smaller.overflow():
            plan = smaller
    return plan


def _remedies(plan: Plan, phase: str) -> list[dict[str, Any]]:
    """Changes that make a phase smaller, the cheapest in time first."""
    micro, log_micro, utilization = plan.get(MICRO), plan.get(LOG_PROB_MICRO), float(plan.get(UTILIZATION))
    found: list[dict[str, Any]] = []
    if phase == "update":
        if not plan.get(CHECKPOINTING):
            found.append({CHECKPOINTING: True})
        if micro > 1:
            found.append({MICRO: _smaller_divisor(plan.samples, micro)})
    if phase == "log-probs" and log_micro > 1:
        found.append({LOG_PROB_MICRO: _smaller_divisor(plan.samples, log_micro)})
    if phase == "cache":
        return [{UTILIZATION: round(utilization + 0.05, 2)}] if utilization < 0.9 else []
    if phase == "rollout":
        if plan.cache_sequences() > 16 and utilization > 0.15:
            found.append({UTILIZATION: round(utilization - 0.05, 2)})
        if plan._denoising_bytes() > plan._decoding_bytes() and plan.render.max_batch_size > 1:
            found.append({RENDER_BATCH: plan.render.max_batch_size // 2})
    if phase != "update":
        found += [{key: True} for key in (OPTIMIZER_OFFLOAD, PARAM_OFFLOAD) if not plan.get(key)]
    if not plan.get(LORA, 0):
        found.append({LORA: 32})
    return found


def _smaller_divisor(samples: int, size: int) -> int:
    return next(divisor for divisor in range(size - 1, 0, -1) if samples % divisor == 0)


def write_recipe(recipe: Path, plan: Plan, folder: Path) -> None:
    """Writes a recipe with the plan's changes and its number of GPUs to a new folder."""
    written: Any = OmegaConf.load(find_recipe(recipe) / "config.yaml")
    for key, value in {"trainer.n_gpus_per_node": plan.config.trainer.n_gpus_per_node, **plan.changes}.items():
        OmegaConf.update(written, key, value, force_add=True)
    folder.mkdir(parents=True)
    OmegaConf.save(written, folder / "config.yaml")


def warning(config: DictConfig, folder: Path) -> str:
    """What is to be expected on this machine's GPUs if the run does not fit as it is configured, or "".

    A warning and no refusal, as plans were compared with few GPUs. Where there is none (a cluster's head), it is "".
    """
    import torch

    if not torch.cuda.is_available():
        return ""
    here = torch.cuda.get_device_properties(0)  # opens no context, which would keep memory until the run ends
    gpu = Gpu(here.name, here.total_memory / GIB, 1, 1)
    wanted = Plan(config, of_folder(folder), gpu)
    missing = ", ".join(f"{phase} {size:.1f} GiB" for phase, size in wanted.overflow().items())
    if not missing:
        return ""
    try:
        changes = " ".join(f"{key}={value}" for key, value in fit(wanted).changes.items())
    except UserError as error:
        return str(error)
    return f"{gpu.name}: too little memory is planned for (missing: {missing}); with these it would fit: {changes}"
