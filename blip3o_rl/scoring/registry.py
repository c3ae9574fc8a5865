"""Finds a reward and builds it in this process.

Where the reward of an entry of `reward.rewards` comes from, in this order:
    path: my_reward.py:brightness     a function or class in the user's own file, relative to the working directory
    name: package.module:thing        anything importable
    name: geneval                     a built-in reward or an installed entry point of the group `blip3o_rl.rewards`;
                                      the entry's own key is the default for `name`
Rewards that a service computes are built in `build`, on top of the client; the service itself builds them here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from blip3o_rl.config.reward import KEY, RewardEntry
from blip3o_rl.errors import UserError, did_you_mean
from blip3o_rl.scoring.adapters import reward_from
from blip3o_rl.scoring.api import Reward

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
_REWARD_FOLDERS: set[str] = set()
"""Folders of loaded reward files."""


def known_rewards() -> dict[str, str]:
    """Name -> "module:thing" of the built-in rewards and of the installed entry points."""
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**found, **BUILT_IN}


def local_reward(name: str, entry: RewardEntry) -> Reward:
    """The reward of an entry, in this process.

    Raises:
        UserError: it cannot be found, imported or built with the entry's keyword arguments.
    """
    key = f"{KEY}.{name}"
    thing = find_reward(name, entry)
    try:
        return reward_from(thing, name, entry.keywords, key)
    except UserError as error:
        raise error if str(error).startswith(key) else UserError(f"{key}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}: could not be built, {type(error).__name__}: {error}") from error


def find_reward(name: str, entry: RewardEntry) -> Any:
    """The function, class or object that an entry means.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    key = f"{KEY}.{name}"
    if entry.path is not None:
        return _from_file(entry.path, f"{key}.path")
    wanted = entry.name or name
    known = known_rewards()
    if wanted in known:
        return _from_module(known[wanted], key)
    if ":" in wanted:
        return _from_module(wanted, f"{key}.name")
    raise UserError(
        f"{key}: no reward is called '{wanted}'{did_you_mean(wanted, known)}; known: {', '.join(sorted(known))}; "
        f"for your own set {key}.path to file.py:function"
    )


def _from_file(path: str, key: str) -> Any:
    file_name, separator, attribute = path.rpartition(":")
    if not separator or not attribute.isidentifier():
        raise UserError(f"{key}: is '{path}'; write file.py:function")
    file = Path(file_name).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"{key}: there is no file {file}; fix the path (it is relative to {Path.cwd()})")
    module_name = f"blip3o_rl_user_reward_{file.stem}_{abs(hash(file)):x}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{key}: {file} is no Python file; the name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look the module up by name
    _make_neighbors_importable(file.parent)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{key}: {file}:{error.lineno} has a syntax error, {error.msg}; fix it") from error
    except (Exception, SystemExit) as error:  # argparse and sys.exit("set MY_KEY") at module level
        raise UserError(f"{key}: {file} cannot be imported, {type(error).__name__}: {error}") from error
    return _attribute(module, attribute, str(file), key)


def _make_neighbors_importable(folder: Path) -> None:
    """Lets a reward file import the modules next to it, as a script can, also later from within its functions.

    The folder comes last on the path, so that nothing installed is hidden, but before those of other reward files. A
    module of the same name next to another reward file is forgotten: that file keeps its own, this one gets its own.
    """
    for neighbor in folder.glob("*.py"):
        origin = getattr(sys.modules.get(neighbor.stem), "__file__", None)
        if origin and Path(origin) != neighbor and str(Path(origin).parent) in _REWARD_FOLDERS:
            del sys.modules[neighbor.stem]
    path = str(folder)
    if path in _REWARD_FOLDERS and path in sys.path:
        sys.path.remove(path)
    if path not in sys.path:
        place = next((row for row, entry in enumerate(sys.path) if entry in _REWARD_FOLDERS), len(sys.path))
        sys.path.insert(place, path)
        _REWARD_FOLDERS.add(path)


def _from_module(target: str, key: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: '{target}' needs the module '{error.name}', which is not installed") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}: module {module_name} cannot be imported, {type(error).__name__}: {error}") from error
    return _attribute(module, attribute, module_name, key)


def _attribute(module: Any, attribute: str, where: str, key: str) -> Any:
    thing = module
    for part in attribute.split("."):
        if not hasattr(thing, part):
            public = [found for found in vars(module) if not found.startswith("_") and callable(getattr(module, found))]
            raise UserError(
                f"{key}: {where} has no '{attribute}'{did_you_mean(attribute, public)}; "
                f"it defines {', '.join(sorted(public)) or 'nothing callable'}"
            )
        thing = getattr(thing, part)
    return thing
