"""What a config means, and that every mistake in it is one line naming the key."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from blip3o_rl.data.prompts import PromptRow, check_row
from blip3o_rl.errors import UserError
from blip3o_rl.scoring import registry
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric

FILE = """
import asyncio
import functools
import json
import numpy as np
from dataclasses import dataclass
from blip3o_rl.scoring.api import Sample, Score

offset = 3

def brightness(image):
    return image.mean() / 255

def by_names(prompt, metadata, image, sample, scale=1.0):
    assert sample.prompt == prompt and metadata == sample.metadata
    return scale * len(prompt)

def typed(image, side: int = 3, corner: tuple[int, int] = (0, 0), note: str = None, dtype: np.dtype = None):
    assert isinstance(corner, tuple) and note is None and dtype == "float32"
    return float(side + sum(corner))

def whole(s: Sample):
    return Score(float(len(s.id)), {"length": len(s.id)})

def batch(images, prompts):
    return [float(len(p)) for p in prompts]

def batch_samples(samples, bonus):
    return [bonus] * len(samples)

def verl_style(data_source, solution_str, ground_truth, extra_info=None):
    assert json.loads(ground_truth) == extra_info["metadata"]
    return {"score": float(solution_str.mean()), "length": len(extra_info["prompt"])}

async def judge(image, prompt):
    await asyncio.sleep(0)
    return 0.25

def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **keywords):
        return function(*args, **keywords)
    return wrapper

def with_a_loop_of_its_own(function):
    @functools.wraps(function)
    def wrapper(*args, **keywords):
        return asyncio.run(function(*args, **keywords))
    return wrapper

async def weighted(image, factor):
    await asyncio.sleep(0)
    return 0.5 * factor

class Callable:
    async def __call__(self, image):
        await asyncio.sleep(0)
        return 0.75

class Logged:
    @decorated
    async def score(self, samples):
        await asyncio.sleep(0)
        return [0.5 for _ in samples]

    @decorated
    async def plain(self, image):
        return 0.125

partial_judge = functools.partial(weighted, factor=0.5)
decorated_judge = decorated(judge)
own_loop_judge = with_a_loop_of_its_own(judge)
callable_judge = Callable()
bound_judge = Logged().plain
lambda_judge = lambda image: judge(image, "")

def script_judge(images):
    loop = asyncio.get_event_loop()
    return [loop.run_until_complete(judge(image, "")) for image in images]

def needs_target(metadata):
    return float(metadata["target"] == "x")

needs_target.required_metadata = ("target",)

def needs_one_field(metadata):
    return float(metadata["target"] == "x")

needs_one_field.required_metadata = "target"

@dataclass(frozen=True)
class Frozen:
    def score(self, samples):
        return [0.5 for _ in samples]

@dataclass(frozen=True)
class FrozenSetup:
    name, required_metadata, optional_metadata = "mine", (), ()
    def setup(self):
        pass
    def score(self, samples):
        return [0.5 for _ in samples]

class Numbered:
    required_metadata = 5
    def score(self, samples):
        return [0.5 for _ in samples]

def unknown_parameter(imgae):
    return 0.0

def nobody():
    return 0.0

class Tall:
    def __init__(self, least=0.5):
        self.least = least
    def score(self, samples):
        return [self.least for _ in samples]

class NoScore:
    pass

class Refuses:
    def __init__(self, level: int):
        raise RuntimeError("weights are missing")
    def score(self, samples):
        return []
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text(FILE)
    return path


def build(file, what: str, **more):
    return build_rubric({"mine": {"path": f"{file}:{what}", **more}})


def value(rubric, prompt: str = "a circle") -> float:
    result = rubric.score([Sample("id", prompt, np.full((4, 4, 3), 51, np.uint8), {"target": "x"})])[0]
    assert not result.failed, result.reason
    return result.value


