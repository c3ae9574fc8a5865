"""Editing rows: what is read from which file, bad rows, which task a step has, and a run that makes a model edit."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import text_copy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sft_runs import kill_in_the_fourth_step, weights

from blip3o_rl.config.sft import TaskShares
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_lines
from blip3o_rl.model.folder import PARTS, ModelFolder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.token_layout import KEEP_INSTRUCTION, TASKS
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.sft import launch as sft_launch
from blip3o_rl.sft import preflight
from blip3o_rl.sft.launch import compose_settings
from blip3o_rl.sft.pairs import FAULT, Fields, index, read_bytes
from blip3o_rl.sft.run import BadPairs, SFTTrainer
from blip3o_rl.sft.tasks import shares_of, task_of_step

RECIPE = "recipes/sft"
Row = dict[str, Any]


def png(level: int, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (level, 0, 255 - level)).save(file, "PNG")
    return file.getvalue()


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def level(place: Row) -> int:
    return int(np.asarray(Image.open(io.BytesIO(read_bytes(place))))[0, 0, 0])


def rows_of(path: Path, **fields: Any) -> tuple[list[Row], Row]:
    rows = list(index([path], path.parent / "index", Fields(**fields)))
    return [row for row in rows if not row[FAULT]], {row["where"]: row[FAULT] for row in rows if row[FAULT]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    return tmp_path


READ: list[tuple[Row, tuple[str, str, list[int], int]]] = [
    ({"image": "1.png", "caption": "c"}, ("text_to_image", "c", [], 1)),
    ({"image": "1.png"}, ("keep", KEEP_INSTRUCTION, [], 1)),
    ({"input_image": "1.png", "output_image": "2.png", "instruction": "a"}, ("edit", "a", [1], 2)),
    ({"input_images": ["1.png", "3.png"], "output_image": "2.png", "input_prompt": "b"}, ("edit", "b", [1, 3], 2)),
    ({"references": ["4.png"], "target": "5.png", "prompt": "d", "task": "subject"}, ("subject", "d", [4], 5)),
    ({"input_image": "6.png", "output_image": "6.png", "instruction": KEEP_INSTRUCTION},
     ("keep", KEEP_INSTRUCTION, [6], 6)),
]  # fmt: skip


def test_lines_of_all_forms(images: Path) -> None:
    rows, bad = rows_of(write_lines(images / "rows.jsonl", [row for row, _ in READ]), keep=True)
    assert not bad
    found = [(row["task"], row["caption"], [level(place) for place in row["inputs"]], level(row)) for row in rows]
    assert found == [expected for _, expected in READ]
    _, bad = rows_of(write_lines(images / "rows.jsonl", [row for row, _ in READ]))
    assert list(bad) == [f"{images / 'rows.jsonl'}:2"] and "'caption' is missing" in str(bad), "without a share of keep"


def test_tars_of_edits(tmp_path: Path) -> None:
    members = {
        "1.input.png": png(1), "1.output.png": png(2), "1.txt": b"turn it",
        "2.input.0.png": png(3), "2.input.1.png": png(4), "2.output.png": png(5),
        "2.json": b'{"instruction": "join them", "task": "subject"}',
        "3.png": png(6), "4.png": png(7), "4.txt": b"a caption",
        "5.input.png": png(1), "5.txt": b"no output", "6.input.png": png(1), "6.output.png": png(2),
        "7.input.png": png(1), "7.output.png": png(2), "7.json": b'{"caption": "x", "task": "edti"}',
    }  # fmt: skip
    path = tmp_path / "edits.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows, bad = rows_of(path, keep=True)
    found = [(row["task"], row["caption"], [level(place) for place in row["inputs"]], level(row)) for row in rows]
    assert found == [
        ("edit", "turn it", [1], 2),
        ("subject", "join them", [3, 4], 5),
        ("keep", KEEP_INSTRUCTION, [], 6),
        ("text_to_image", "a caption", [], 7),
    ]
    reasons = ["1 input and 0 output images", "no instruction among", "did you mean 'edit'"]
    for number, reason in zip((5, 6, 7), reasons, strict=True):
        assert reason in bad[f"{path}:{number}"]


GOOD: Row = {"input_image": "1.png", "output_image": "2.png", "instruction": "make it red"}
BAD: list[tuple[Any, str]] = [
    (GOOD | {"input_image": "none.png"}, "input 1: image"),
    (GOOD | {"output_image": "none.png"}, "output: image"),
    (GOOD | {"input_image": "cut.png"}, "input 1: image: not readable"),
    (GOOD | {"input_image": "moving.png"}, "input 1: image: 2 images in one file"),
    (GOOD | {"input_image": "long.png"}, "input 1: image of 400 x 10 px"),
    (GOOD | {"output_image": "huge.png"}, "output: image: not readable"),
    (GOOD | {"output_image": "1.png"}, "input and output image are equal"),
    (GOOD | {"instruction": " "}, "'instruction' is empty"),
    (GOOD | {"instruction": "word " * 1500}, "data.max_tokens leaves room for"),
    (GOOD | {"input_image": 3}, "'input_image' holds no path"),
    (GOOD | {"input_images": []}, "'input_images' has 0 images"),
    (GOOD | {"input_images": ["1.png"] * 5}, "'input_images' has 5 images"),
    (GOOD | {"input_images": ["1.png", "3.png"]}, "2 input images; this model takes at most 1"),
    ({"input_image": "1.png", "instruction": "x"}, "'output_image or target' is missing"),
    ({"input_image": "1.png", "output_image": "2.png"}, "no field for the instruction"),
    (GOOD | {"task": "edti"}, "'task' is 'edti', not one of edit, keep, subject; did you mean 'edit'"),
    (GOOD | {"task": "text_to_image"}, "'task' is 'text_to_image'"),
    ('{"input_image": "1.png", "input_image": "2.png"}', "'input_image' stands twice"),
    ("{", "not JSON"),
    ("[1]", "list, not a JSON object"),
]


def damaged_images(folder: Path) -> None:
    (folder / "cut.png").write_bytes(png(1)[:60])
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    (folder / "long.png").write_bytes(png(1, (400, 10)))
    huge = bytearray(png(1))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # in its header; Pillow refuses it before it reads on
    (folder / "huge.png").write_bytes(huge)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model without its second connector: it generates from text only."""
    return text_copy("mini", tmp_path_factory.mktemp("model") / "text")


