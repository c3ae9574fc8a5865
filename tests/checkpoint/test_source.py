"""Hub ids through huggingface_hub, offline: its cache is used, the commit is recorded, absence is one error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from blip3o_rl.checkpoint import source
from blip3o_rl.checkpoint.convert import convert
from blip3o_rl.errors import UserError

NAME, COMMIT = "BLIP3o/BLIP3o-NEXT-SFT-3B", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(upstream: Callable, tmp_path: Path, monkeypatch) -> Path:
    """A hub cache that holds one model at one commit, known as `main`."""
    cache = tmp_path / "cache"
    repository = cache / ("models--" + NAME.replace("/", "--"))
    shutil.copytree(upstream(shards=2).folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return cache


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_model_is_found_without_a_network(cache: Path, revision: str | None) -> None:
    found = source.resolve(NAME, revision=revision, offline=True, cache=cache)
    assert (found.name, found.revision) == (NAME, COMMIT)
    assert (found.folder / "config.json").is_file()
    assert str(found) == f"{NAME}@{COMMIT}"


def test_a_converted_hub_model_records_its_commit(cache: Path, tmp_path: Path) -> None:
    convert(NAME, tmp_path / "model", offline=True)
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert (index["converted"]["source"], index["converted"]["revision"]) == (NAME, COMMIT)
    assert index["source"] == f"{NAME}@{COMMIT}"


@pytest.mark.parametrize(("name", "revision"), [(NAME, "no-such-branch"), ("BLIP3o/other", None)])
def test_what_the_cache_does_not_have_is_an_error_offline(cache: Path, name: str, revision: str | None) -> None:
    with pytest.raises(UserError, match=f"{name}.*not in the hub's cache"):
        source.resolve(name, revision=revision, offline=True, cache=cache)


def test_a_folder_of_that_name_wins_and_has_no_revision(cache: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    assert source.resolve(NAME, cache=cache).folder == (tmp_path / NAME).resolve()
    with pytest.raises(UserError, match="revisions are for hub ids"):
        source.resolve(NAME, revision="main", cache=cache)
