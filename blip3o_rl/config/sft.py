"""The settings of supervised fine-tuning: what there is, of which type, and what is refused before anything starts.

Three layers, each on top of the one before: `config/blip3o_sft.yaml`, which holds the defaults and says what they mean;
the recipe, which names it in its `defaults`; and the overrides in Hydra's grammar. They are merged into typed
dataclasses, so that an unknown key or a value of the wrong type is refused wherever it stands, in one line with the
nearest known key. A run writes its settings down; resuming puts overrides on top of those.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from blip3o_rl.config.composition import CONFIG_MODULE, find_recipe
from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.sft.image_text import CROPS, Fields, check_first, find_files

BASE = "blip3o_sft"
DTYPES = ("auto", "float32", "bfloat16")


@dataclass
class RunSettings:
    recipe: str | None = None
    folder: str | None = None
    seed: int = MISSING
    processes: int | None = None
    save_every: int = MISSING
    keep: int = MISSING
    save_dtype: str = MISSING


@dataclass
class ModelSettings:
    folder: str = MISSING
    scales: list[int] = MISSING


@dataclass
class DataSettings:
    files: Any = MISSING
    image_field: str = MISSING
    caption_field: str = MISSING
    crop: str = MISSING
    shuffle: int = MISSING
    max_bad: int = MISSING
    max_tokens: int = MISSING
    threads: int = MISSING


@dataclass
class TrainSettings:
    steps: int = MISSING
    batch_size: int = MISSING
    accumulate: int = MISSING
    policy_lr: float = MISSING
    renderer_lr: float = MISSING
    final_lr: float = MISSING
    warmup: float = MISSING
    weight_decay: float = MISSING
    betas: list[float] = MISSING
    clip: float = MISSING
    diffusion_weight: float = MISSING
    condition_drop: float = MISSING
    noise_draws: int = MISSING
    trainable: str = MISSING
    gradient_checkpointing: bool = MISSING
    dtype: str = MISSING


@dataclass
class Settings:
    """All settings; what each means stands beside its value in `config/blip3o_sft.yaml`."""

    run: RunSettings = field(default_factory=RunSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    @property
    def fields(self) -> Fields:
        return Fields(self.data.image_field, self.data.caption_field)


def compose_settings(recipe: str | Path, overrides: list[str]) -> Settings:
    """The settings of a recipe with its overrides.

    Raises:
        UserError: unknown recipe, a recipe of another kind, an unknown key, or a value of the wrong type.
    """
    folder = find_recipe(recipe)
    file = folder / "config.yaml"
    written = _load(file)
    if list(written.pop("defaults", [])) != [BASE, "_self_"]:
        raise UserError(
            f"{file}: is no recipe of supervised fine-tuning, which says defaults: [{BASE}, _self_]; use recipes/sft, "
            "or blip3o-rl train for reinforcement learning"
        )
    base = resources.files(CONFIG_MODULE) / f"{BASE}.yaml"
    settings = _merged([(str(base), _load(Path(str(base)))), (str(file), written), *_layers(overrides)])
    settings.run.recipe = folder.name
    return settings


def load_settings(file: Path, overrides: list[str]) -> Settings:
    """The settings that a run wrote down, with overrides on top.

    Raises:
        UserError: the file is of another kind of run, or an override is wrong.
    """
    written = _load(file)
    if set(written) != set(vars(Settings())):
        raise UserError(f"{file}: is of no run of supervised fine-tuning; give the folder of a run of blip3o-rl sft")
    return _merged([(str(file), written), *_layers(overrides)])


def _load(file: Path) -> dict[str, Any]:
    """A YAML file's mapping."""
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: {_one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: is no mapping of settings")
    return found


def _layers(overrides: list[str]) -> list[tuple[str, Any]]:
    """Each override with its name for messages and what it sets."""
    layers = []
    for text in overrides:
        where = f"override '{text}'"
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            reason = _one_line(error) if "=" in text else "not of the form key=value"
            raise UserError(f"{where}: {reason}") from error
        layer: Any = OmegaConf.create()
        OmegaConf.update(layer, override.key_or_group, override.value())
        layers.append((where, layer))
    return layers


def _merged(layers: list[tuple[str, Any]]) -> Settings:
    merged: Any = OmegaConf.structured(Settings)
    for where, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise UserError(f"{where}: {_reason(error)}") from error
    settings: Any = OmegaConf.to_object(merged)
    return settings


def _reason(error: OmegaConfBaseException) -> str:
    """OmegaConf's complaint in one line; for an unknown key with the nearest known one."""
    key = error.full_key or ""
    if not isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        text = _one_line(error).split(" full_key:")[0]
        return f"{key}: " + ("must be a list, such as [2]" if "is not a ListConfig" in text else text)
    known = [f"{group}.{name}" for group, side in vars(Settings()).items() for name in vars(side)] + [*vars(Settings())]
    near = difflib.get_close_matches(key, known, 1)
    near = near or [name for name in known if name.endswith("." + key.split(".")[-1])]
    return f"there is no key {key}; " + (f"did you mean {near[0]}?" if near else f"see config/{BASE}.yaml for the keys")


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()


def check(settings: Settings) -> Path:
    """Checks the values, the model folder and the data, without loading a weight.

    Returns:
        The model folder.

    Raises:
        UserError: the first thing that is wrong.
    """
    _check_numbers(settings)
    for key, value, known in (
        ("train.trainable", settings.train.trainable, ("caption", "all")),
        ("train.dtype", settings.train.dtype, DTYPES),
        ("run.save_dtype", settings.run.save_dtype, DTYPES[1:]),
        ("data.crop", settings.data.crop, CROPS),
    ):
        if value not in known:
            raise UserError(f"{key}={value}: must be {' or '.join(known)}")
    model = model_folder.ModelFolder(settings.model.folder, *model_folder.PARTS)
    layout = model.layout
    if not settings.model.scales:
        raise UserError("model.scales=[]: name at least one of 0, 1, 2")
    for scale in settings.model.scales:
        tokens = layout.tokens_per_image(scale)
        if tokens >= settings.data.max_tokens:
            raise UserError(
                f"data.max_tokens={settings.data.max_tokens}: a picture of scale {scale} alone has {tokens} tokens; "
                "raise it, or use another scale"
            )
    check_first(find_files(settings.data.files), settings.fields)
    return model.path


def _check_numbers(settings: Settings) -> None:
    run, data, train = settings.run, settings.data, settings.train
    least_one = {
        "run.save_every": run.save_every,
        "run.keep": run.keep,
        "data.shuffle": data.shuffle,
        "data.threads": data.threads,
        "train.steps": train.steps,
        "train.batch_size": train.batch_size,
        "train.accumulate": train.accumulate,
        "train.noise_draws": train.noise_draws,
        "run.processes": 1 if run.processes is None else run.processes,
    }
    for key, value in least_one.items():
        if value < 1:
            raise UserError(f"{key}={value}: must be at least 1")
    for key, number in (("data.max_bad", data.max_bad), ("run.seed", run.seed)):
        if number < 0:
            raise UserError(f"{key}={number}: must not be negative")
    not_negative = {
        "train.policy_lr": train.policy_lr,
        "train.renderer_lr": train.renderer_lr,
        "train.weight_decay": train.weight_decay,
        "train.diffusion_weight": train.diffusion_weight,
    }
    for key, rate in not_negative.items():
        if not rate >= 0:
            raise UserError(f"{key}={rate}: must not be negative")
    if not train.clip > 0:
        raise UserError(f"train.clip={train.clip}: must be above 0")
    shares = {
        "train.final_lr": train.final_lr,
        "train.warmup": train.warmup,
        "train.condition_drop": train.condition_drop,
    }
    for key, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"{key}={share}: is a share; must be between 0 and 1")
    if len(train.betas) != 2 or not all(0 <= beta < 1 for beta in train.betas):
        raise UserError(f"train.betas={train.betas}: must be two numbers from 0 up to 1")
