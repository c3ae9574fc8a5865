"""Models and prompt files at an address, on fsspec's stores for local files and for memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from blip3o_rl import stores
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
