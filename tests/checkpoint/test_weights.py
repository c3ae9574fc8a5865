"""Checkpoints as bytes: the same files as the library writes, and strict about broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from blip3o_rl.checkpoint import weights
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
    tensors, metadata = weights.open_file(tmp_path / "a.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: v.shape for n, v in TENSORS.items()}
    backwards = dict(reversed(tensors.items()))
    weights.write(tmp_path / "new" / "b.safetensors", backwards, metadata)
    assert (tmp_path / "new" / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"z": "1", "format": "np", "a": "ü"}])
def test_the_strings_of_the_header_are_kept(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata)
    weights.write(tmp_path / "b.safetensors", *weights.open_file(tmp_path / "a.safetensors"))
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize("damage", [slice(0), slice(7), slice(40), slice(-1), slice(1, None), None])
def test_a_truncated_or_longer_file_is_refused(tmp_path: Path, damage: slice | None) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes() + b" " if damage is None else file.read_bytes()[damage])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated"):
        weights.open_folder(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: pickled weights can run code"):
        weights.open_folder(tmp_path)


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
        weights.open_folder(tmp_path)


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    shard(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="2 safetensors files and no"):
        weights.open_folder(tmp_path)


def test_differing_rows_are_counted_whatever_the_size_of_a_piece(monkeypatch) -> None:
    first = torch.randn(50, 8)
    second = first.clone()
    second[[3, 20, 49], 5] += 1
    second[30, 0] = first[30, 0] = float("nan")
    second[40, 0], first[40, 0] = 0.0, -0.0
    for rows in (1, 7, 4096):
        monkeypatch.setattr(weights, "_ROWS", rows)
        assert weights.differing_rows(first, second) == 4, "equal bits of a NaN are equal, the signs of 0 are not"
        assert weights.differing_rows(first, first) == 0


@given(st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.sampled_from("xy")), min_size=1))
def test_compact_names_lose_nothing(keys: set[tuple[str, int, str]]) -> None:
    text = weights.compact([f"{head}.{number}.{tail}" for head, number, tail in keys])
    found = set()
    for entry in text.replace(", ", "\n").splitlines():
        head, numbers, tail = entry.split(".")
        for span in numbers.strip("{}").split(","):
            first, _, last = span.partition("-")
            found |= {(head, number, tail) for number in range(int(first), int(last or first) + 1)}
    assert found == keys
