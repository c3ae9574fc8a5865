"""Checkpoints as bytes: the same files as the library writes, and strict about broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from blip3o_rl.checkpoint import tensor_files
from blip3o_rl.errors import UserError

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a.weight": torch.arange(5, dtype=torch.bfloat16),
    "c": torch.tensor(3.0, dtype=torch.float16),
    "längs": torch.zeros(0, 4),
    "z": torch.ones(3, dtype=torch.float16),
}


def test_a_file_taken_apart_and_put_together_is_the_librarys_byte_for_byte(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", {"format": "pt"})
    tensors, metadata = tensor_files.read_header(tmp_path / "a.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: tuple(v.shape) for n, v in TENSORS.items()}
    backwards = dict(reversed(tensors.items()))
    digest = tensor_files.write(tmp_path / "new" / "b.safetensors", backwards, metadata)
    assert (tmp_path / "new" / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert digest == tensor_files.sha256(tmp_path / "a.safetensors")


def test_chunks_are_bounded_and_add_up(tmp_path: Path) -> None:
    save_file({"w": torch.arange(1000.0)}, tmp_path / "a.safetensors")
    tensor = tensor_files.read_header(tmp_path / "a.safetensors")[0]["w"]
    pieces = list(tensor.chunks(limit=256))
    assert max(map(len, pieces)) <= 256
    assert b"".join(pieces) == torch.arange(1000.0).numpy().tobytes()


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated"):
        tensor_files.open_folder(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: pickled weights can run code"):
        tensor_files.open_folder(tmp_path)


def shard(folder: Path, weight_map: dict[str, str]) -> None:
    save_file({"x": torch.ones(2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"y": torch.ones(2), "z": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "match"),
    [
        ({"x": FIRST, "y": SECOND}, f"no entry for z, which {SECOND} holds"),
        ({"y": SECOND, "z": SECOND}, f"no entry for x, which {FIRST} holds"),
        ({"x": FIRST, "y": FIRST, "z": SECOND}, "no entry for y"),
        ({"x": FIRST, "y": SECOND, "z": SECOND, "w.0.a": SECOND, "w.1.a": SECOND}, r"names w\.\{0-1\}\.a, which"),
        ({"x": FIRST, "y": "model-00003.safetensors"}, r"model-00003\.safetensors missing, named in"),
    ],
)
def test_index_and_shards_must_agree(tmp_path: Path, weight_map: dict[str, str], match: str) -> None:
    shard(tmp_path, weight_map)
    with pytest.raises(UserError, match=match):
        tensor_files.open_folder(tmp_path)


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    shard(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="2 safetensors files and no"):
        tensor_files.open_folder(tmp_path)


def test_differing_rows_are_counted_whatever_the_size_of_a_piece(tmp_path: Path, monkeypatch) -> None:
    first = torch.randn(50, 8)
    second = first.clone()
    second[[3, 20, 49], 5] += 1
    save_file({"a": first, "b": second}, tmp_path / "model.safetensors")
    stored = tensor_files.open_folder(tmp_path)
    for chunk in (1, 100, 2**20):
        monkeypatch.setattr(tensor_files, "CHUNK", chunk)
        assert tensor_files.differing_rows(stored["a"], stored["b"]) == 3
        assert tensor_files.differing_rows(stored["a"], stored["a"]) == 0


@given(st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.sampled_from("xy")), min_size=1))
def test_compact_names_lose_nothing(keys: set[tuple[str, int, str]]) -> None:
    text = tensor_files.compact([f"{head}.{number}.{tail}" for head, number, tail in keys])
    found = set()
    for entry in text.replace(", ", "\n").splitlines():
        head, numbers, tail = entry.split(".")
        for span in numbers.strip("{}").split(","):
            first, _, last = span.partition("-")
            found |= {(head, number, tail) for number in range(int(first), int(last or first) + 1)}
    assert found == keys
