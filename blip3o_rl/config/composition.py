"""A recipe and its overrides -> one resolved configuration (Hydra, on top of verl's `ppo_trainer`).

A recipe is a folder with a `config.yaml`. `defaults: [blip3o_ppo, _self_]` gives it everything that verl and this
package need; the device profile (`device=cpu` or `device=gpu`) is chosen here where it is not given. Overrides are
Hydra's `key=value`; entries below `reward.rewards` are free, so that
`reward.rewards.mine.path=my_reward.py:brightness` needs no `+`. Everything Hydra says about a bad one becomes one
line with the nearest known key.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from blip3o_rl.errors import UserError

CONFIG_MODULE = "blip3o_rl.config.defaults"
SEARCH_PATH = f"hydra.searchpath=[pkg://{CONFIG_MODULE},pkg://verl.trainer.config]"
FREE_KEYS = ("reward.rewards.", "actor_rollout_ref.rollout.engine_kwargs.")


def find_recipe(recipe: str | Path) -> Path:
    """The recipe's folder: a path, or the name of a recipe that ships with the package.

    Raises:
        UserError: there is no such recipe.
    """
    path = Path(recipe).expanduser()
    if (path / "config.yaml").is_file():
        return path.resolve()
    shipped = Path(str(resources.files("blip3o_rl.recipes")))
    if (shipped / path.name / "config.yaml").is_file() and path.parts in ((path.name,), ("recipes", path.name)):
        return (shipped / path.name).resolve()
    known = sorted(p.parent.name for p in shipped.glob("*/config.yaml"))
    near = difflib.get_close_matches(path.name, known, 1)
    hint = f"; did you mean recipes/{near[0]}?" if near else ""
    raise UserError(f"recipe {recipe}: no {path / 'config.yaml'}; known recipes: {', '.join(known)}{hint}")


def compose_recipe(recipe: str | Path, overrides: list[str]) -> DictConfig:
    """The configuration of a recipe with its overrides.

    Raises:
        UserError: unknown recipe, unknown key, or a value of the wrong type.
    """
    folder = find_recipe(recipe)
    chosen = [_free(override) for override in overrides]
    if not any(override.split("=")[0] == "device" for override in overrides):
        chosen.insert(0, f"device={'gpu' if torch.cuda.is_available() else 'cpu'}")
    _check_keys(folder / "config.yaml")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base=None), contextlib.redirect_stderr(io.StringIO()):
        try:
            config = compose("config", overrides=[SEARCH_PATH, *chosen])
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            try:
                known = compose("config", overrides=[SEARCH_PATH])
            except (HydraException, OmegaConfBaseException, YAMLError) as broken:
                raise UserError(f"{folder / 'config.yaml'}: {_one_line(broken)}") from broken
            raise _explained(error, known, overrides) from error
    OmegaConf.set_struct(config, False)
    config.run.recipe = folder.name
    return config


def _check_keys(file: Path) -> None:
    """Refuses a recipe's key that neither verl nor this package has: Hydra would take it in and nobody would read it.

    A mapping that is empty in verl's own configuration is open, as are the free keys.
    """
    try:
        recipe: Any = OmegaConf.load(file)
    except YAMLError as error:
        raise UserError(f"{file}: {_one_line(error)}") from error
    if "blip3o_sft" in (recipe.get("defaults") or []):
        raise UserError(f"{file}: is a recipe of supervised fine-tuning; use blip3o-rl sft")
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base=None), contextlib.redirect_stderr(io.StringIO()):
        known = compose("blip3o_ppo", overrides=[SEARCH_PATH])
    leaves = _leaves(known)
    for key in _leaves(recipe):
        parent, _, name = key.rpartition(".")
        above = OmegaConf.select(known, parent, throw_on_missing=False) if parent else known
        if key.startswith(("defaults", *FREE_KEYS)) or not isinstance(above, DictConfig) or not above or name in above:
            continue
        raise UserError(f"{file}: there is no key {key}{_nearest(key, leaves)}")


def _free(override: str) -> str:
    return f"++{override}" if override.startswith(FREE_KEYS) else override


def _explained(error: Exception, known: Any, overrides: list[str]) -> UserError:
    """Hydra's complaint as one line that names the override and, for an unknown key, the nearest known one."""
    keys = list(_leaves(known))
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if "=" not in override and not override.startswith("~"):
            return UserError(f"override '{override}': not of the form key=value")
        if key.startswith(FREE_KEYS) or override.startswith(("+", "~")):
            continue
        if OmegaConf.select(known, key, default=_ABSENT, throw_on_missing=False) is _ABSENT and key != "device":
            return UserError(f"override '{override}': there is no key {key}{_nearest(key, keys)}")
    return UserError(f"overrides {' '.join(overrides) or '(none)'}: {_one_line(error)}")


def _nearest(key: str, known: list[str]) -> str:
    """The known key that was probably meant, as the end of an error message."""
    same_name = [k for k in known if k.endswith("." + key.split(".")[-1])]
    near = difflib.get_close_matches(key, known, 1, cutoff=0.5) or same_name
    return f"; did you mean {near[0]}?" if near else "; see blip3o_rl/config/defaults/blip3o_ppo.yaml for the keys"


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).split("Config search path")[0].strip()


_ABSENT = object()


def _leaves(config: Any, prefix: str = "") -> list[str]:
    names: list[str] = []
    if isinstance(config, ListConfig):
        return [prefix[:-1]]
    for name in config:
        full = f"{prefix}{name}"
        child = config._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            names.append(full)
            names += _leaves(child, full + ".")
        else:
            names.append(full)
    return names
