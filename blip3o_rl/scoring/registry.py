"""Finds the reward of an entry of `reward.rewards` and builds it in this process.

It is the entry's `path` (a file), else its `name` or own key: a built-in reward, an installed entry point of the group
`blip3o_rl.rewards`, or `package.module:thing`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from blip3o_rl.config.reward import KEY, RewardEntry
from blip3o_rl.errors import UserError, did_you_mean
from blip3o_rl.scoring.adapters import reward_from
from blip3o_rl.scoring.api import Reward
from blip3o_rl.scoring.loading import load_file, load_installed

BUILT_IN: dict[str, str] = {
    "geneval": "blip3o_rl.rewards.geneval.reward:GenEvalReward",
    "ocr": "blip3o_rl.rewards.ocr.reward:OCRReward",
    "layout": "blip3o_rl.rewards.layout.reward:LayoutReward",
    "planogram": "blip3o_rl.rewards.planogram.reward:PlanogramReward",
    "edit": "blip3o_rl.rewards.edit.reward:EditReward",
    "edit_judge": "blip3o_rl.rewards.edit.judge:EditJudge",
    "imgedit": "blip3o_rl.rewards.edit.benchmarks:ImgEditJudge",
    "gedit": "blip3o_rl.rewards.edit.benchmarks:GEditJudge",
    "pickscore": "blip3o_rl.rewards.preference.clip:PickScore",
    "clipscore": "blip3o_rl.rewards.preference.clip:CLIPScore",
    "hpsv2": "blip3o_rl.rewards.preference.clip:HPSv2",
    "imagereward": "blip3o_rl.rewards.preference.image_reward:ImageReward",
    "aesthetic": "blip3o_rl.rewards.preference.aesthetic:AestheticScore",
    "unifiedreward": "blip3o_rl.rewards.preference.unified:UnifiedReward",
    "judge": "blip3o_rl.rewards.preference.judge:VlmJudge",
    "questions": "blip3o_rl.rewards.preference.questions:QuestionsReward",
}
ENTRY_POINT_GROUP = "blip3o_rl.rewards"


def known_rewards() -> dict[str, str]:
    """Name -> "module:thing" of the built-in rewards and of the installed entry points."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)} | BUILT_IN


def local_reward(name: str, entry: RewardEntry) -> Reward:
    """The reward of an entry, in this process; UserError if it cannot be found, imported or built."""
    key = f"{KEY}.{name}"
    thing = find_reward(name, entry)
    try:
        return reward_from(thing, name, entry.keywords, key)
    except UserError as error:
        raise error if str(error).startswith(key) else UserError(f"{key}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}: could not be built, {type(error).__name__}: {error}") from error


def find_reward(name: str, entry: RewardEntry) -> Any:
    """The function, class or object that an entry means; UserError if there is none."""
    key = f"{KEY}.{name}"
    if entry.path is not None:
        return load_file(entry.path, f"{key}.path")
    wanted = entry.name or name
    known = known_rewards()
    if wanted in known:
        return load_installed(known[wanted], key)
    if ":" in wanted:
        return load_installed(wanted, f"{key}.name")
    raise UserError(
        f"{key}: no reward is called '{wanted}'{did_you_mean(wanted, known)}; known: {', '.join(sorted(known))}; "
        f"for your own set {key}.path to file.py:function"
    )
