"""transformers' Mask2Former against mmdet's on the same random weights, from image to detections.

The stored reference (`data/mmdet_small.npz`) is mmdet's answer at a reduced size; `mmdet_reference.py` says how it is
made. With BLIP3O_RL_MMDET_PYTHON set to the interpreter that `rewards/geneval/environments/create_mmdet.sh` makes, the
long test compares the upstream architecture at the upstream size as well.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from blip3o_rl.data.geneval import CLASSES
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.geneval import convert_mmdet, mask2former
from blip3o_rl.rewards.geneval.detector import tight_box
from blip3o_rl.rewards.geneval.mask2former import Mask2FormerDetector, instances, network_input
from blip3o_rl.rewards.geneval.reward import GenEvalReward
from blip3o_rl.scoring.api import Sample

NETWORKS = runpy.run_path(str(Path(__file__).parent / "geneval_networks.py"))
REFERENCE = NETWORKS["REFERENCE"]
MMDET_PYTHON = os.environ.get("BLIP3O_RL_MMDET_PYTHON")
needs_mmdet = pytest.mark.skipif(not MMDET_PYTHON, reason="BLIP3O_RL_MMDET_PYTHON names no interpreter with mmdet")


def worst_differences(reference, index: int, found: list) -> dict[str, float]:
    """Largest differences between mmdet's detections and ours, matched by label, score and mask."""
    width = found[0].mask.shape[1]
    masks = np.unpackbits(reference[f"masks{index}"], axis=-1)[..., :width].astype(bool)
    worst = {"score": 0.0, "box": 0.0, "pixels": 0.0}
    rest = list(found)
    for label, score, box, mask in zip(
        reference[f"labels{index}"], reference[f"scores{index}"], reference[f"boxes{index}"], masks, strict=True
    ):
        same = [item for item in rest if item.class_name == CLASSES[label]]
        assert same, f"no {CLASSES[label]} is left; mmdet finds one with {score:.3f}"
        ours = min(same, key=lambda item: (round(abs(item.score - score), 5), (item.mask != mask).sum()))
        rest = [item for item in rest if item is not ours]
        pixels = float((ours.mask != mask).sum())
        worst["pixels"] = max(worst["pixels"], pixels)
        if pixels == 0:  # a pixel more or less moves the mean of a mask of few pixels
            worst["score"] = max(worst["score"], float(abs(ours.score - score)))
        worst["box"] = max(worst["box"], float(np.abs(np.array(ours.box) - box).max()))
    assert not rest
    return worst


@pytest.fixture(scope="module")
def reference():
    return np.load(NETWORKS["SMALL_REFERENCE"])


@pytest.fixture(scope="module")
def checkpoint(reference, tmp_path_factory) -> Path:
    return NETWORKS["write_mmdet_checkpoint"](reference, tmp_path_factory.mktemp("mmdet") / "random.pth")


@pytest.fixture(scope="module")
def detector(checkpoint, tmp_path_factory) -> Mask2FormerDetector:
    folder = convert_mmdet.convert(checkpoint, tmp_path_factory.mktemp("converted") / "mask2former")
    return Mask2FormerDetector(folder, device="cpu", scale=REFERENCE["SCALES"]["small"])


@pytest.fixture
def images() -> list[np.ndarray]:
    return REFERENCE["seeded_images"](REFERENCE["SIZES"]["small"])


@pytest.fixture(scope="module")
def upstream(tmp_path_factory) -> tuple[dict, Path]:
    """mmdet's answers and checkpoint file at the upstream size; minutes."""
    folder = tmp_path_factory.mktemp("upstream")
    script = str(NETWORKS["REFERENCE_SCRIPT"])
    subprocess.run([str(MMDET_PYTHON), script, "full", str(folder / "full.npz")], check=True)
    answers = dict(np.load(folder / "full.npz"))
    return answers, NETWORKS["write_mmdet_checkpoint"](answers, folder / "full.pth")


# ---- parity


def test_detections_are_those_of_mmdet(detector, reference, images):
    for index, found in enumerate(detector.detect(images)):
        assert len(found) == 100
        assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
        worst = worst_differences(reference, index, found)
        assert worst["score"] < 1e-5 and worst["box"] == 0 and worst["pixels"] <= 1


