"""The render service's noise and batches, without a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from editing import POLICY_ONLY, edit_row, editing_copy, photo, unplaced_copy
from ray.exceptions import RayActorError

from blip3o_rl import machine
from blip3o_rl.config.groups import RenderSettings
from blip3o_rl.data.prompts import check_row
from blip3o_rl.mini import parts
from blip3o_rl.model import rendering
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.rendering import render
from blip3o_rl.rollout import render_service
from blip3o_rl.rollout.render_service import RenderService, noise_seed


def test_a_group_shares_its_noise_and_nothing_else_does() -> None:
    of_group = {noise_seed(1, 5, "a circle", sample, "group") for sample in range(8)}
    assert len(of_group) == 1
    assert len({noise_seed(1, 5, "a circle", sample, "sample") for sample in range(8)}) == 8
    others = [noise_seed(2, 5, "a circle", 0, "group"), noise_seed(1, 6, "a circle", 0, "group")]
    others.append(noise_seed(1, 5, "a square", 0, "group"))
    assert len({*of_group, *others}) == 4
    assert all(0 <= seed < 2**63 for seed in others)


def test_text_to_image_keeps_its_noise_and_an_edit_has_its_references_noise(tmp_path: Path) -> None:
    """Seeds of version 0.1: a run of then and one of now see the same noise."""
    assert noise_seed(1, 5, check_row({"prompt": "a circle"}, "p:1").key, 0, "group") == 4252575314358058533
    assert noise_seed(1, 5, check_row({"prompt": "a circle"}, "p:1").key, 3, "sample") == 3558486192735331170
    rows = [edit_row(tmp_path, "a circle", *seeds) for seeds in ((1,), (2,), (1, 2))]
    assert len({noise_seed(1, 5, row.key, 0, "group") for row in rows} | {4252575314358058533}) == 4


def test_a_call_whose_replica_dies_is_made_again_and_three_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_service, "PAUSE_S", 0.0)
    left: list[Exception | str] = []

    async def ask() -> str:
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    left[:] = [RayActorError(), RayActorError(), "image", "unasked"]
    assert asyncio.run(render_service.answer(ask)) == "image" and left == ["unasked"]
    left[:] = [RayActorError()] * 4
    with pytest.raises(RayActorError):
        asyncio.run(render_service.answer(ask))
    assert len(left) == 1
    left[:] = [ValueError("of the model"), "unasked"]
    with pytest.raises(ValueError, match="of the model"):
        asyncio.run(render_service.answer(ask))
    assert left == ["unasked"]


def test_a_batch_of_mixed_lengths_and_settings_is_rendered_like_single_images(untrained: Any) -> None:
    """Rollouts with their own steps and guidance, and images of an evaluation, which are rendered fully."""
    renderer = untrained.renderer
    cheap: dict[str, Any] = {"rollout_steps": 1, "rollout_guidance": 1.0}
    service = RenderService.func_or_class(
        str(untrained.folder), RenderSettings(steps=3, **cheap, dtype="float32", device="cpu")
    )
    hidden = renderer.connector.config.in_features
    states = [np.random.default_rng(i).normal(size=(n, hidden)).astype(np.float32) for i, n in enumerate((82, 170, 82))]
    full = [False, True, True]
    together = service.render_batch(states, [1, 2, 3], full, [None] * 3)
    for row, (one, seed) in enumerate(zip(states, [1, 2, 3], strict=True)):
        config = GenerationConfig(steps=3) if full[row] else GenerationConfig(steps=1, guidance=1.0)
        alone = render(renderer, torch.from_numpy(one)[None], [seed], config)[0]
        assert np.abs(together[row][0].astype(int) - alone).max() <= 1


def test_rollouts_may_have_a_size_of_their_own(untrained: Any, tmp_path: Path) -> None:
    """In one batch with an image of an evaluation, which has the model's."""
    folder = unplaced_copy(untrained.folder, tmp_path / "model")
    settings = RenderSettings(steps=2, rollout_size=32, dtype="float32", device="cpu")
    service = RenderService.func_or_class(str(folder), settings)
    states = [np.random.default_rng(1).normal(size=(82, parts.HIDDEN)).astype(np.float32)] * 2
    (rollout, _), (full, _) = service.render_batch(states, [1, 1], [False, True], [None] * 2)
    assert rollout.shape == (32, 32, 3) and full.shape == (64, 64, 3)
    alone = render(service.renderer, torch.from_numpy(states[0])[None], [1], GenerationConfig(steps=2, size=32))[0]
    assert np.abs(rollout.astype(int) - alone).max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(not machine.has_compiler(), reason="no C++ compiler here")
