from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o_rl.data.references import load_image
from blip3o_rl.data.synthetic import edits, scenes
from blip3o_rl.errors import UserError
from blip3o_rl.mini import autoencoders, parts
from blip3o_rl.mini import build as mini
from blip3o_rl.mini.images import to_pixels
from blip3o_rl.mini.worlds import TURNS, WORLDS, pairs_of, random_images, turn
from blip3o_rl.model import folder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline


def test_random_images_follow_their_seed_and_show_every_world() -> None:
    small, large = random_images(20, (32, 64), seed=5)
    assert small.shape == (20, 3, 32, 32) and large.shape == (20, 3, 64, 64)
    assert float(small.min()) >= -1 and float(large.max()) <= 1
    assert np.array_equal(random_images(20, (32,), seed=5)[0], small)
    assert not np.array_equal(random_images(20, (32,), seed=6)[0], small)


def test_every_world_has_its_share_of_the_chunks() -> None:
    assert len(TURNS) == 20
    kinds = [pairs_of(turn(number), 6, seed=number) for number in range(20)]
    assert sum(pairs[0].reference is not None for pairs in kinds) == WORLDS["edits"].share
    tags = {pair.tag for pairs in kinds for pair in pairs}
    assert tags >= {"position", "text", "panel", "planogram-3", "edit add", "edit move"}


def test_a_pair_shows_the_same_scene_at_every_side() -> None:
    for world in WORLDS.values():
        for pair in world.pairs(4, 3):
            large = np.asarray(Image.fromarray(pair.draw(128)).resize((64, 64), Image.Resampling.BOX), float)
            assert np.abs(large - pair.draw(64)).mean() < 3


def test_references_of_edits_have_the_tokens_that_the_model_learned_from() -> None:
    """Enlarged from 64 pixels they have half of them, and the packaged model edits a fifth fewer images right."""
    rng = np.random.default_rng(5)
    some = [edits.sample(rng, operation, "held_out") for operation in edits.CHANGING]
    tokenizer = folder.ModelFolder("mini").load_image_tokenizer().eval()
    learned = to_pixels(np.stack([scenes.draw(edit.before, parts.TOKENIZER_INPUT) for edit in some]))
    found = tokenizer.tokenize([load_image(edit.metadata["references"][0]) for edit in some], 2)
    assert torch.equal(found, tokenizer.encode(learned, 2).cpu())


def test_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="polish"):
        mini.build(tmp_path / "out", tmp_path / "work", stages=("polish",))


def test_steps_of_the_tokenizer_change_no_frozen_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint has no frozen weights: what a step changed in them would be lost when the build resumes."""
    monkeypatch.setattr(autoencoders, "cluster_centers", lambda vectors, size, seed: vectors[:1].expand(size, -1))
    sides = (parts.TOKENIZER_INPUT, parts.IMAGE_SIZE)
    training = autoencoders.TokenizerTraining(parts.make_image_tokenizer(), sides, unquantized=1, revive_until=2)
    before = {name: value.clone() for name, value in training.named_parameters() if not value.requires_grad}
    pixels, target = random_images(2, sides, seed=1)
    training(pixels, target, scale=0, number=1)
    assert before
    assert all(value.equal(before[name]) for name, value in training.named_parameters() if name in before)


@pytest.mark.slow
def test_build_writes_a_model_that_generates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages at a few steps each, of the phases one of each kind; the model is bad but complete."""
    monkeypatch.setattr(mini, "COLUMNS", 2)
    kinds = ("sft", "designs", "last")  # aligned and joint, the policy alone, joint again
    monkeypatch.setattr(mini, "PHASES", {name: mini.PHASES[name] for name in kinds})
    steps = {"vae_steps": 2, "tatok_steps": 2, "phase_steps": dict.fromkeys(mini.PHASES, 2)}
    sizes = {"images": 640, "more_edits": 64, **steps}
    out = mini.build(tmp_path / "out", tmp_path / "work", **sizes)
    folder.ModelFolder(out, *folder.PARTS)
    assert sum(file.stat().st_size for file in out.rglob("*")) < 25e6
    made = Blip3oPipeline.from_pretrained(out)(["a photo of a circle"], [1], GenerationConfig(scale=2, steps=2))
    assert made.images.shape == (1, 64, 64, 3)
    monkeypatch.setattr(mini, "train_phase", None)  # what is finished is not trained again
    again = mini.build(tmp_path / "out", tmp_path / "work", **sizes)
    same = Blip3oPipeline.from_pretrained(again)(["a photo of a circle"], [1], GenerationConfig(scale=2, steps=2))
    # Equal weights at other addresses may take other kernels, whose rounding moves a gray level.
    assert np.abs(same.images.astype(int) - made.images).max() <= 1