@pytest.mark.parametrize(
    ("what", "keywords", "expected"),
    [
        ("brightness", {}, 0.2),
        ("by_names", {"scale": 0.5}, 4.0),
        ("whole", {}, 2.0),
        ("typed", {"side": "7", "corner": [1, 2], "note": None, "dtype": "float32"}, 10.0),
        ("batch", {}, 8.0),
        ("batch_samples", {"bonus": 7}, 7.0),
        ("verl_style", {}, 51.0),
        ("judge", {}, 0.25),
        ("lambda_judge", {}, 0.25),
        ("script_judge", {}, 0.25),
        ("needs_one_field", {}, 1.0),
        ("Tall", {}, 0.5),
        ("Tall", {"least": 0.75}, 0.75),
    ],
)
def test_every_way_to_write_a_reward(file, what, keywords, expected):
    assert value(build(file, what, **keywords)) == pytest.approx(expected)
    assert value(build(file, what, weight=3, **keywords)) == pytest.approx(3 * expected)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("judge", 0.25),
        ("partial_judge", 0.25),
        ("decorated_judge", 0.25),
        ("own_loop_judge", 0.25),
        ("callable_judge", 0.75),
        ("bound_judge", 0.125),
        ("Logged", 0.5),
    ],
)
def test_coroutines_of_every_form_are_recognized(file, what, expected):
    rubric = build(file, what)
    assert rubric.entries[0].is_async
    assert value(rubric) == expected
    assert not build(file, "brightness").entries[0].is_async


def test_relative_path(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert value(build_rubric({"mine": {"path": "my_reward.py:brightness"}})) == pytest.approx(0.2)


def test_two_files_of_one_name_do_not_mix(tmp_path):
    for folder, number in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text(f"def f(image):\n    return {number}\n")
    config = {folder: {"path": f"{tmp_path / folder / 'r.py'}:f"} for folder in ("a", "b")}
    result = build_rubric(config).score([Sample("id", "", np.zeros((4, 4, 3), np.uint8))])[0]
    assert result.components == {"a": 1.0, "b": 2.0}


def test_built_in_by_key_by_name_and_by_dotted_name():
    dotted = "blip3o_rl.rewards.geneval.reward:GenEvalReward"
    for config in ({"geneval": {}}, {"layout": {"name": "geneval", "mode": "strict"}}, {"layout": {"name": dotted}}):
        rubric = build_rubric(config)
        rubric.self_check()
        assert rubric.names == list(config)


def test_entry_points(monkeypatch):
    point = EntryPoint("plugged", "blip3o_rl.rewards.geneval.reward:GenEvalReward", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert build_rubric({"plugged": {"weight": 0.5}}).entries[0].settings.weight == 0.5


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ["reward.rewards", "no reward"]),
        (None, ["reward.rewards", "no reward"]),
        ({"genevl": {}}, ["reward.rewards.genevl", "did you mean 'geneval'", "known: "]),
        ({"geneval": 1.0}, ["reward.rewards.geneval=1.0", "not a mapping"]),
        ({"geneval": {"weight": "much"}}, ["reward.rewards.geneval.weight=much", "number"]),
        ({"geneval": {"weight": True}}, ["reward.rewards.geneval.weight"]),
        ({"geneval": {"weight": float("nan")}}, ["reward.rewards.geneval.weight"]),
        ({"geneval": {"on_error": "ignore"}}, ["reward.rewards.geneval.on_error", "skip_sample"]),
        ({"geneval": {"retries": -1}}, ["reward.rewards.geneval.retries"]),
        ({"geneval": {"timeout_s": 0}}, ["reward.rewards.geneval.timeout_s"]),
        ({"geneval": {"mod": "strict"}}, ["reward.rewards.geneval.mod", "did you mean 'mode'"]),
        ({"geneval": {"mode": "lenient"}}, ["reward.rewards.geneval", "mode", "partial"]),
        ({"geneval": {"mode": None}}, ["reward.rewards.geneval.mode=null", "must be a valid string"]),
        ({"geneval": {"nms": "all"}}, ["reward.rewards.geneval.nms=all", "must be a valid number"]),
        ({"geneval": {"detector": 5}}, ["reward.rewards.geneval.detector=5", "must be a valid string"]),
        ({"layout": {"weights": {"text": None}}}, ["reward.rewards.layout.weights.text=null", "a valid number"]),
        ({"layout": {"terms": 5}}, ["reward.rewards.layout.terms=5", "must be a valid list"]),
        ({"planogram": {"terms": "sequence"}}, ["reward.rewards.planogram.terms=sequence", "must be a valid list"]),
        ({"planogram": {"observer": "scenes"}}, ["reward.rewards.planogram.observer=scenes", "observer.<key>=<value>"]),
        ({"pickscore": {"batch_size": 0}}, ["reward.rewards.pickscore.batch_size=0", "greater than 0"]),
        ({"x": {"name": "no_such_pkg.mod:f"}}, ["reward.rewards.x.name", "no_such_pkg", "not installed"]),
        ({"x": {"name": "json:nothing"}}, ["reward.rewards.x.name", "json", "nothing"]),
        ({"x": {"path": "my_reward.py"}}, ["reward.rewards.x.path", "file.py:function"]),
        ({"x": {"path": "/no/such/file.py:f"}}, ["reward.rewards.x.path", "/no/such/file.py"]),
        ({"x": {"path": "a.py:f", "name": "geneval"}}, ["reward.rewards.x", "path and name"]),
        ({"geneval": {"held_out": True, "weight": 1}}, ["reward.rewards.geneval.weight", "never trained on"]),
        ({"geneval": {"held_out": True}}, ["reward.rewards", "nothing to train on"]),
        ({"geneval": {"only_if": {"ocr": 0.5}}}, ["reward.rewards.geneval.only_if.ocr", "no such reward"]),
        ({"geneval": {"service": {"port": 1}}}, ["reward.rewards.geneval.service.port", "replicas"]),
        ({"geneval": None}, ["reward.rewards", "geneval is null", "~reward.rewards.geneval", "weight=0"]),
        (
            {"geneval": {"service": {"url": "http://x"}, "mode": "strict"}},
            ["reward.rewards.geneval.mode", "rewards serve"],
        ),
        ({"genevl": {"service": {"replicas": 1}}}, ["reward.rewards.genevl", "did you mean 'geneval'"]),
    ],
)
def test_mistakes_in_the_config(config, words):
    with pytest.raises(UserError) as caught:
        build_rubric(config)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(words[0])
    for word in words[1:]:
        assert word in message