def trainer_of(model: Path, folder: Path, files: Path, *more: str) -> SFTTrainer:
    base = [f"model.folder={model}", "model.scales=[2]", "train.batch_size=4", "train.gradient_accumulation=1"]
    base += ["data.workers=0", "run.processes=1", f"data.files=[{files}]", "model.editing=latents"]
    settings = compose_settings(RECIPE, [*base, *more])
    return SFTTrainer(settings, RunFolder(folder), lambda step, metrics: None)


def test_sixty_bad_rows_are_one_line_each_and_the_others_are_trained_on(images: Path, text_model: Path) -> None:
    damaged_images(images)
    rows = [GOOD, *[row for _ in range(3) for row, _ in BAD], GOOD | {"input_image": "4.png"}]
    path = write_lines(images / "rows.jsonl", rows)
    trainer = trainer_of(text_model, images / "run", path, "data.max_bad=60")
    found = {line["where"]: line["reason"] for line in read_lines(images / "run" / "logs" / "bad_pairs_0.jsonl")}
    for number in range(10):  # a pass has 35 rows that an index cannot know to be bad
        item = trainer.train_dataset[number]
        assert len(item["examples"]) == 4 and item["task"] == "edit"
        found |= item["bad"]
    assert list(sorted(int(where.rpartition(":")[2]) for where in found)) == list(range(2, 62))
    for number, (_, words) in enumerate(BAD * 3, start=2):
        reason = found[f"{path}:{number}"]
        assert words in reason and "\n" not in reason, (number, reason)
    BadPairs(images / "more.jsonl", 60).add(found)
    with pytest.raises(UserError, match=r"60 pairs are bad and data\.max_bad=59"):
        BadPairs(images / "less.jsonl", 59).add(found)


def test_the_policy_alone_is_trained_without_the_autoencoder(
    images: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(text_model, images / "run", write_lines(images / "rows.jsonl", [GOOD]))
    item = trainer.train_dataset[0]
    whole = trainer.encode(item)
    alone = trainer_of(text_model, images / "alone", images / "rows.jsonl", "train.diffusion_weight=0")
    monkeypatch.setattr(alone.renderer, "encode_latents", None)
    batch = alone.encode(item)
    assert whole.latents.numel() and torch.equal(batch.input_ids, whole.input_ids)
    assert alone.compute_loss(alone.model, item).requires_grad


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), st.integers(0, 50), st.integers(0, 400))
def test_any_stretch_of_steps_has_the_shares(weights: list[int], seed: int, first: int) -> None:
    shares = {task: float(weight) for task, weight in zip(TASKS, weights, strict=True) if weight}
    steps = [task_of_step(step, seed, shares) for step in range(first, first + 50)]
    counts = Counter(task for task, _ in steps)
    for task, share in shares.items():
        assert abs(counts[task] - 50 * share / sum(shares.values())) < 4
        earlier = [before for found, before in steps if found == task]
        assert earlier == list(range(earlier[0], earlier[0] + len(earlier))) if earlier else True


