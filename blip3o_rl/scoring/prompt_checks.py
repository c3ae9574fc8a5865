"""Whether the prompts have what the rewards need: their fields, and a reward for each tag."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blip3o_rl.config.reward import KEY
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Reward
from blip3o_rl.scoring.entry import RubricEntry

if TYPE_CHECKING:
    from blip3o_rl.data.prompts import PromptRow


def check_tags_of_rows(rows: Sequence[PromptRow], trained: Sequence[RubricEntry]) -> None:
    """Each prompt needs one of the rewards that are trained on, if there are any.

    Raises:
        UserError: naming file, line and tag.
    """
    for row in rows:
        if trained and not any(entry.is_for(row.metadata) for entry in trained):
            tag = row.metadata.get("tag", "")
            raise UserError(
                f"{row.where}: no reward is for tag '{tag}'; add the tag to {KEY}.{trained[0].name}.only_for, or "
                "choose other prompts (prompts.source or prompts.file; eval.prompts for evaluations)"
            )


def check_tags_of_rewards(rows: Iterable[PromptRow], entries: Sequence[RubricEntry]) -> None:
    """Each reward needs a prompt that it is for.

    Raises:
        UserError: naming the reward and its tags.
    """
    there = sorted({row.metadata.get("tag", "") for row in rows})
    for entry in entries:
        tags = entry.settings.only_for
        if tags and not set(tags) & set(there):
            given = f"{KEY}.{entry.name}.only_for=[{', '.join(tags)}]"
            raise UserError(f"{given}: no prompt has such a tag; there are {', '.join(map(repr, there))}")


def check_fields(rows: Sequence[PromptRow], entries: Sequence[RubricEntry]) -> None:
    """Each prompt needs the fields of its rewards, rightly spelt and with values that they can score.

    Raises:
        UserError: naming file, line, field and reward.
    """
    rewards = [entry.reward for entry in entries]
    for row in rows:
        field, meant = _misspelt(rewards, row.metadata)
        if field:
            raise UserError(f"{row.where}: no reward reads the field '{field}'; did you mean '{meant}'? Rename it")
    for entry in entries:
        own = [row for row in rows if entry.is_for(row.metadata)]
        for row in own:
            if missing := _missing(entry.reward, row.metadata):
                raise UserError(
                    f"{row.where}: field '{missing}' is missing, but reward '{entry.name}' needs it; add it to the "
                    f"line, say which tags the reward is for ({KEY}.{entry.name}.only_for), or remove the reward"
                )
        for row, problem in zip(own, _problems(entry.reward, [row.metadata for row in own]), strict=True):
            if problem:
                raise UserError(f"{row.where}: reward '{entry.name}' cannot score this prompt: {problem}")


def metadata_problem(reward: Reward, metadata: Mapping[str, Any]) -> str:
    """What is wrong with one prompt's metadata for the reward, "" for nothing."""
    missing = _missing(reward, metadata)
    return f"the metadata field '{missing}' is missing" if missing else _problems(reward, [metadata])[0]


def _missing(reward: Reward, metadata: Mapping[str, Any]) -> str:
    """The first field that the reward needs and the metadata do not have, or ""."""
    return next((name for name in reward.required_metadata if metadata.get(name) in (None, "", [], {})), "")


def _misspelt(rewards: Sequence[Reward], metadata: Mapping[str, Any]) -> tuple[str, str]:
    """A field that no reward declares, and the absent declared one that it nearly is; or ("", ""). A misspelt optional
    field would be a demand that nobody reads, so that a wrong image scores 1."""
    declared = {name for r in rewards for name in (*r.required_metadata, *getattr(r, "optional_metadata", ()))}
    absent = sorted(declared - metadata.keys())
    for field in sorted(metadata.keys() - declared - {"prompt", "tag", "id", "image", "references"}):
        near = difflib.get_close_matches(field.lower(), absent, n=1, cutoff=0.8)
        if near:
            return field, near[0]
    return "", ""


def _problems(reward: Reward, metadatas: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reward says is wrong with each prompt's metadata, "" for nothing. A reward may look at one
    (`check_metadata`), or at all of them in one go (`check_metadatas`), as a service in another process does."""
    if hasattr(reward, "check_metadatas"):
        return reward.check_metadatas(metadatas)
    single = getattr(reward, "check_metadata", lambda metadata: "")
    return [single(metadata) or "" for metadata in metadatas]
