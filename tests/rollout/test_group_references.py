"""A group's references are read and encoded once, and travel as one object."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import edit_row, photo

from blip3o_rl.data.images import read_image
from blip3o_rl.errors import UserError
from blip3o_rl.model.editing import Reference
from blip3o_rl.rollout import group_references
from blip3o_rl.rollout.group_references import of_prompt


class Service:
    """Stands for a handle to the render service; counts what it is asked."""

    def __init__(self, latents: torch.Tensor | None = None, error: Exception | None = None):
        self.encode, self.asked = self, []
        self.latents, self.error = latents, error

    async def remote(self, images: list[np.ndarray], scale: int) -> Reference:
        self.asked.append((len(images), scale))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return Reference(torch.full((len(images), 81), int(images[0][0, 0, 0])), self.latents)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is put into Ray's object store."""
    found: list[Any] = []
    monkeypatch.setattr(group_references.ray, "put", lambda value: found.append(value) or f"object {len(found)}")
    return found


def test_eight_rollouts_share_one_encoding(tmp_path: Path, stored: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    service, read = Service(torch.ones(8, 8, 8)), []
    monkeypatch.setattr("blip3o_rl.data.references.read_image", lambda *given: read.append(given) or read_image(*given))
    rows = [edit_row(tmp_path, "x", 1), edit_row(tmp_path, "x", 2)]
    read.clear()

    async def step() -> list[Any]:
        return await asyncio.gather(*(of_prompt(row.references, service, 2) for row in rows for _ in range(8)))

    found = asyncio.run(step())
    assert len({id(one) for one in found}) == 2 and service.asked == [(1, 2)] * 2 and len(read) == 2
    assert len(stored) == 4, "latent and images of each group, once"
    assert np.array_equal(found[0].images[0], photo(1)) and np.array_equal(found[8].images[0], photo(2))
    assert found[0].encoded.latents is None and found[0].encoded.indices.shape == (1, 81)
    assert {found[0].latents, found[0].kept} <= {f"object {number}" for number in range(1, 5)}
    del found
    gc.collect()
    assert not group_references._SHARED, "nothing is kept beyond the rollouts"
    asyncio.run(step())
    assert len(service.asked) == 4


def test_where_the_renderer_has_no_use_for_a_latent_none_travels(tmp_path: Path, stored: list[Any]) -> None:
    found = asyncio.run(of_prompt(edit_row(tmp_path, "x", 1, 2).references, Service(), 0))
    assert found.latents is None and len(stored) == 1 and len(found.images) == 2


def test_a_failed_encoding_fails_every_rollout_of_the_group(tmp_path: Path, stored: list[Any]) -> None:
    references = edit_row(tmp_path, "x", 1).references

    async def step(service: Service) -> list[Any]:
        rollouts = (of_prompt(references, service, 2) for _ in range(3))
        return await asyncio.gather(*rollouts, return_exceptions=True)

    assert [str(error) for error in asyncio.run(step(Service(error=RuntimeError("out of memory"))))] == [
        "out of memory"
    ] * 3
    Path(references[0].source).write_bytes(b"")
    found = asyncio.run(step(Service()))
    assert len(found) == 3 and all(isinstance(error, UserError) and "1.png" in str(error) for error in found)
