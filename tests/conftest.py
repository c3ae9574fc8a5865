"""What tests of several packages share: an untrained model of this package, and tiny upstream checkpoints.

An upstream checkpoint has every key of the real ones and random weights. It is built from transformers, diffusers and
torch alone, not with the package's own key map, which it is there to check.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_endpoint import ChatEndpoint
from diffusers import AutoencoderDC, SanaTransformer2DModel
from diffusers.models.normalization import RMSNorm
from hypothesis import settings
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from blip3o_rl.mini import parts
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.token_layout import TokenLayout

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")
yaml.SafeLoader = yaml.CSafeLoader  # OmegaConf's: verl's configuration is composed hundreds of times
os.environ.setdefault("RAY_worker_niceness", "0")  # as training.cluster does, for tests that start Ray themselves
HIDDEN, CAPTION, CODES, CODE_WIDTH, TOWER = 64, 64, 512, 16, 48
SANA = {
    "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 32, "cross_attention_dim": 64,
    "caption_channels": CAPTION, "mlp_ratio": 2.5, "sample_size": 8, "patch_size": 1,
    "qk_norm": "rms_norm_across_heads", "interpolation_scale": None,
}  # fmt: skip
VAE = {
    "latent_channels": 8,
    "encoder_block_out_channels": [16, 16, 32, 32], "decoder_block_out_channels": [16, 16, 32, 32],
    "encoder_layers_per_block": [0, 1, 1, 1], "decoder_layers_per_block": [0, 1, 1, 1],
    "encoder_qkv_multiscales": [[], [], [], []], "decoder_qkv_multiscales": [[], [], [], []], "scaling_factor": 0.5,
}  # fmt: skip
TA_TOK = {
    "image_size": 108, "patch_size": 4, "hidden_size": TOWER, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 64, "bottleneck_dim": CODE_WIDTH, "num_image_tokens": CODES,
    "l2_normalized": False,
}  # fmt: skip
PROMPTS = ["a photo of a red circle", "a photo of two squares"]


class _ScaleLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))


def _vision_tower() -> nn.Module:
    """TA-Tok whole: with the encoder's last layer and head, the feature decoder and the scale layer."""
    tower = nn.Module()
    sizes = {"hidden_size": TOWER, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    tower.encoder = SiglipVisionModel(SiglipVisionConfig(image_size=108, patch_size=4, **sizes))
    tower.decoder = nn.Module()
    tower.decoder.vision_model = Siglip2VisionModel(
        Siglip2VisionConfig(patch_size=1, num_channels=CODE_WIDTH, num_patches=64, **sizes)
    )
    tower.encode_task_layer = nn.Sequential(nn.Linear(TOWER, TOWER), nn.Tanh())
    tower.decode_task_layer = nn.Sequential(nn.Linear(TOWER, TOWER), nn.Tanh(), nn.Linear(TOWER, TOWER))
    tower.bottleneck = nn.Module()
    tower.bottleneck.in_linear = nn.Linear(TOWER, CODE_WIDTH)
    tower.bottleneck.out_linear = nn.Linear(CODE_WIDTH, CODE_WIDTH)
    tower.bottleneck.regularizer = nn.Module()
    tower.bottleneck.regularizer.embedding = nn.Embedding(CODES, CODE_WIDTH)
    tower.bottleneck.regularizer.embedding_proj = nn.Linear(CODE_WIDTH, CODE_WIDTH)
    tower.scale_layer = _ScaleLayer()
    return tower


def _connector(width: int) -> nn.Sequential:
    norm = RMSNorm(CAPTION, eps=1e-5, elementwise_affine=True)
    return nn.Sequential(nn.Linear(width, CAPTION), nn.GELU("tanh"), nn.Linear(CAPTION, CAPTION), norm)


@dataclass
class Upstream:
    """A checkpoint in the upstream layout."""

    folder: Path

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for file in self.files for name, value in load_file(file).items()}

    def config(self, **changes: Any) -> None:
        """Changes fields of config.json; None takes one out."""
        file = self.folder / "config.json"
        fields = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))

    def rewrite(self, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Changes the tensors of a single-file checkpoint."""
        tensors = self.tensors()
        change(tensors)
        save_file(
            {name: value.contiguous().clone() for name, value in tensors.items()}, self.files[0], {"format": "pt"}
        )


def write_upstream(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 1,
    lm_head: str = "copy",
    tower: bool = True,
    editing: bool = False,
    intermediate: int = 128,
    layers: int = 2,
) -> Upstream:
    """Writes a checkpoint.

    Args:
        folder: created.
        dtype: of all tensors.
        shards: number of files; the larger ones get an index.
        lm_head: "absent", "copy" of the embedding, or "separate".
        tower: with TA-Tok.
        editing: with the reference's connector, the unused one, and the flags in config.json.
        intermediate, layers: sizes of the policy.
    """
    folder.mkdir(parents=True)
    tokenizer, layout, config, tensors = _built(dtype, lm_head, tower, editing, intermediate, layers)
    _save(folder, tensors, shards)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(_config(config, layout, tokenizer, dtype, editing)))
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_k": 20, "top_p": 0.95}\n')
    for name, fields in (("sana", SANA), ("vae", VAE), ("ta_tok", TA_TOK)):
        (folder / f"{name}_config.json").write_text(json.dumps(fields))
    return Upstream(folder)


@lru_cache(maxsize=8)
def _built(
    dtype: torch.dtype, lm_head: str, tower: bool, editing: bool, intermediate: int, layers: int
) -> tuple[Any, TokenLayout, Qwen3Config, dict[str, torch.Tensor]]:
    """What `write_upstream` writes; built once, since most checkpoints have the same settings."""
    torch.manual_seed(0)
    tokenizer, layout = parts.make_tokenizer(PROMPTS, image_tokens=CODES)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, tie_word_embeddings=lm_head != "separate",
    )  # fmt: skip
    whole = nn.Module()
    policy = Qwen3ForCausalLM(config)
    whole.model, whole.lm_head = policy.model, policy.lm_head
    whole.model.diffusion_connector = _connector(HIDDEN)
    whole.model.sana = SanaTransformer2DModel(**SANA)
    whole.model.sana_vae = AutoencoderDC(**VAE)
    if tower:
        whole.model.vision_tower = nn.Module()
        whole.model.vision_tower.vision_tower = _vision_tower()
    if editing:
        whole.model.und_image_vae_connector = _connector(8)
        whole.model.und_image_vae_as_noise_connector = nn.Sequential(nn.Conv2d(16, 8, 1))
    tensors = {name: value.to(dtype).clone() for name, value in whole.state_dict().items()}
    if lm_head == "absent":
        del tensors["lm_head.weight"]
    return tokenizer, layout, config, tensors


def _config(config: Qwen3Config, layout: Any, tokenizer: Any, dtype: torch.dtype, editing: bool) -> dict[str, Any]:
    """config.json as transformers 4 writes it, with upstream's fields."""
    fields = {
        name: getattr(config, name)
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "tie_word_embeddings", "rms_norm_eps", "max_position_embeddings",
        )
    }  # fmt: skip
    fields |= {"model_type": "llava_qwen_grpo", "architectures": ["LlavaQwenGRPO"], "rope_theta": 1000000.0}
    fields |= {"rope_scaling": None, "torch_dtype": str(dtype).removeprefix("torch."), "use_cache": False}
    fields |= {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "mm_vision_tower": "x"}
    fields |= {name: value for name, value in layout.config_fields().items() if name != "image_grid"}
    if editing:
        fields |= {"use_und_image_vae": True, "use_und_image_vae_as_noise": True}
    return fields