def test_shares_that_do_not_fit_the_rows() -> None:
    rows: Any = {"text_to_image": 30, "edit": 10}
    assert shares_of(TaskShares(), rows) == {"text_to_image": 30.0, "edit": 10.0}
    assert shares_of(TaskShares(text_to_image=0.0, edit=1.0), rows) == {"edit": 1.0}
    wrong = [
        (TaskShares(edit=0.5), r"data\.shares\.text_to_image: not set, and data\.files has 30 rows of it"),
        (TaskShares(text_to_image=1.0, edit=1.0, keep=0.2), r"data\.shares\.keep=0\.2: data\.files has no usable row"),
        (TaskShares(text_to_image=0.0, edit=0.0), "all are 0"),
    ]
    for shares, words in wrong:
        with pytest.raises(UserError, match=words):
            shares_of(shares, rows)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six edits, three captions and three images alone."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    edits = [
        GOOD | {"input_image": f"{n}.png", "output_image": f"{n + 6}.png", "instruction": "x" * n + "y"}
        for n in range(6)
    ]
    pairs = [{"image": f"{n}.png", "caption": "a red circle" + " here" * n} for n in range(3)]
    write_lines(folder / "rows.jsonl", [*edits, *pairs, *({"image": f"{n}.png"} for n in range(9, 12))])
    return folder


MIX = ["data.shares.edit=0.5", "data.shares.keep=0.25", "data.shares.text_to_image=0.25"]


def test_a_batch_has_the_prompts_and_references_of_inference(tmp_path: Path, world: Path, text_model: Path) -> None:
    """Token ids, reference latents and target of each task against the pipeline, with a system prompt per task."""
    prompts = ["model.system_prompts.edit='Change it.'", "model.system_prompts.text_to_image='Paint it.'"]
    trainer = trainer_of(text_model, tmp_path / "run", world / "rows.jsonl", *MIX, *prompts)
    pipeline = Blip3oPipeline(
        trainer.model.policy, trainer.tokenizer, trainer.renderer, None, trainer.layout, trainer.image_tokenizer
    )
    seen = set()
    for number in range(8):
        item = trainer.train_dataset[number]
        batch, task = trainer.encode(item), item["task"]
        seen.add(task)
        for row, example in enumerate(item["examples"]):
            edits = task != "text_to_image"
            # The squares are 108 px, the originals 64: the pipeline gets the squares too, which squash to themselves.
            (known,) = pipeline.encode_references([example.reference_squares if edits else None], 2)
            (ids,) = pipeline.prompt_ids([example.text], 2, [known])
            assert batch.input_ids[row, batch.attention_mask[row].bool()].tolist()[: len(ids)] == ids
            system = {"edit": "Change it.", "text_to_image": "Paint it."}.get(task, "You are a helpful assistant.")
            assert trainer.tokenizer.decode(ids).startswith(f"<|im_start|>system\n{system}<|im_end|>")
            reference = batch.references[row]
            assert (reference is not None) == edits
            if task == "keep":
                assert reference is not None and torch.equal(reference, batch.latents[row])
                assert example.text == KEEP_INSTRUCTION
            elif reference is not None:
                assert example.reference_pixels is not None
                expected = trainer.renderer.encode_latents(example.reference_pixels[None])[0]
                torch.testing.assert_close(reference, expected, atol=1e-4, rtol=0)
    assert seen == {"edit", "keep", "text_to_image"}


SMALL = ["model.scales=[2]", "train.batch_size=2", "train.gradient_accumulation=1"]
SMALL += ["train.policy_lr=1e-3", "train.renderer_lr=1e-3", "train.warmup_ratio=0.5", "run.processes=1"]
SMALL += ["data.workers=0", "train.condition_drop=0.5"]
SAME = ("sft/loss", "sft/tokens", "sft/flow", "sft/grad_norm", "sft/task", "sft/epoch")


