"""A recipe and its overrides -> one configuration (Hydra).

A recipe is a folder with a `config.yaml` that names its kind's base in `defaults` and says only what it changes. The
groups with a settings model are generated from it and checked by it. All other keys are compared with the base's,
since Hydra accepts a misspelt key in a recipe. Overrides are Hydra's `key=value`, but the value of a path is taken as
it is. A run that is resumed is composed the same way, on the configuration that it was started with.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from blip3o_rl.config.base import Settings, path_fields
from blip3o_rl.errors import UserError, did_you_mean
from blip3o_rl.io import user_path

CONFIG_MODULE = "blip3o_rl.config.defaults"
STORED = "blip3o_stored_run"
DEVICES = ("device=cpu", "device=gpu")
"""Choices of a profile within the base."""


@dataclass(frozen=True)
class Kind:
    """A kind of recipe.

    Attributes:
        command: of `blip3o-rl`.
        base: what its recipes name in `defaults`.
        own: a field per group that a settings model checks; stored for Hydra as `<base>_settings`.
        free: prefixes of further keys that may be new.
        paths: regular expression of keys whose value is a path, besides the models' own.
        presets: Hydra groups whose choice comes on top of the recipe.
    """

    command: str
    base: str
    own: type[Settings]
    free: tuple[str, ...] = ()
    paths: str = "(?!)"
    presets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ConfigStore.instance().store(f"{self.base}_settings", self.own().model_dump())

    def is_free(self, key: str) -> bool:
        """Whether a new key may be any: a settings model or its reader checks it."""
        return key.split(".")[0] in self.own.model_fields or key.startswith(self.free)

    def is_path(self, key: str) -> bool:
        return key in path_fields(self.own) or re.fullmatch(self.paths, key) is not None


def shipped_recipes() -> dict[str, Path]:
    """Name -> folder of the recipes that ship with the package."""
    shipped = Path(str(resources.files("blip3o_rl.recipes")))
    return {file.parent.name: file.parent.resolve() for file in sorted(shipped.glob("*/config.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """The recipe's folder: a path, or the name of a recipe that ships with the package."""
    path = user_path(recipe)
    if (path / "config.yaml").is_file():
        return path.resolve()
    known = shipped_recipes()
    if path.name in known and path.parts in ((path.name,), ("recipes", path.name)):
        return known[path.name]
    hint = did_you_mean(path.name, known)
    raise UserError(f"recipe {recipe}: no {path / 'config.yaml'}; known recipes: {', '.join(known)}{hint}")


def read_yaml(file: Path) -> Any:
    """What a YAML file holds; `UserError` where it cannot be read."""
    with _one_line(str(file)):
        return OmegaConf.load(file)


def compose(kind: Kind, recipe: str | Path, overrides: list[str]) -> DictConfig:
    """The configuration of a recipe with its overrides; `run.recipe` is the recipe's name.

    Raises:
        UserError: unknown recipe or one of another kind, unknown key, or an override that cannot be read.
    """
    folder = find_recipe(recipe)
    file = folder / "config.yaml"
    written = read_yaml(file)
    with _one_line(str(file)):
        bases = list(written.pop("defaults", None) or []) if isinstance(written, DictConfig) else []
        if kind.base not in bases:
            raise UserError(f"{file}: is no recipe for blip3o-rl {kind.command}; its defaults do not name {kind.base}")
        device = [word for word in overrides if word in DEVICES][-1:]
        base = _base(kind.base, *device)
        known = dict(_nodes(base))
        for key in dict(_nodes(written)):
            _check_key(kind, key, known, f"{file}: ")
    plain, paths = _split(kind, overrides, known)
    with _one_line(str(file)):
        others = [word for word in plain if word not in DEVICES]
        if bases == [kind.base, "_self_"] and not any(word.startswith("device=") for word in others):
            config = _on_top(OmegaConf.merge(base, written), others)  # the base has 60 files, which are read once
        else:
            with _hydra(), initialize_config_dir(str(folder), version_base=None):
                config = hydra_compose("config", overrides=[_search_path(), *plain])
    return _finished(config, paths | {"run.recipe": folder.name})


def compose_stored(kind: Kind, config: Any, name: str, overrides: list[str]) -> DictConfig:
    """A configuration that was composed and written down before, with overrides on top; `name` is for messages."""
    plain, paths = _split(kind, overrides, dict(_nodes(config)))
    with _one_line(name):
        return _finished(_on_top(config, plain), paths)


