"""`ta_tok.pth` is a pickle: read without running it, refused where it is more than numbers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from blip3o_rl.checkpoint.ta_tok import read
from blip3o_rl.errors import UserError


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"args": Evil(), "sd": {}}}, tmp_path / "ta_tok.pth")
    with pytest.raises(UserError, match="refused, it holds more than tensors"):
        read(tmp_path / "ta_tok.pth")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"model": {"sd": {}}}, "not laid out as ta_tok.pth"),
        ({"model": {"args": {}, "sd": {}}}, "its args have no l2_normalized"),
        ({"model": {"args": {"l2_normalized": False, "stochastic": True}, "sd": {}}}, "stochastic codes that are not"),
        ({"model": {"args": {"l2_normalized": True, "select_layer_id": -1}, "sd": {}}}, "features of layer -1"),
        ([1, 2], "not laid out as ta_tok.pth"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: object, match: str) -> None:
    torch.save(content, tmp_path / "ta_tok.pth")
    with pytest.raises(UserError, match=match):
        read(tmp_path / "ta_tok.pth")


def test_a_truncated_or_missing_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ta_tok.pth"
    with pytest.raises(UserError, match="no such file"):
        read(file)
    torch.save({"model": {"args": {}, "sd": {"a": torch.ones(1000)}}}, file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated or no file of torch.save"):
        read(file)