@pytest.mark.parametrize(
    ("what", "keywords", "words"),
    [
        ("brightnes", {}, ["mine.path", "did you mean 'brightness'"]),
        ("offset", {}, ["mine", "int is no reward"]),
        ("by_names", {"scael": 1}, ["mine.scael", "did you mean 'scale'"]),
        ("by_names", {"image": 1}, ["mine.image"]),
        ("typed", {"side": None}, ["mine.side=null", "must be a valid integer"]),
        ("typed", {"side": "wide"}, ["mine.side=wide", "must be a valid integer"]),
        ("batch_samples", {}, ["'bonus'", "mine.bonus"]),
        ("unknown_parameter", {}, ["'imgae'", "did you mean 'image'"]),
        ("nobody", {}, ["no parameter that takes the sample"]),
        ("NoScore", {}, ["no method score"]),
        ("Frozen", {}, ["Frozen has no name, and it cannot be set; write name = 'mine'"]),
        ("FrozenSetup", {}, ["cannot be set"]),
        ("Numbered", {}, ["required_metadata is 5; write the names of fields"]),
        ("Refuses", {}, ["mine.level", "missing"]),
        ("Refuses", {"level": 1}, ["weights are missing"]),
        ("Tall", {"leats": 1}, ["mine.leats", "did you mean 'least'"]),
    ],
)
def test_mistakes_in_the_users_file(file, what, keywords, words):
    with pytest.raises(UserError) as caught:
        build(file, what, **keywords)
    assert str(caught.value).startswith("reward.rewards.mine")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_syntax_error_and_import_error_name_file_and_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ndef f(image)\n    return 0\n")
    with pytest.raises(UserError, match=r"reward\.rewards\.mine\.path: .*broken\.py:2 .*syntax"):
        build(broken, "f")
    broken.write_text("import no_such_module_at_all\n")
    with pytest.raises(UserError, match="no_such_module_at_all"):
        build(broken, "f")