def _save(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names = list(tensors)
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    places, filled = {}, 0
    for name in names:
        places[name] = f"model-{min(shards, filled * shards // total + 1):05}-of-{shards:05}.safetensors"
        filled += tensors[name].numel() * tensors[name].element_size()
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """A run changes the environment of its process, which ends with it; the process of the tests goes on."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def upstream(tmp_path: Path) -> Callable[..., Upstream]:
    """Writes tiny upstream checkpoints; arguments are those of `write_upstream`."""
    made = iter(range(100))
    return lambda **settings: write_upstream(tmp_path / f"upstream{next(made)}", **settings)


@dataclass(frozen=True)
class Untrained:
    """The mini model's classes and sizes with random weights, frozen: as modules and as a model folder."""

    tokenizer: Any
    layout: TokenLayout
    policy: Any
    renderer: Renderer
    folder: Path


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Untrained:
    """One for the whole session; a test that changes weights makes its own with `mini.parts`."""
    torch.manual_seed(0)
    tokenizer, layout = parts.make_tokenizer([*PROMPTS, "a photo of a very long prompt ", "a star left of a ring"])
    policy = parts.make_policy(tokenizer, layout).eval().requires_grad_(False)
    renderer = parts.make_renderer(parts.make_vae()).eval().requires_grad_(False)
    folder = model_folder.save(
        tmp_path_factory.mktemp("untrained"),
        policy=policy,
        tokenizer=tokenizer,
        renderer=renderer,
        image_tokenizer=parts.make_image_tokenizer(),
        source="test",
    )
    return Untrained(tokenizer, layout, policy, renderer, folder)


@pytest.fixture
def endpoint() -> Iterator[ChatEndpoint]:
    """A chat endpoint for judges and for rewriting."""
    with ChatEndpoint() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def coco_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mask2Former by its classes alone: what is refused when prompts are loaded depends on no weight."""
    from types import SimpleNamespace

    from blip3o_rl.data.geneval import CLASSES
    from blip3o_rl.rewards import observation
    from blip3o_rl.rewards.geneval import reward

    original = observation.open_detector

    def opened(detector: str, *rest: Any) -> Any:
        names = SimpleNamespace(classes=CLASSES), observation.NearestColors()
        return names if detector == "mask2former" else original(detector, *rest)

    for module in (observation, reward):
        monkeypatch.setattr(module, "open_detector", opened)
    observation.open_observer.cache_clear()
    yield
    observation.open_observer.cache_clear()
