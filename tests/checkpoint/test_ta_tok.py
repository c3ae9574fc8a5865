"""`ta_tok.pth` is a pickle: read without running it, refused where it is more than numbers."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blip3o_rl.checkpoint.ta_tok import read, read_ta_tok_config
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
        ({"model": {"sd": {}}}, r"not laid out as ta_tok.pth \(model, args, sd\): 'args'; give"),
        ({"model": {"args": {}, "sd": {}}}, "no l2_normalized, which changes the ids"),
        ({"model": {"args": {"l2_normalized": False, "stochastic": True}, "sd": {}}}, "stochastic codes that are not"),
        (
            {"model": {"args": {"l2_normalized": True, "select_layer_id": -1}, "sd": {}}},
            "select_layer_id -1; only features",
        ),
        ({"model": {"args": {"bottleneck": {"l2_normalised": True}}, "sd": {}}}, "did you mean 'l2_normalized'"),
        ([1, 2], r"not laid out as ta_tok.pth \(model, args, sd\): list indices .*; give"),
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


NESTED = {
    "bottleneck": {
        "name": "bottleneck",
        "args": {"bottleneck_dim": 16, "regularizer": {"name": "simvq", "args": {"codebook_size": 512}}},
    },
    "input_size": 108,
    "teacher": "google/siglip2-so400m-patch14-384",
}


def nested(**flags: object) -> dict:
    """Upstream's form of the config, with flags of the regularizer."""
    fields = copy.deepcopy(NESTED)
    fields["bottleneck"]["args"]["regularizer"]["args"] |= flags  # type: ignore[index]
    return fields


@pytest.mark.parametrize("wrap", [lambda fields: fields, lambda fields: {"model": {"args": fields}}])
def test_the_nested_form_of_upstream_is_read(tmp_path: Path, wrap: Callable) -> None:
    file = tmp_path / "ta_tok_config.json"
    file.write_text(json.dumps(wrap(nested(l2_normalized=True, stochastic=True))))
    assert read_ta_tok_config(file) == {
        "image_size": 108, "bottleneck_dim": 16, "num_image_tokens": 512, "l2_normalized": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (nested(), "no l2_normalized, which changes the ids"),
        (nested(l2_normalised=True), "unknown argument l2_normalised; did you mean 'l2_normalized'"),
        (nested(l2_normalized=False, stochastic=True), "stochastic codes that are not"),
    ],
)
def test_a_nested_config_that_would_change_the_ids_is_refused(tmp_path: Path, fields: dict, match: str) -> None:
    file = tmp_path / "ta_tok_config.json"
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=match):
        read_ta_tok_config(file)
