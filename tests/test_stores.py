"""Models and prompt files at an address, on fsspec's stores for local files and for memory."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import fsspec
import pytest

from blip3o_rl import machine, stores
from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import MINI, ModelFolder, resolve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_model_folder_at_an_address_is_copied_once(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(resolve(MINI), tmp_path / "model")
    address = f"file://{tmp_path}/model/"
    model = ModelFolder(address, "policy")
    assert model.path.is_relative_to(cache) and "copying file://" in capsys.readouterr().err
    assert sorted(file.name for file in model.path.rglob("*.json")) == sorted(
        file.name for file in (tmp_path / "model").rglob("*.json")
    )
    assert stores.local(address) == model.path and capsys.readouterr().err == ""


def test_what_changes_in_the_store_changes_in_the_copy() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/words/a.txt": b"one", "/bucket/words/deep/b.txt": b"two"})
    copy = stores.local("memory://bucket/words")
    assert (copy / "a.txt").read_text() == "one" and (copy / "deep" / "b.txt").read_text() == "two"
    memory.pipe({"/bucket/words/a.txt": b"three", "/bucket/words/c.txt": b"four"})
    memory.rm("/bucket/words/deep/b.txt")
    assert stores.local("memory://bucket/words") == copy
    assert {file.name: file.read_text() for file in copy.rglob("*.txt")} == {"a.txt": "three", "c.txt": "four"}


def test_a_lost_copy_is_made_again() -> None:
    fsspec.filesystem("memory").pipe({"/bucket/one.txt": b"a photo of a circle\n"})
    copy = stores.local("memory://bucket/one.txt")
    copy.unlink()
    assert stores.local("memory://bucket/one.txt").read_text() == "a photo of a circle\n"


def test_what_a_killed_copy_leaves_is_no_part_of_the_model_and_is_removed(tmp_path: Path) -> None:
    """But not what another process is writing."""
    shutil.copytree(resolve(MINI), tmp_path / "model")
    policy = stores.local(f"file://{tmp_path}/model") / "policy"
    size, parts = machine.float32_gib(policy), [policy / f".model.{n}-1.partial.safetensors" for n in range(2)]
    for part in parts:
        part.write_bytes(b"half")
    assert machine.float32_gib(policy) == size
    os.utime(parts[0], (0, time.time() - stores.ABANDONED_S - 1))
    stores.local(f"file://{tmp_path}/model")
    assert [part.exists() for part in parts] == [False, True]


def test_an_interrupted_copy_goes_on_with_the_files_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/bucket/several/{name}.txt": name.encode() for name in "abc"})
    get_file, got = type(memory).get_file, []

    def get(self: object, remote: str, local: str) -> None:
        if remote.endswith("c.txt") and len(got) == 2:
            got.append("killed")
            raise KeyboardInterrupt
        got.append(remote[-5:])
        get_file(self, remote, local)

    monkeypatch.setattr(type(memory), "get_file", get)
    with pytest.raises(KeyboardInterrupt):
        stores.local("memory://bucket/several")
    copy = stores.local("memory://bucket/several")
    assert got == ["a.txt", "b.txt", "killed", "c.txt"]
    assert "".join((copy / f"{name}.txt").read_text() for name in "abc") == "abc"


def test_a_prompt_file_at_an_address_is_read() -> None:
    fsspec.filesystem("memory").pipe({"/bucket/prompts.txt": b"a photo of a circle\na photo of a square\n"})
    assert [row.prompt for row in read_prompts("memory://bucket/prompts.txt")] == [
        "a photo of a circle",
        "a photo of a square",
    ]


def test_a_run_folder_is_copied_to_an_address(tmp_path: Path) -> None:
    run = tmp_path / "run-1"
    (run / "images").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "images" / "1.png").write_bytes(b"png")
    stores.check_writable("memory://bucket/runs")
    assert stores.upload(run, "memory://bucket/runs/") == "memory://bucket/runs/run-1"
    found = fsspec.filesystem("memory").find("/bucket/runs")
    assert found == ["/bucket/runs/run-1/images/1.png", "/bucket/runs/run-1/metrics.jsonl"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("memory://bucket/nothing", "memory://bucket/nothing: cannot be found; give the address of a file"),
        ("s4://bucket/model", "s4://bucket/model: Protocol not known: s4; install what the store needs"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_in_one_line(address: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        stores.local(address)
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


def test_an_address_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written \("):
        stores.check_writable(f"file://{tmp_path}/file")