def test_swapped_channels_would_not_pass(detector, reference, images):
    found = detector.detect([np.ascontiguousarray(images[0][..., ::-1])])[0]
    assert np.abs(np.array([item.score for item in found]) - reference["scores0"]).max() > 1e-2


@pytest.mark.long
@pytest.mark.timeout(3600)
@needs_mmdet
def test_the_upstream_architecture_agrees_with_mmdet(upstream, tmp_path):
    answers, weights = upstream
    detector = Mask2FormerDetector(convert_mmdet.convert(weights, tmp_path / "folder"), device="cpu")
    found = detector.detect(REFERENCE["seeded_images"](REFERENCE["SIZES"]["full"]))
    for index, detections in enumerate(found):
        worst = worst_differences(answers, index, detections)
        assert worst["score"] < 1e-4 and worst["box"] <= 1 and worst["pixels"] <= 8


@pytest.mark.long
@needs_mmdet
def test_the_stored_reference_is_what_mmdet_answers(tmp_path, reference):
    subprocess.run(
        [str(MMDET_PYTHON), str(NETWORKS["REFERENCE_SCRIPT"]), "small", str(tmp_path / "small.npz")], check=True
    )
    again = np.load(tmp_path / "small.npz")
    assert sorted(again.files) == sorted(reference.files)
    assert str(again["shapes"]) == str(reference["shapes"])
    for index in range(2):
        assert np.allclose(again[f"scores{index}"], reference[f"scores{index}"], atol=1e-5)


@pytest.mark.long
@pytest.mark.timeout(3600)
@needs_mmdet
def test_the_reward_runs_on_mmdet(upstream, tmp_path):
    """In mmdet's environment: colors by CLIP, detections by mmdet, the rules; random weights, hence any verdict."""
    weights, clip = upstream[1], NETWORKS["write_clip"](tmp_path / "clip")
    program = f"""
import numpy as np
from blip3o_rl.scoring.api import Sample
from blip3o_rl.rewards.geneval.reward import GenEvalReward
reward = GenEvalReward(detector="mmdet", checkpoint={str(weights)!r}, clip={str(clip)!r}, device="cpu")
image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
print(reward.score([Sample("a", "", image, reward.example_metadata)])[0].value)
"""
    answer = subprocess.run([str(MMDET_PYTHON), "-c", program], check=True, capture_output=True, text=True)
    assert 0 <= float(answer.stdout.splitlines()[-1]) <= 1


# ---- the detector


def test_batches_give_what_single_images_give(detector, images):
    images = [images[0], images[1], images[0][::-1].copy(), images[0]]
    single = [detector.detect([image])[0] for image in images]
    detector.batch_size = 3
    try:
        together = detector.detect(images)
    finally:
        detector.batch_size = 1
    for ours, alone in zip(together, single, strict=True):
        assert [item.score for item in ours] == pytest.approx([item.score for item in alone], abs=1e-5)
        assert ours[0].class_name == alone[0].class_name
        assert (ours[0].mask != alone[0].mask).sum() <= 1
    assert detector.detect([]) == []


def test_min_score_leaves_out_only_what_scores_less(detector, images):
    everything = detector.detect(images[:1])[0]
    detector.min_score = 0.3
    try:
        some = detector.detect(images[:1])[0]
    finally:
        detector.min_score = 0.0
    assert 0 < len(some) < 100
    expected = [(item.class_name, item.box) for item in everything if item.score > 0.3]
    assert [(item.class_name, item.box) for item in some if item.score > 0.3] == expected


def test_nothing_is_left_above_a_high_min_score():
    logits = torch.zeros(5, 81)
    assert instances(logits, torch.ones(5, 8, 8), (32, 32), (32, 32), (16, 16), min_score=0.3) == []


def test_instances_by_hand():
    """Two queries: a sure cat in the left half, and nothing."""
    classes = torch.full((2, 81), -20.0)
    classes[0, CLASSES.index("cat")] = 20.0
    classes[1, 80] = 20.0
    masks = torch.full((2, 8, 8), -5.0)
    masks[0, :, :4] = 5.0
    found = instances(classes, masks, (32, 32), (32, 32), (32, 32))
    best = found[0]
    assert best.class_name == "cat" and best.box == (0.0, 0.0, 16.0, 32.0)
    inside = best.mask
    assert inside[:, :16].all() and not inside[:, 16:].any()
    assert 0.9 < best.score < 1 / (1 + np.exp(-5.0)) + 1e-6, "blurred edge included, the mean is below sigmoid(5)"
    assert all(item.score < 1e-6 for item in found[1:])


