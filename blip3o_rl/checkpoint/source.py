"""Where an upstream checkpoint comes from: a folder on disk, or a hub id.

Hub ids go through huggingface_hub, with its cache, its tokens and its environment variables (HF_HUB_OFFLINE,
HF_HUB_CACHE). Only weights in safetensors, configs, tokenizer and licence are fetched; pickled weights are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from blip3o_rl.errors import UserError

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja", "README.md", "LICENSE*", "NOTICE*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
        name: a hub id is downloaded unless the cache has it.
        revision: branch, tag or commit of a hub id; the commit is what gets recorded.
        offline: use the cache alone.
        cache: of huggingface_hub, by default its own.

    Raises:
        UserError: no such folder and no hub id, or the hub does not have it or cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision}: {folder} is a folder; revisions are for hub ids")
        return Source(folder.resolve(), folder.resolve().name)
    if folder.exists() or not _HUB_ID.fullmatch(str(name)):
        raise UserError(f"{name}: no such folder, and no hub id (owner/name); give an upstream checkpoint")
    return _download(str(name), revision, offline, cache)


def _download(name: str, revision: str | None, offline: bool, cache: Path | None) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name}@{revision}" if revision else name
    try:
        snapshot = snapshot_download(
            name, revision=revision, cache_dir=cache, local_files_only=offline, allow_patterns=list(PATTERNS)
        )
    except RevisionNotFoundError as error:
        raise UserError(f"{at}: the hub has no such revision; give a branch, tag or commit of {name}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{name}: no such folder, and the hub has no such model (or it asks for a login)") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{at}: no such folder, not in the hub's cache, and the hub was not asked or not reached; "
            "download it where there is a network, or give a folder"
        ) from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise UserError(f"{at}: the hub did not give it ({str(error).splitlines()[0]}); try again later") from error
    folder = Path(snapshot)
    return Source(folder, name, folder.name)