def test_a_text_to_image_model_learns_to_edit_killed_and_resumed(
    tmp_path: Path, world: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [
        "train.steps=4",
        f"model.folder={text_model}",
        "run.save_every=2",
        "train.trainable=editing",
        "model.editing=latents",
        *MIX,
    ]
    more += ["model.system_prompts.edit='Change it.'", f"data.files=[{world / 'rows.jsonl'}]"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    sft_launch.launch(RECIPE, [*SMALL, *more, f"run.folder={whole}"])
    kill_in_the_fourth_step(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sft_launch.launch(RECIPE, [*SMALL, *more, f"run.folder={broken}"])
    sft_launch.resume(broken, [])

    def metrics(folder: Path) -> list[list[Any]]:
        return [[line[name] for name in ("step", *SAME)] for line in RunFolder(folder).read_metrics()]

    assert metrics(broken) == metrics(whole) and len(metrics(whole)) == 4
    assert len({line[5] for line in metrics(whole)}) > 1, "steps of several tasks"
    trained, resumed = weights(whole), weights(broken)
    assert trained.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in trained.items())
    before = ModelFolder(text_model).load_renderer().state_dict()
    for name, value in trained.items():
        part, _, key = name.removeprefix("renderer/").partition("/")
        if name.startswith("renderer/transformer"):
            changed = not torch.equal(value.float(), before[f"{part}.{key}"])
            assert changed == any(word in key for word in ("caption", "patch_embed", "proj_out")), name

    model = ModelFolder(whole / "model", *PARTS)
    model.check_editing()
    assert model.layout.system_prompts.edit == "Change it."
    assert dict(model.load_renderer().editing_connector().config)["noise_injection"] is True
    pipeline = Blip3oPipeline.from_pretrained(model.path, editing=True)
    assert pipeline.layout == model.layout
    reference = [np.asarray(Image.open(world / "0.png"))]
    found = pipeline(["y"], [1], GenerationConfig(scale=2, steps=1), [reference])
    assert found.images.shape == (1, 64, 64, 3)

    # Such a folder is an editing model, which needs no `model.editing`, and refuses another connector.
    again = [*SMALL, "train.steps=1", *MIX, f"data.files=[{world / 'rows.jsonl'}]", f"model.folder={model.path}"]
    assert preflight.check(compose_settings(RECIPE, again)).model.editing is None
    with pytest.raises(UserError, match=r"model\.editing=tokens: the model folder edits with latents already"):
        preflight.check(compose_settings(RECIPE, [*again, "model.editing=tokens"]))


def test_tokens_alone_leave_the_renderers_inputs_as_they_are(tmp_path: Path, world: Path, text_model: Path) -> None:
    more = ["train.steps=1", "model.editing=tokens", *MIX, f"data.files=[{world / 'rows.jsonl'}]"]
    sft_launch.launch(RECIPE, [*SMALL, *more, f"run.folder={tmp_path / 'run'}", f"model.folder={text_model}"])
    uses = ModelFolder(tmp_path / "run" / "model").load_renderer().editing_connector().config
    assert (uses.cross_attention, uses.noise_injection) == (False, False)
    # From the policy alone to latents: the untrained connector is replaced.
    later = [*SMALL, *more[:1], "model.editing=latents", *more[2:], f"model.folder={tmp_path / 'run' / 'model'}"]
    assert preflight.check(compose_settings(RECIPE, later)).model.editing == "latents"


REFUSED: list[tuple[list[str], str]] = [
    (["data.shares.edit=1"], r"data\.shares: the task edit has references, and .* generates from text only; set model"),
    ([], r"data\.shares: the task edit has references"),
    (["model.editing=pixels"], r"model\.editing=pixels: must be 'tokens' or 'latents'"),
    (["data.shares.edti=1"], r"data\.shares\.edti: there is no such key; did you mean 'edit'"),
    (["data.shares.edit=-1"], r"data\.shares\.edit=-1: must be greater"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "words"), REFUSED)
def test_what_is_refused_before_a_model_is_loaded(
    world: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    def loaded(*arguments: Any) -> Callable[..., Any]:
        raise AssertionError("a weight was loaded")

    for name in ("load_policy", "load_renderer", "load_image_tokenizer"):
        monkeypatch.setattr(ModelFolder, name, loaded)
    base = [*SMALL, f"data.files=[{world / 'rows.jsonl'}]", f"model.folder={text_model}"]
    with pytest.raises(UserError, match=words):
        preflight.check(compose_settings(RECIPE, [*base, *more]))


@pytest.mark.long
def test_two_processes_make_the_steps_of_one(tmp_path: Path, world: Path, text_model: Path) -> None:
    """Real processes over gloo: the second connector has no reference in some steps, and no process waits for it."""
    more = ["train.steps=4", "train.trainable=editing", "model.editing=latents", *MIX, f"model.folder={text_model}"]
    base = [*SMALL, *more, f"data.files=[{world / 'rows.jsonl'}]"]
    sft_launch.launch(RECIPE, [*base, f"run.folder={tmp_path / 'one'}", "train.gradient_accumulation=2"])
    two = [*base, f"run.folder={tmp_path / 'two'}", "run.processes=2"]
    command = [sys.executable, "-c", "from blip3o_rl.cli.sft import sft; import typer; typer.run(sft)"]
    subprocess.run([*command, RECIPE, *two], check=True)
    names = ("sft/loss", "sft/grad_norm", "sft/task")
    found = [
        [[line[name] for name in names] for line in RunFolder(tmp_path / run).read_metrics()] for run in ("one", "two")
    ]
    assert len({line[2] for line in found[0]}) > 1
    assert np.allclose(*found, rtol=1e-4), found