def test_where_a_reward_is_scored_stands_next_to_its_options(file, monkeypatch):
    config = {
        "near": {"path": f"{file}:Tall", "least": 0.75},
        "far": {"name": "geneval", "service": {"url": "http://127.0.0.1:9", "retries": 0}, "only_if": {"near": 0.5}},
        "own": {"path": f"{file}:NoSuchThing", "service": {"python": sys.executable, "replicas": 2}, "weight": 0.5},
    }
    rubric = build_rubric(config)
    near, far, own = rubric.entries
    assert far.is_async and far.reward.remote == "geneval" and far.settings.only_if == {"near": 0.5}
    assert rubric.weights == {"near": 1.0, "far": 1.0, "own": 0.5}
    assert not own.reward.available
    with pytest.raises(
        UserError, match=r"reward\.rewards\.far\.service: .*127\.0\.0\.1:9 gave no answer: All connection"
    ):
        rubric.self_check()


def test_missing_metadata_is_found_when_the_data_is_loaded(file):
    rubric = build(file, "needs_target")
    rubric.check_prompts([PromptRow("p", {"prompt": "p", "target": "x"}, "data.jsonl:1")])
    with pytest.raises(UserError, match=r"data\.jsonl:2: field 'target' is missing.*'mine'"):
        rubric.check_prompts([PromptRow("p", {"prompt": "p"}, "data.jsonl:2")])


def test_a_class_the_detector_does_not_know_is_found_when_the_data_is_loaded():
    row = {"prompt": "a photo of a dog", "tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    with pytest.raises(UserError, match=r"p\.jsonl:7: reward 'geneval'.*'dog'"):
        build_rubric({"geneval": {}}).check_prompts([check_row(row, "p.jsonl:7")])


def test_a_reward_file_imports_the_modules_next_to_it(tmp_path, monkeypatch):
    """Also those of the same name next to two reward files, and those that its functions import later."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = {}
    for name, level in (("a", 0.25), ("b", 0.75)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "neighbor_of_reward.py").write_text(f"LEVEL = {level}\n")
        (folder / f"late_{name}.py").write_text("BONUS = 1.0\n")
        (folder / "json.py").write_text("raise ImportError('this must not hide what is installed')\n")
        (folder / "reward.py").write_text(
            "import json\nimport neighbor_of_reward\n"
            f"def f(image):\n    from late_{name} import BONUS\n    return neighbor_of_reward.LEVEL + BONUS\n"
        )
        config[name] = {"path": f"{folder / 'reward.py'}:f"}
    rubric = build_rubric(config)
    (result,) = rubric.score([Sample("0", "p", np.zeros((4, 4, 3), np.uint8))])
    assert result.components == {"a": 1.25, "b": 1.75}


@pytest.mark.parametrize(
    "ending",
    [
        "import sys; sys.exit('set MY_KEY')",
        "import argparse; argparse.ArgumentParser().parse_args(['--x'])",
        "class SystemExitOfSomeLibrary(BaseException): pass\nraise SystemExitOfSomeLibrary",
    ],
)
def test_a_reward_file_that_ends_the_process_is_one_line(tmp_path, ending):
    (tmp_path / "ends.py").write_text(f"{ending}\ndef f(image):\n    return 0.5\n")
    with pytest.raises(UserError, match=r"^reward\.rewards\.mine\.path: .*ends\.py cannot be imported, SystemExit"):
        build_rubric({"mine": {"path": f"{tmp_path / 'ends.py'}:f"}})
