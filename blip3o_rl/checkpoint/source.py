"""Where an upstream checkpoint comes from: a folder on disk, or a hub id.

Hub ids go through huggingface_hub, with its cache, its tokens and its environment variables (HF_HUB_OFFLINE,
HF_HUB_CACHE). Only weights in safetensors, configs, tokenizer and license are fetched; pickled weights are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import errors, snapshot_download

from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja", "README.md", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk and its identity. `name` is the hub id or the folder's name, never a path of a machine."""

    folder: Path
    name: str
    revision: str | None = None
    """Commit of a hub id."""

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def resolve(name: str | Path, revision: str | None = None, offline: bool = False, cache: Path | None = None) -> Source:
    """The checkpoint for a folder or a hub id (`owner/name`); a folder of that name wins.

    Args:
        revision: branch, tag or commit of a hub id; the commit is what gets recorded.
        offline: use the cache alone.
        cache: of huggingface_hub, by default its own.
    """
    folder, name = user_path(name), str(name)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision}: {folder} is a folder; revisions are for hub ids")
        return Source(folder.resolve(), folder.resolve().name)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name}: no such folder, and no hub id (owner/name); give an upstream checkpoint")
    at = f"{name}@{revision}" if revision else name
    try:
        snapshot = snapshot_download(
            name, revision=revision, cache_dir=cache, local_files_only=offline, allow_patterns=list(PATTERNS)
        )
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{at}: the hub has no such revision; give a branch, tag or commit of {name}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{name}: no such folder, and the hub has no such model (or it asks for a login)") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "no such folder, not in the hub's cache, and the hub was not asked or not reached"
        raise UserError(f"{at}: {why}; download it where there is a network, or give a folder") from error
    except (errors.HFValidationError, OSError) as error:
        raise UserError(f"{at}: the hub did not give it ({str(error).splitlines()[0]}); try again later") from error
    return Source(Path(snapshot), name, Path(snapshot).name)