def _on_top(config: Any, overrides: list[str]) -> DictConfig:
    """A configuration with Hydra's overrides."""
    ConfigStore.instance().store(STORED, config)
    with _hydra(), initialize_config_module(CONFIG_MODULE, version_base=None):
        return hydra_compose(STORED, overrides=overrides)


@cache
def _base(name: str, *overrides: str) -> DictConfig:
    """A base's configuration, which has all keys that there are; not to be changed."""
    with _hydra(), initialize_config_module(CONFIG_MODULE, version_base=None):
        return _finished(hydra_compose(name, overrides=[_search_path(), *overrides]), {})


def resolved(config: Any) -> dict[str, Any]:
    """A configuration as plain values, with what `${...}` stands for.

    Raises:
        UserError: such a name stands for nothing.
    """
    with _one_line("configuration"):
        plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain


def _search_path() -> str:
    """The override that tells Hydra where to look. verl's folder is named, since `pkg://` would import verl."""
    spec = find_spec("verl")
    verl = [f"file://{folder}/trainer/config" for folder in (spec and spec.submodule_search_locations) or ()]
    quoted = [QuotedString(path, Quote.single).with_quotes() for path in verl]
    return f"hydra.searchpath=[{','.join([f'pkg://{CONFIG_MODULE}', *quoted])}]"


def _finished(config: DictConfig, values: dict[str, Any]) -> DictConfig:
    OmegaConf.set_struct(config, False)
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    return config


def _split(kind: Kind, overrides: list[str], known: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Overrides for Hydra, and the paths that it must not read."""
    plain: list[str] = []
    paths: dict[str, Any] = {}
    for override in overrides:
        marked, equals, value = override.partition("=")
        key = marked.lstrip("+~")
        if not equals and not override.startswith("~"):
            raise UserError(f"override '{override}': not of the form key=value")
        if kind.is_path(key):
            paths[key] = _path(value)
            continue
        if key == marked and value in ("null", "") and (key == "device" or isinstance(known.get(key), DictConfig)):
            raise UserError(f"override '{override}': {key} is no single value; set its keys, or leave it out")
        with _one_line(f"override '{override}'"):
            OverridesParser.create().parse_override(override)
        if key in kind.presets:
            plain.append(f"+{key}={value}")
            continue
        if key == marked and not kind.is_free(key):
            _check_key(kind, key, known, f"override '{override}': ")
        plain.append(f"++{override}" if key == marked and kind.is_free(key) else override)
    return plain, paths


def _check_key(kind: Kind, key: str, known: dict[str, Any], where: str) -> None:
    """Refuses a key that is neither known nor free; what is empty or null in the base is open."""
    if kind.is_free(key) or key in known or key == "device":
        return
    first, *others = parts = key.split(".")
    if first in kind.own.renamed:
        raise UserError(f"{where}{first} was renamed; write {'.'.join([kind.own.renamed[first], *others])}")
    parents = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
    above = next((known[parent] for parent in parents if parent in known), None)
    if above is None or (isinstance(above, DictConfig) and len(above)):
        raise UserError(f"{where}there is no key {key}{_hint(key, list(known))}")


def _hint(key: str, known: list[str]) -> str:
    """The known key that ends in the given one, that resembles it, or that has the same last part."""
    longer = [name for name in known if name.endswith(f".{key}")]
    same_name = [name for name in known if name.endswith("." + key.rpartition(".")[2])]
    near = longer or difflib.get_close_matches(key, known, 1) or same_name
    return f"; did you mean '{near[0]}'?" if near else ""


def _nodes(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full name, node) of every key."""
    for name in config:
        child = config._get_node(name)
        yield f"{prefix}{name}", child
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from _nodes(child, f"{prefix}{name}.")


def _path(value: str) -> str | list[str] | None:
    """A path, or a list of them in brackets; commas within quotes or braces belong to a path."""
    if value[:1] + value[-1:] == "[]":
        found = re.finditer(r"""(?:'[^']*'|"[^"]*"|\{[^{}]*\}|[^,])+""", value[1:-1])
        return [_unquoted(match[0].strip()) for match in found]
    return None if value in ("null", "") else _unquoted(value)


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    """Hydra without what an earlier composition left, and without its hints on standard error."""
    GlobalHydra.instance().clear()
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _one_line(where: str) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        text = re.sub(r"\s+", " ", str(error)).split("Config search path")[0].split(" See https://hydra.cc")[0].strip()
        raise UserError(f"{where}: {text}") from error
