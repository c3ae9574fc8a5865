"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip3o_rl.checkpoint import source
from blip3o_rl.config.composition import find_recipe
from blip3o_rl.data.images import read_image
from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path
from blip3o_rl.machine import disk_gib
from blip3o_rl.model.folder import resolve
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.rewards.weights import located
from blip3o_rl.scoring.loading import load_file
from blip3o_rl.sft.files import find_files


def test_home_folders_are_those_of_users_who_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/a") == Path("/home/me/a")
    assert user_path("~no-such-user/a") == Path("~no-such-user/a")
    assert user_path("a/~") == Path("a/~")


@pytest.mark.parametrize(
    "read",
    [
        find_recipe,
        read_image,
        read_prompts,
        source.resolve,
        resolve,
        RunFolder.open,
        find_files,
        lambda path: located(path, "model"),
        lambda path: load_file(f"{path}:score", "reward.rewards.mine.path"),
    ],
)
@pytest.mark.parametrize("path", ["~no-such-user/thing", "~/no-such-thing", f"thing/{'long' * 100}"])
def test_a_path_that_is_not_there_is_one_line(read, path) -> None:
    with pytest.raises(UserError, match="thing") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_disk_space_is_that_of_the_folder_that_is_there() -> None:
    assert disk_gib(Path("~no-such-user/runs")) == pytest.approx(disk_gib(Path()), abs=1)