def test_compiled_layers_render_the_same_images(editor: Path) -> None:
    """Text-to-image and edits, with guidance, at three ranges of batch sizes that torch compiles apart."""
    plain, compiled = make_service(editor), make_service(editor, compile=True)
    counters = torch._dynamo.utils.counters
    counters.clear()
    hidden, random = plain.renderer.connector.config.in_features, np.random.default_rng(1)
    for images in (17, 3, 1):
        states = [random.normal(size=(82, hidden)).astype(np.float32) for _ in range(images)]
        latents = [None, *[random.normal(size=(8, 8, 8)).astype(np.float32)] * (images - 1)]
        calls = states, list(range(images)), [True] * images, latents
        expected, found = plain.render_batch(*calls), compiled.render_batch(*calls)
        for one, other in zip(expected, found, strict=True):
            assert np.abs(one[0].astype(int) - other[0]).max() <= 1
    assert counters["stats"]["unique_graphs"] > 1 and not counters["graph_break"]


@pytest.fixture(scope="module")
def editor(untrained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return editing_copy(untrained.folder, tmp_path_factory.mktemp("editor") / "model")


def make_service(folder: Path, editing: bool = True, compile: bool = False) -> Any:
    settings = RenderSettings(steps=2, dtype="float32", device="cpu", compile=compile)
    return RenderService.func_or_class(str(folder), settings, editing=editing)


def test_a_mixed_batch_is_its_parts(editor: Path) -> None:
    """Edits with a latent and text-to-image, and two lengths, in one batch: every latent as if rendered alone."""
    service = make_service(editor)
    hidden = service.renderer.connector.config.in_features
    states = [
        np.random.default_rng(i).normal(size=(n, hidden)).astype(np.float32) for i, n in enumerate((82, 82, 170, 82))
    ]
    latents = [asyncio.run(service.encode([photo(seed)], 2)).latents.numpy() for seed in (1, 2)]
    given, seeds = [latents[0], None, latents[1], latents[1]], [1, 2, 3, 4]
    denoised: list[torch.Tensor] = []
    decode = service.renderer.decode
    service.renderer.decode = lambda latent: denoised.append(latent) or decode(latent)
    mixed = service.render_batch(states, seeds, [True] * 4, given)
    together = {float(latent.sum()): latent for batch in denoised for latent in batch}
    for row in range(4):
        denoised.clear()
        ((alone, _),) = service.render_batch(states[row : row + 1], seeds[row : row + 1], [True], given[row : row + 1])
        nearest = min((latent - denoised[0][0]).abs().max() for latent in together.values())
        assert nearest < 1e-5 * denoised[0].abs().max()
        assert np.abs(mixed[row][0].astype(int) - alone).max() <= 1
    ((plain, _),) = service.render_batch(states[3:], seeds[3:], [True], [None])
    assert np.abs(mixed[3][0].astype(int) - plain).max() > 1, "the reference has no effect"


@pytest.mark.parametrize("uses", [{}, POLICY_ONLY])
def test_the_service_encodes_what_the_pipeline_does(untrained: Any, tmp_path: Path, uses: dict[str, bool]) -> None:
    folder = editing_copy(untrained.folder, tmp_path / "model", **uses)
    pipe = Blip3oPipeline.from_pretrained(folder, editing=True)
    (expected,) = pipe.encode_references([[photo(1)]], 2)
    found = asyncio.run(make_service(folder).encode([photo(1)], 2))
    assert torch.equal(found.indices, expected.indices) and found.indices.shape == (1, 81)
    assert (found.latents is None) == (expected.latents is None) == bool(uses)
    if found.latents is not None:
        torch.testing.assert_close(found.latents, expected.latents)


def test_the_image_tokenizer_is_loaded_for_edits_only(editor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelFolder, "load_image_tokenizer", lambda *_: pytest.fail("loaded"))
    assert make_service(editor, editing=False).image_tokenizer is None


def test_a_gpu_gets_the_memory_of_a_batch_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's update runs on the same GPU while the service waits for the next step."""
    order: list[str] = []
    monkeypatch.setattr(rendering, "render", lambda *_: order.append("render") or np.zeros((1, 2, 2, 3), np.uint8))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("empty"))
    for device, expected in (("cuda", ["render", "empty"]), ("cpu", ["render"])):
        order.clear()
        service = SimpleNamespace(renderer=SimpleNamespace(device=torch.device(device)), configs={False: None})
        RenderService.func_or_class.render_batch(service, [np.zeros((82, 4), np.float32)], [1], [False], [None])
        assert order == expected


@pytest.mark.parametrize(
    ("settings", "replicas", "per_node"),
    [({"device": "cuda"}, 8, 4), ({"device": "cuda", "replicas": 3}, 3, 2), ({"device": "cpu"}, 1, None)],
)
def test_each_gpu_of_the_run_gets_a_renderer(
    settings: dict[str, Any], replicas: int, per_node: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(render_service.serve, "start", lambda **_: None)
    monkeypatch.setattr(render_service.serve, "run", lambda app, **_: started.append(app))
    render_service.start("runs/a", "mini", RenderSettings(**settings), nodes=2, gpus_per_node=4)
    deployment = started[0]._bound_deployment
    assert deployment.num_replicas == replicas
    assert deployment._replica_config.max_replicas_per_node == per_node