def test_padding_is_no_part_of_the_mask():
    """A network input of 20 x 32 in 32 x 32: the rows from 20 on vanish before the mask is brought to the image."""
    classes = torch.full((1, 81), -20.0)
    classes[0, 0] = 20.0
    masks = torch.full((1, 8, 8), -5.0)
    masks[0, 5:] = 5.0
    assert instances(classes, masks, (32, 32), (20, 32), (40, 64))[0].box == (0.0, 0.0, 0.0, 0.0)
    masks[0, :2] = 5.0
    assert instances(classes, masks, (32, 32), (20, 32), (40, 64))[0].box == (0.0, 0.0, 64.0, 16.0)


@pytest.mark.parametrize("broken", [0, 1])
def test_output_that_is_not_finite_is_no_answer(broken):
    logits = [torch.zeros(5, 81), torch.ones(5, 8, 8)]
    logits[broken][-1, -1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        instances(*logits, (32, 32), (32, 32), (16, 16), min_score=0.3)


def test_network_input_is_normalized_rgb():
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 0] = 255
    pixels = network_input(red)
    assert pixels.shape == (800, 1200, 3) and pixels.dtype == np.float32
    assert np.allclose(pixels[0, 0], [(255 - 123.675) / 58.395, -116.28 / 57.12, -103.53 / 57.375])
    assert network_input(np.zeros((512, 512, 3), np.uint8)).shape == (800, 800, 3)
    assert network_input(np.zeros((100, 500, 3), np.uint8)).shape == (267, 1333, 3), "the long side decides"


