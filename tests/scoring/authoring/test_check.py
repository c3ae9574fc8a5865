"""The self-test must find what is wrong with a reward, and nothing where there is nothing wrong."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from editing import encoded, photo
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from blip3o_rl.config.reward import RewardEntry
from blip3o_rl.errors import UserError
from blip3o_rl.scoring import build, registry
from blip3o_rl.scoring.api import RewardError, Sample
from blip3o_rl.scoring.authoring.check import check
from blip3o_rl.scoring.authoring.image_folder import read_folder
from blip3o_rl.scoring.authoring.known_images import known_samples
from blip3o_rl.scoring.authoring.throughput import measure
from blip3o_rl.scoring.entry import RubricEntry
from blip3o_rl.scoring.rubric import Rubric


class Made:
    """A reward out of a function on samples."""

    required_metadata: tuple[str, ...] = ()

    def __init__(self, function, name: str = "made"):
        self.name = name
        self.score = function


def entry(function) -> RubricEntry:
    return RubricEntry("made", Made(function))


def brightness(samples):
    return [sample.image.mean() / 255 for sample in samples]


def relative(samples):
    mean = np.mean(brightness(samples))
    return [value - mean for value in brightness(samples)]


def darken(samples):
    values = brightness(samples)
    for sample in samples:
        sample.image //= 2
    return values


counter = itertools.count()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda batch: [float("nan")] * len(batch), "nan as the value (blank, noise, scene, lettering)"),
        (lambda batch: [0.5] * (len(batch) - 1), "3 scores for 4 samples"),
        (lambda batch: ["good"] * len(batch), "str as the value"),
        (lambda batch: 1 / 0, "raised ZeroDivisionError"),
        (lambda batch: [float("nan") if s.image.max() == 0 else 1.0 for s in batch], "nan as the value (blank)"),
        (lambda batch: [float(next(counter)) for _ in batch], "not deterministic"),
        (lambda batch: sorted(brightness(batch)), "wrong images"),
        (relative, "depends on the other images"),
        (darken, "writes into the image"),
    ],
)
def test_a_reward_that_misbehaves_is_found(function, words):
    problems = check(entry(function)).problems
    assert any(words in problem for problem in problems), problems


def test_a_good_reward_passes_and_its_values_are_shown():
    found = check(entry(brightness), side=64)
    assert found.problems == [] and found.remarks == []
    assert found.scores["blank"].value == 0 and 0.8 < found.scores["lettering"].value < 1
    assert found.range == (0, max(score.value for score in found.scores.values()))
    assert found.seconds > 0


def test_rounding_is_no_chance():
    shifts = itertools.cycle((0.0, 3e-6))
    assert check(entry(lambda batch: [value + next(shifts) for value in brightness(batch)])).problems == []


def test_equal_values_are_remarked():
    assert "no signal" in check(entry(lambda batch: [1.0] * len(batch))).remarks[0]


def test_the_synthetic_scene_satisfies_geneval():
    found = check(build.build_rubric({"geneval": {}}).entries[0], side=64)
    assert found.problems == []
    assert found.scores["scene"].value == 1 > found.scores["noise"].value


def test_metadata_come_from_the_scene_from_the_caller_or_from_the_reward():
    class Target:
        name = "target"
        required_metadata = ("target",)

        def score(self, samples):
            return [float(len(sample.metadata["target"])) for sample in samples]

    with pytest.raises(UserError, match=r"'target' cannot score.*field 'target' is missing.*--metadata") as caught:
        check(RubricEntry("target", Target()))
    assert "\n" not in str(caught.value)
    assert check(RubricEntry("target", Target()), {"target": "abc"}).range == (3, 3)
    Target.example_metadata = {"target": "ab", "prompt": 'a sign "OK"'}
    assert check(RubricEntry("target", Target())).range == (2, 2)
    assert {sample.prompt for sample in known_samples(RubricEntry("target", Target()))} == {'a sign "OK"'}


def test_throughput_counts_images_and_stops_in_time():
    found = measure(entry(brightness), images=10, batch=4, side=32)
    assert (found.images, found.batch, found.side) == (10, 4, 32) and found.images_per_s > 0
    slow = measure(entry(lambda batch: time.sleep(0.02) or brightness(batch)), images=50, batch=2, max_s=0.0)
    assert slow.images == 2 and slow.images_per_s < 100
    with pytest.raises(RewardError, match="nan"):
        measure(entry(lambda batch: [float("nan")] * len(batch)), images=2)


class Prepared:
    """A reward with a setup; what happens is written down."""

    name = "prepared"
    required_metadata: tuple[str, ...] = ()

    def __init__(self, broken: int = 0):
        self.broken = broken
        self.log: list[str] = []

    def setup(self):
        self.log.append("setup")
        time.sleep(0.05)
        if len(self.log) <= self.broken:
            raise OSError("no weights")

    def score(self, samples):
        self.log.append("score")
        return [1.0 for _ in samples]


def samples(n: int = 2) -> list[Sample]:
    return [Sample(f"s{i}", "p", np.zeros((4, 4, 3), np.uint8)) for i in range(n)]


def test_setup_runs_once_before_the_first_score_also_when_many_threads_begin():
    reward = Prepared()
    rubric = Rubric(
        [RubricEntry("a", reward, RewardEntry(concurrency=4)), RubricEntry("b", reward, RewardEntry(concurrency=4))]
    )
    rubric.self_check()
    threads = [threading.Thread(target=rubric.score, args=(samples(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reward.log[0] == "setup" and reward.log.count("setup") == 1 and reward.log.count("score") == 10


def test_setup_is_outside_of_the_time_limit(clock):
    class Slow(Prepared):
        def setup(self):
            clock.now += 60.0

    rubric = Rubric([RubricEntry("a", Slow(), RewardEntry(timeout_s=1.0, on_error="skip_sample"))])
    assert not clock.run_until_complete(rubric.score_async(samples(1)))[0].failed


def test_a_setup_that_fails_fails_the_samples_and_is_tried_again():
    reward = Prepared(broken=1)
    results = Rubric([RubricEntry("a", reward, RewardEntry(on_error="skip_sample"))]).score(samples())
    assert all(r.failed and "raised OSError in setup: no weights" in r.reason for r in results)
    assert reward.log == ["setup"]
    assert not Rubric([RubricEntry("a", reward)]).score(samples())[0].failed
    assert reward.log == ["setup", "setup", "score"]


def test_an_asynchronous_setup_is_refused_by_name():
    class Late(Prepared):
        async def setup(self):
            pass

    with pytest.raises(UserError, match=r"reward\.rewards\.late: setup is a coroutine function"):
        RubricEntry("late", Late())


FORMS = """
import asyncio

