"""The verbs that draw, tokenize and reconstruct, over a small untrained model folder of the test's own."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import text_copy
from PIL import Image
from transformers.utils import logging as library

from blip3o_rl import __version__
from blip3o_rl.cli import main as cli
from blip3o_rl.cli import options, output
from blip3o_rl.cli.reconstruct import reconstruct
from blip3o_rl.cli.tokenize import tokenize
from blip3o_rl.data.images import read_image
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.rendering import render

PROMPTS = ["a photo of a red circle", "a photo of two blue squares left of a star"]
FEW = ["--scale", "2", "--steps", "2"]


@pytest.fixture
def model(untrained: Any) -> str:
    return str(untrained.folder)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def images_in(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: np.asarray(Image.open(file)) for file in folder.glob("*.png") if file.name != "grid.png"}


def generate(model: str, out: Path, *more: str) -> int:
    return cli.run(["generate", *PROMPTS, "--model", model, "--out", str(out), *FEW, *more])


def test_the_settings_are_in_the_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(model, tmp_path / "o", "--n", "2", "--seed", "5", "--guidance", "1.5", "--device", "cpu") == 0
    names = [f"{prompt.replace(' ', '-')}-seed{seed}.png" for prompt in PROMPTS for seed in (5, 6)]
    assert capsys.readouterr().out.split() == [str(tmp_path / "o" / name) for name in [*names, "grid.png"]]
    made = Image.open(tmp_path / "o" / names[3])
    assert made.size == (64, 64)
    assert made.text == {
        "prompt": PROMPTS[1],
        "seed": "6",
        "model": model,
        "scale": "2",
        "steps": "2",
        "guidance": "1.5",
        "size": "64",
        "backend": "transformers",
        "dtype": "float32",
        "device": "cpu",
        "blip3o_rl": __version__,
    }


def test_upstreams_filters_reach_the_sampler_and_the_file(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library.enable_progress_bar()
    assert generate(model, tmp_path / "all") == generate(model, tmp_path / "one", "--top-k", "1", "--top-p", "0.5") == 0
    assert not capsys.readouterr().err, "the weight bars of transformers stay out of the terminal"
    texts = [Image.open(next((tmp_path / name).glob("a-*-seed0.png"))).text for name in ("all", "one")]
    assert "top_k" not in texts[0] and (texts[1]["top_k"], texts[1]["top_p"]) == ("1", "0.5")
    assert generate(model, tmp_path, "--top-p", "1.5") == generate(model, tmp_path, "--top-p", "0") == 2


def test_images_do_not_depend_on_the_batch_size(model: str, tmp_path: Path) -> None:
    for batch_size in ("1", "3", "4"):
        assert generate(model, tmp_path / batch_size, "--n", "2", "--batch-size", batch_size, "--device", "cpu") == 0
    one, three, four = (images_in(tmp_path / name) for name in ("1", "3", "4"))
    assert len(one) == 4 and one.keys() == three.keys() == four.keys()
    for name, image in one.items():
        assert np.abs(image.astype(int) - three[name]).max() <= 1
        assert np.abs(image.astype(int) - four[name]).max() <= 1
    assert len({image.tobytes() for image in one.values()}) == 4, "each seed and prompt has an image of its own"


def test_nothing_is_overwritten(model: str, tmp_path: Path) -> None:
    """Two prompts with one name, and a second command with other settings in the same folder."""
    for steps in ("1", "2"):
        command = ["generate", "a cat", "A cat!", "--model", model, "--out", str(tmp_path), "--scale", "2"]
        assert cli.run([*command, "--steps", steps]) == 0
    names = ["a-cat-seed0.png", *(f"a-cat-seed0-{n}.png" for n in (2, 3, 4))]
    assert {file.name for file in tmp_path.iterdir()} == {*names, "grid.png", "grid-2.png"}
    assert [Image.open(tmp_path / name).text["steps"] for name in names] == ["1", "1", "2", "2"]
    assert [Image.open(tmp_path / name).text["prompt"] for name in names] == ["a cat", "A cat!"] * 2


def test_names_of_prompts_in_any_script() -> None:
    prompts = ["一只狗", "一只猫", "кошка", "🐕", "🐈", "Ein Hündchen, bitte", "\ud83d", "x" * 500, "狗" * 500]
    names = [output.slug(prompt) for prompt in prompts]
    assert names[:3] == prompts[:3] and names[5] == "ein-hündchen-bitte"
    assert len(set(names)) == len(names)
    assert max(len(name.encode()) for name in names) <= output.MAX_NAME_BYTES


def test_half_an_emoji_is_written(tmp_path: Path) -> None:
    file = output.save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "a.png", {"prompt": "half \ud83d"})
    assert Image.open(file).text["prompt"] == "half \ufffd"


def test_other_dtypes(model: str, tmp_path: Path) -> None:
    assert generate(model, tmp_path, "--dtype", "bfloat16", "--device", "cpu", "--size", "64") == 0
    assert {Image.open(file).text["dtype"] for file in tmp_path.glob("a-*.png")} == {"bfloat16"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--size", "128"], "positional embedding for 64 px"),
        (["--size", "0"], "--size"),
        (["--dtype", "int8"], "--dtype"),
        (["--backend", "tgi"], "--backend"),
        (["--batch-size", "0"], "--batch-size"),
        (["--task", "edit"], "--task: is of an instruction with --reference"),
        (["--reference", "a.png"], "takes no reference image"),
    ],
)
def test_generate_refuses_in_one_line(
    model: str, tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--reference" in more:
        model = str(text_copy(model, tmp_path / "text"))
    assert generate(model, tmp_path / "o", *more) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ") and "\n" not in printed and words in printed
    assert not (tmp_path / "o").exists()


def test_a_gpu_that_is_not_there_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert generate(model, tmp_path, "--device", "cuda") == 2


def test_an_output_folder_that_is_a_file_is_refused(model: str, photo: Path) -> None:
    assert generate(model, photo) == 2


def test_references_reach_the_pipeline(
    model: str, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def pipe(prompts: list[str], seeds: list[int], config: Any, references: Any, progress: Any, tasks: Any) -> Any:
        asked.update(references=references, tasks=tasks)
        return types.SimpleNamespace(images=np.zeros((len(prompts), 64, 64, 3), np.uint8))

    monkeypatch.setattr(ModelFolder, "check_editing", lambda folder, references: None)
    monkeypatch.setattr(options.Placement, "load_pipeline", lambda *_, **__: pipe)
    assert generate(model, tmp_path / "o", "--reference", str(photo), "--device", "cpu", "--task", "subject") == 0
    assert len(asked["references"]) == len(PROMPTS) and set(asked["tasks"]) == {"subject"}
    assert all(np.array_equal(given, read_image(photo)) for (given,) in asked["references"])
    assert all(Image.open(file).text["reference"] == str(photo) for file in (tmp_path / "o").glob("a-*.png"))


def test_a_failed_write_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Any, target: Path, **_: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        output.save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "a.png", {})
    assert list(tmp_path.iterdir()) == []


def test_the_bar_counts_batches_by_their_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(output.Progress, "update", lambda bar, task, completed, **more: seen.append(completed))
    with output.progress_bar(3, batch_size=2) as progress:
        for stage, done, total in [("tokens", 1, 2), ("tokens", 2, 2), ("steps", 1, 1), ("tokens", 2, 2)]:
            progress(stage, done, total)
    assert seen == [0.5, 1.0, 2.0, 2.5]


def test_tokenize_prints_json(model: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.open(photo).rotate(90, expand=True).save(tmp_path / "turned.png")
    files = [photo, tmp_path / "turned.png"]
    tokenize(files, model, scale=1)
    found = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in found] == [str(file) for file in files]
    tokenizer = ModelFolder(model).load_image_tokenizer()
    for row, file in zip(found, files, strict=True):
        assert row["scale"] == 1
        assert row["ids"] == tokenizer.tokenize([read_image(file)], 1)[0].tolist()


def test_reconstruct_renders_the_tokens_of_the_image(
    model: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "sub" / "photo.png"
    again.parent.mkdir()
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(again)
    reconstruct([photo, again], model, tmp_path / "o", seed=3, scale=2, steps=2, device="cpu")
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert [file.name for file in files] == ["photo-reconstructed.png", "photo-reconstructed-2.png"]
    made = [Image.open(file) for file in files]
    assert made[1].text["image"] == str(again) and made[1].text["seed"] == "4" and made[1].text["prompt"] == ""

    pipe = Blip3oPipeline.from_pretrained(model)
    indices = ModelFolder(model).load_image_tokenizer().tokenize([read_image(photo)], 2)
    rows = pipe.prompt_ids([""], 2)
    states = pipe.hidden_states(rows, pipe.layout.to_ids(indices), 2)
    expected = render(pipe.renderer, states, [3], GenerationConfig(steps=2))[0]
    assert np.abs(np.asarray(made[0]).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("verb", [tokenize, reconstruct])
def test_bad_images_are_named_before_anything_is_loaded(
    model: str, verb: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelFolder, "load_image_tokenizer", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "text.png").write_text("no photo")
    for bad, words in (("text.png", "text.png: not readable as an image"), ("none.png", "none.png: no such file")):
        with pytest.raises(UserError, match=words):
            verb([photo, tmp_path / bad], model)


def test_a_folder_without_image_tokenizer_is_named(model: str, photo: Path, tmp_path: Path) -> None:
    small = tmp_path / "model"
    small.mkdir()
    for name in ("policy", "renderer", "model_index.json"):
        (small / name).symlink_to(Path(model) / name)
    with pytest.raises(UserError, match="image_tokenizer/config.json: missing"):
        tokenize([photo], str(small))