def test_tight_box():
    mask = np.zeros((6, 8), bool)
    assert tight_box(mask) == (0.0, 0.0, 0.0, 0.0)
    mask[2:4, 5] = True
    assert tight_box(mask) == (5.0, 2.0, 6.0, 4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint": "no/such/folder"}, "checkpoint: there is no no/such/folder"),
        ({"checkpoint": "upstream.pth"}, "convert it once"),
        ({"checkpoint": "x", "device": "abacus"}, "device=abacus"),
        ({"checkpoint": "x", "device": "cuda:99"}, "device=cuda:99"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(arguments, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message) as caught:
        Mask2FormerDetector(**arguments)
    assert "\n" not in str(caught.value)


# ---- the converter


def changed(checkpoint: Path, path: Path, change) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    change(content["state_dict"])
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("panoptic_head.query_embed.weight"), "lacks 1 of .*queries_embedder"),
        (lambda state: state.pop("backbone.stages.1.blocks.1.norm1.bias"), "lacks 1 of .*layernorm_before"),
        (lambda state: state.pop("panoptic_head.cls_embed.weight"), "has no panoptic_head.cls_embed.weight"),
        (lambda state: state.update({"panoptic_head.extra": torch.zeros(1)}), "panoptic_head.extra belongs to no"),
        (
            lambda state: state.update({"backbone.norm0.weight": torch.zeros(9)}),
            "another shape .first: .*stage1.weight",
        ),
        (
            lambda state: state["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"].add_(1),
            "relative_position_index differs",
        ),
        (
            lambda state: state.update({"x.attentions.0.attn.in_proj_weight": torch.zeros(1)}),
            "tensor names of mmdet 2.x; take the 3.x file",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(checkpoint, tmp_path, change, message):
    damaged = changed(checkpoint, tmp_path / "damaged.pth", change)
    with pytest.raises(UserError, match=message):
        convert_mmdet.convert(damaged, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.pth"]


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    for name, content in (("text.pth", b"hello"), ("empty.pth", b""), ("model-00000000.pth", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            convert_mmdet.load_checkpoint(tmp_path / name)
    torch.save({"state_dict": {}}, tmp_path / "no_tensors.pth")
    with pytest.raises(UserError, match="holds no tensors"):
        convert_mmdet.load_checkpoint(tmp_path / "no_tensors.pth")
    with pytest.raises(UserError, match="no such file; the upstream checkpoint is https"):
        convert_mmdet.load_checkpoint(tmp_path / "missing.pth")


class Greeting:
    """What a hostile file would hold: something that runs when it is unpickled."""

    def __reduce__(self):
        return print, ("this must never be printed",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"meta": Greeting(), "state_dict": {"a": torch.zeros(1)}}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        convert_mmdet.load_checkpoint(tmp_path / "hostile.pth")
    assert capsys.readouterr().out == ""


def test_the_command_writes_a_folder_once(checkpoint, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder"
    monkeypatch.setattr(sys, "argv", ["convert", str(checkpoint), str(folder)])
    assert convert_mmdet.main() == 0
    origin = json.loads((folder / "conversion.json").read_text())
    assert origin["sha256"] == convert_mmdet.sha256(checkpoint)
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"]["64"] == "computer mouse"
    assert convert_mmdet.main() == 2
    assert "exists already" in capsys.readouterr().err


def test_published_files_are_checked_against_their_name(checkpoint, tmp_path):
    digest = convert_mmdet.sha256(checkpoint)[:8]
    good = tmp_path / f"model-{digest}.pth"
    good.write_bytes(checkpoint.read_bytes())
    assert convert_mmdet.load_checkpoint(good)


def test_there_is_no_mmdet_in_the_trainers_environment():
    from blip3o_rl.rewards.geneval.mmdet_detector import MmdetDetector

    with pytest.raises(UserError, match="create_mmdet.sh"):
        MmdetDetector("upstream.pth")


def test_constants_are_mmdets():
    assert (mask2former.LONG_SIDE, mask2former.SHORT_SIDE, mask2former.MAX_DETECTIONS) == (1333, 800, 100)
    assert len(CLASSES) == len(set(CLASSES)) == 80


# ---- the reward on it


@pytest.fixture(scope="module")
def networks(checkpoint, tmp_path_factory) -> dict[str, str]:
    folder = convert_mmdet.convert(checkpoint, tmp_path_factory.mktemp("reward") / "mask2former")
    return {"checkpoint": str(folder), "clip": str(NETWORKS["write_clip"](tmp_path_factory.mktemp("clip")))}


def test_the_reward_asks_for_all_colors_of_a_batch_at_once(networks, images, monkeypatch):
    reward = GenEvalReward(detector="mask2former", device="cpu", **networks)
    monkeypatch.setattr(reward.detector, "scale", REFERENCE["SCALES"]["small"])
    name = max(reward.detector.detect(images[:1])[0], key=lambda item: item.score).class_name
    metadata = {"tag": "colors", "include": [{"class": name, "count": 1, "color": "red"}]}
    samples = [Sample(str(index), "", image, metadata) for index, image in enumerate([*images, images[0]])]
    calls: list[int] = []
    classify = reward.colors.classify
    monkeypatch.setattr(reward.colors, "classify", lambda asked: calls.append(len(asked)) or classify(asked))
    scores = reward.score(samples)
    assert len(calls) == 1 and calls[0] >= 3
    assert all(0 <= score.value <= 1 for score in scores)
    assert scores[0].value == scores[2].value
    alone = [reward.score([sample])[0].value for sample in samples]
    assert [score.value for score in scores] == pytest.approx(alone)


def test_the_reward_knows_genevals_classes_and_colors(networks):
    reward = GenEvalReward(detector="mask2former", device="cpu", **networks)
    fine = {"tag": "colors", "include": [{"class": "computer mouse", "count": 1, "color": "purple"}]}
    assert reward.check_metadata(fine) == ""
    assert "circle" in reward.check_metadata({"tag": "counting", "include": [{"class": "circle", "count": 2}]})
    assert "mauve" in reward.check_metadata({**fine, "include": [{"class": "cup", "count": 1, "color": "mauve"}]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "mask2former"}, "checkpoint: detector mask2former needs one; give the folder .*convert_mmdet"),
        ({"detector": "mmdet"}, "checkpoint: detector mmdet needs one; give the file https"),
        ({"detector": "scenes", "checkpoint": "x"}, "checkpoint: detector scenes has no weights"),
        ({"detector": "mmdet", "checkpoint": "x"}, "detector: mmdet needs the module"),
        ({"detector": "yolo"}, "detector: is 'yolo'; use one of scenes, mask2former, mmdet"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        GenEvalReward(**options)
