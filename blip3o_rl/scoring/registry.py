"""From a config to a rubric: which reward a name means, and what is wrong with the config if it means none.

Each entry of `reward.rewards` is one reward. Where it comes from, in this order:
    path: my_reward.py:brightness     a function or class in the user's own file (relative to the working directory)
    name: pkg.module:thing            anything importable
    name: geneval                     a built-in or an entry point of the group `blip3o_rl.rewards`; the entry's own
                                      key is the default for `name`
    service: {...}                    somewhere else than in this process (see `service_options`)
Beside the keys in `options.ENTRY_KEYS` all keys are keyword arguments of the reward. Everything a user can get wrong
here is a UserError of one line that starts with the key.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.scoring.adapters import reward_from, suggestion
from blip3o_rl.scoring.options import EntryOptions, read_options
from blip3o_rl.scoring.remote.service_options import DeployedService, UrlService
from blip3o_rl.scoring.rubric import Rubric, RubricEntry

BUILT_IN: dict[str, str] = {
    "geneval": "blip3o_rl.rewards.geneval.reward:GenEvalReward",
    "ocr": "blip3o_rl.rewards.ocr.reward:OCRReward",
    "pickscore": "blip3o_rl.rewards.preference.clip:PickScore",
    "clipscore": "blip3o_rl.rewards.preference.clip:CLIPScore",
    "hpsv2": "blip3o_rl.rewards.preference.clip:HPSv2",
    "imagereward": "blip3o_rl.rewards.preference.image_reward:ImageReward",
    "aesthetic": "blip3o_rl.rewards.preference.aesthetic:AestheticScore",
    "unifiedreward": "blip3o_rl.rewards.preference.unified:UnifiedReward",
    "judge": "blip3o_rl.rewards.preference.judge:VlmJudge",
}
ENTRY_POINT_GROUP = "blip3o_rl.rewards"


def known_rewards() -> dict[str, str]:
    """Name -> "module:thing" of the built-in rewards and of the installed entry points."""
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**found, **BUILT_IN}


def build_rubric(config: Mapping[str, Any]) -> Rubric:
    """Builds the rubric of a config. A rubric stays in its process: build one from the config in each worker.

    Args:
        config: the mapping under `reward.rewards`: name -> entry.

    Raises:
        UserError: for everything that is wrong with it.
    """
    if not isinstance(config, Mapping) or not config:
        raise UserError("reward.rewards: no reward is configured; add one, for example geneval: {weight: 1.0}")
    return Rubric([_build_entry(str(name), entry) for name, entry in config.items()])


def _build_entry(name: str, entry: Any) -> RubricEntry:
    key = f"reward.rewards.{name}"
    if entry is None:
        entry = {}
    if not isinstance(entry, Mapping):
        raise UserError(f"{key}: is {entry!r}, not a mapping; write {name}: {{weight: 1.0}}")
    entry = {str(word): value for word, value in entry.items()}
    options = read_options(entry, key)
    build = _local if options.service is None else _remote
    return RubricEntry(name, build(name, entry, options, key), **options.rubric)


def _local(name: str, entry: Mapping[str, Any], options: EntryOptions, key: str) -> Any:
    """The reward in this process."""
    thing = _load(name, entry, key)
    try:
        return reward_from(thing, name, options.keywords, key)
    except UserError as error:
        raise error if str(error).startswith(key) else UserError(f"{key}: {error}") from error
    except Exception as error:
        raise UserError(f"{key}: could not be built, {type(error).__name__}: {error}") from error


def _remote(name: str, entry: Mapping[str, Any], options: EntryOptions, key: str) -> Any:
    """The reward as a service holds it."""
    if isinstance(options.service, UrlService):
        from blip3o_rl.scoring.remote.client import RemoteReward

        for word in entry:
            if word == "path" or word in options.keywords:
                raise UserError(
                    f"{key}.{word}: belongs to the service at the url; give it to blip3o-rl rewards serve there, "
                    f"as {name}.{word}=..."
                )
        return RemoteReward.at(options.service, name, str(entry.get("name") or name), f"{key}.service")
    assert isinstance(options.service, DeployedService)
    from blip3o_rl.scoring.remote import deployment

    if not options.service.runtime_env and options.service.python is None:
        _load(name, entry, key)  # a wrong name is found here, before anything is deployed
    return deployment.remote_reward(options.service, name, name, f"{key}.service")


def _load(name: str, entry: Mapping[str, Any], key: str) -> Any:
    if entry.get("path") is not None:
        if entry.get("name") is not None:
            raise UserError(f"{key}: has both path and name; keep one of them")
        return _from_file(str(entry["path"]), f"{key}.path")
    wanted = str(entry.get("name") or name)
    known = known_rewards()
    if wanted in known:
        return _from_module(known[wanted], key)
    if ":" in wanted:
        return _from_module(wanted, f"{key}.name")
    raise UserError(
        f"{key}: no reward is called '{wanted}'{suggestion(wanted, sorted(known))}; known: {', '.join(sorted(known))}; "
        f"for your own set {key}.path to file.py:function"
    )


def _from_file(path: str, key: str) -> Any:
    file_name, separator, attribute = path.rpartition(":")
    if not separator or not attribute.isidentifier():
        raise UserError(f"{key}: is '{path}'; write file.py:function")
    file = Path(file_name).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"{key}: there is no file {file}; mend the path (it is relative to {Path.cwd()})")
    module_name = f"blip3o_rl_user_reward_{file.stem}_{abs(hash(file)):x}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{key}: {file} is no Python file; the name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look the module up by name
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{key}: {file}:{error.lineno} has a syntax error, {error.msg}; mend it") from error
    except Exception as error:
        raise UserError(f"{key}: {file} cannot be imported, {type(error).__name__}: {error}") from error
    return _attribute(module, attribute, str(file), key)


def _from_module(target: str, key: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: '{target}' needs the module '{error.name}', which is not installed") from error
    except Exception as error:
        raise UserError(f"{key}: module {module_name} cannot be imported, {type(error).__name__}: {error}") from error
    return _attribute(module, attribute, module_name, key)


def _attribute(module: Any, attribute: str, where: str, key: str) -> Any:
    thing = module
    for part in attribute.split("."):
        if not hasattr(thing, part):
            public = [word for word in vars(module) if not word.startswith("_") and callable(getattr(module, word))]
            raise UserError(
                f"{key}: {where} has no '{attribute}'{suggestion(attribute, public)}; "
                f"it defines {', '.join(sorted(public)) or 'nothing callable'}"
            )
        thing = getattr(thing, part)
    return thing