class Asynchronous:
    def __init__(self, bonus=0.0):
        self.bonus = bonus
    def setup(self):
        self.ready = 0.5
    async def score(self, samples):
        await asyncio.sleep(0)
        return [self.ready + self.bonus for _ in samples]

async def batched(images, prompts):
    return [float(len(prompt)) for prompt in prompts]

async def verl_style(data_source, solution_image, ground_truth, extra_info):
    return {"score": float(solution_image.mean())}

instance = Asynchronous(0.25)
"""


@pytest.mark.parametrize(
    ("what", "keywords", "expected"),
    [("Asynchronous", {"bonus": 0.25}, 0.75), ("batched", {}, 1.0), ("verl_style", {}, 0.0), ("instance", {}, 0.75)],
)
def test_asynchronous_rewards_of_every_form(tmp_path, what, keywords, expected):
    (tmp_path / "forms.py").write_text(FORMS)
    rubric = build.build_rubric({"mine": {"path": f"{tmp_path / 'forms.py'}:{what}", **keywords}})
    assert [result.value for result in rubric.score(samples())] == [expected, expected]


def test_a_module_on_the_path_and_an_entry_point_of_a_package(tmp_path, monkeypatch):
    (tmp_path / "plugged_rewards.py").write_text(FORMS)
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[blip3o_rl.rewards]\nplugged = plugged_rewards:Asynchronous\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.known_rewards()["plugged"] == "plugged_rewards:Asynchronous"
    config = {"plugged": {"bonus": 1}, "dotted": {"name": "plugged_rewards:batched"}}
    assert build.build_rubric(config).score(samples(1))[0].components == {"plugged": 1.5, "dotted": 1.0}


def save(file: Path, prompt: str | None = None) -> None:
    info = PngInfo()
    if prompt is not None:
        info.add_itxt("prompt", prompt)
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(file, format="PNG", pnginfo=info)


def test_prompts_come_from_the_png_or_from_a_file(tmp_path):
    save(tmp_path / "b.png", "a red círcle")
    save(tmp_path / "a.png", "a blue square")
    save(tmp_path / "grid.png")
    found, left_out = read_folder(tmp_path)
    assert [(p.file.name, p.row.prompt) for p in found] == [("a.png", "a blue square"), ("b.png", "a red círcle")]
    assert left_out == ["grid.png"]
    assert found[0].sample().image.shape == (8, 8, 3)
    lines = [{"prompt": "a red círcle", "tag": "colors"}, {"image": "grid.png", "prompt": "a grid"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found, left_out = read_folder(tmp_path, tmp_path / "p.jsonl")
    assert {p.file.name: p.row.metadata.get("tag") for p in found} == {"b.png": "colors", "grid.png": None}
    assert left_out == ["a.png"]


def test_bad_folders_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mute").mkdir()
    save(tmp_path / "mute" / "x.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    (tmp_path / "p.jsonl").write_text('{"image": "y.png", "prompt": "p"}')
    for folder, prompts, words in (
        ("absent", None, "no such folder"),
        ("empty", None, "has no images"),
        ("mute", None, "give --prompts"),
        ("mute", "p.jsonl", "has no such image"),
        ("broken", None, "not readable as an image"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read_folder(tmp_path / folder, prompts and tmp_path / prompts)
        assert "\n" not in str(caught.value)


def write_lines(file: Path, *lines: dict) -> Path:
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return file


def test_names_reach_sub_folders_however_they_are_written(tmp_path):
    folder = tmp_path / "images"
    (folder / "pics" / "deep").mkdir(parents=True)
    for name in ("pics/a.png", "b.png", "pics/deep/b.png", "e\u0301.png", "._b.png"):
        save(folder / name)
    save(tmp_path / "outside.png")
    names = ["pics/a.png", "./b.png", "pics\\deep\\b.png", "\u00e9.png", "../outside.png", "b.png"]
    prompts = write_lines(tmp_path / "p.jsonl", *({"image": name, "prompt": f"p{i}"} for i, name in enumerate(names)))
    found, left_out = read_folder(folder, prompts)
    assert sorted(image.row.prompt for image in found) == ["p0", "p1", "p2", "p3", "p4", "p5"]
    assert [image.name for image in found].count("b.png") == 2, "an image is scored for each line that names it"
    assert left_out == [] and len({image.sample().id for image in found}) == 5


def test_the_benchmarks_folder_layout(tmp_path):
    for number, prompt in enumerate(("a cat", "a dog")):
        samples = tmp_path / f"{number:05}" / "samples"
        samples.mkdir(parents=True)
        write_lines(samples.parent / "metadata.jsonl", {"prompt": prompt, "tag": "single_object", "include": []})
        for seed in range(2):
            save(samples / f"{seed:05}.png")
    save(tmp_path / "00000" / "grid.png")
    found, left_out = read_folder(tmp_path)
    assert [(image.name, image.row.prompt, image.row.metadata["tag"]) for image in found] == [
        (f"{number:05}/samples/{seed:05}.png", prompt, "single_object")
        for number, prompt in enumerate(("a cat", "a dog"))
        for seed in range(2)
    ]
    assert left_out == ["00000/grid.png"]


def test_a_carried_prompt_that_two_lines_have_is_ambiguous_if_they_differ(tmp_path):
    save(tmp_path / "a.png", "a cat")
    same, other = {"prompt": "a cat", "target": 1}, {"prompt": "a cat", "target": 2}
    found, _ = read_folder(tmp_path, write_lines(tmp_path / "p.jsonl", same, same))
    assert [image.row.metadata["target"] for image in found] == [1]
    with pytest.raises(UserError, match=r"p\.jsonl:2: has the same prompt as .*p\.jsonl:1 and other fields"):
        read_folder(tmp_path, write_lines(tmp_path / "p.jsonl", same, other))


def test_the_references_of_a_line_reach_the_reward(tmp_path):
    save(tmp_path / "out.png")
    (tmp_path / "before.png").write_bytes(encoded(photo(1)))
    prompts = write_lines(
        tmp_path / "p.jsonl", {"image": "out.png", "prompt": "make it red", "references": ["before.png"]}
    )
    (found,), _ = read_folder(tmp_path, prompts)
    assert np.array_equal(found.sample().references[0], photo(1))


def test_a_reward_for_edits_is_tried_on_a_copy_of_its_reference():
    def change(samples):
        return [float(np.abs(s.image.astype(int) - s.references[0]).mean()) for s in samples]

    edits = entry(change)
    edits.reward.required_metadata = ("references",)
    result = check(edits)
    assert not result.problems and result.scores["scene"].value == 0 < result.scores["noise"].value
