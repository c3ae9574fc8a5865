"""ImgEdit and GEdit: their files as prompts, their numbers from a judge's answers, an evaluation of the mini model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip3o_rl.cli.main import run
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json, read_lines
from blip3o_rl.rewards.edit.benchmarks import GEditJudge, ImgEditJudge
from blip3o_rl.scoring.api import RewardError, Sample

WIDE, SMALL = (
    np.random.default_rng(n).integers(0, 256, shape, np.uint8) for n, shape in enumerate(((24, 40, 3), (64, 64, 3)))
)
LINES = "Brief reasoning: the hat is still there.\n\nPrompt Compliance: 1\nVisual Naturalness: 5\nDetail Integrity: 5"


def scored(reward, *samples):
    return asyncio.run(reward.score(samples))


def edit(tag="remove"):
    return Sample("0", "remove the hat", SMALL, {"tag": tag}, references=(WIDE,))


def parts(request):
    *images, text = request["messages"][0]["content"]
    shown = [Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2]))) for image in images]
    return [image.size for image in shown], text["text"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"remove": "Rate it. Instruction: <edit_prompt>", "add": "Rate: <edit_prompt>"}))
    return file


def test_imgedit_asks_the_benchmarks_question_and_gives_the_published_and_the_capped_number(
    endpoint, questions
) -> None:
    endpoint.reply = lambda request: LINES
    judge = ImgEditJudge(model="m", url=endpoint.url, questions=questions)
    (score,) = scored(judge, edit())
    sizes, text = parts(endpoint.requests[0])
    assert sizes == [(40, 24), (64, 64)] and text == "Rate it. Instruction: remove the hat"
    assert "response_format" not in endpoint.requests[0]
    assert score.components["points"] == pytest.approx(11 / 3)  # what the benchmark's own script makes of a copy
    assert score.components["raw"] == 1 and score.value == 0
    (missing,) = scored(judge, edit("style"))
    assert "none for edits of type 'style', only remove, add" in str(missing)


@pytest.mark.parametrize("answer", ["good", LINES + "\nMore: 3", LINES.replace(": 1", ": 6")])
def test_an_answer_without_three_scores_is_an_error(questions, answer) -> None:
    with pytest.raises(RewardError):
        ImgEditJudge(model="m", questions=questions).read(answer)


def test_imgedit_without_questions_asks_ours(endpoint) -> None:
    endpoint.reply = lambda request: json.dumps({"compliance": 4, "preservation": 5, "quality": 3})
    (score,) = scored(ImgEditJudge(model="m", url=endpoint.url), edit())
    assert "<instruction>\nremove the hat\n" in parts(endpoint.requests[0])[1]
    assert score.components["points"] == 4 and score.components["raw"] == pytest.approx(11 / 3)
    assert score.value == pytest.approx((11 / 3 - 1) / 4)


@pytest.mark.parametrize("text", ["[1]", '{"remove": "no place"}', "{"])
def test_questions_in_another_form_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(UserError, match=r"^questions: "):
        ImgEditJudge(model="m", questions=tmp_path / "q.json")


@pytest.mark.parametrize("viescore", [False, True])
def test_gedit_is_the_root_of_semantics_times_quality(endpoint, viescore: bool) -> None:
    def reply(request):
        names, numbers = (
            (("success", "restraint"), (8, 4))
            if len(parts(request)[0]) == 2
            else (("naturalness", "cleanness"), (9, 10))
        )
        if viescore:
            return json.dumps({"score": numbers, "reasoning": "x"})
        return json.dumps({"reason": "x", **dict(zip(names, numbers, strict=True))})

    endpoint.reply = reply
    (score,) = scored(GEditJudge(model="m", url=endpoint.url), edit())
    assert score.components == {"semantics": 4, "quality": 9, "points": 6}
    assert score.value == pytest.approx(0.6) and score.reason == "x"
    assert sorted(parts(request)[0] for request in endpoint.requests) == [[(40, 24)], [(40, 24), (40, 24)]]


@pytest.mark.parametrize("answer", ['{"score": [1, 2, 3]}', '{"score": [1, 11]}', '{"success": 3}'])
def test_a_gedit_verdict_that_is_none_is_an_error(endpoint, answer) -> None:
    endpoint.reply = lambda request: answer
    (score,) = scored(GEditJudge(model="m", url=endpoint.url), edit())
    assert isinstance(score, RewardError)


def png(image: np.ndarray = WIDE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_imgedits_file_becomes_prompts_with_the_type_as_tag(tmp_path: Path, capsys) -> None:
    (tmp_path / "originals" / "animal").mkdir(parents=True)
    (tmp_path / "originals" / "animal" / "1.png").write_bytes(png())
    items = {"1082": {"id": "animal/1.png", "prompt": "Remove the hat.", "edit_type": "remove"}}
    items["7"] = {**items["1082"], "id": "animal/gone.png"}
    (tmp_path / "basic_edit.json").write_text(json.dumps(items))
    command = ["prompts", "import-edits", str(tmp_path / "basic_edit.json"), "-o", str(tmp_path / "out.jsonl")]
    assert run([*command, "--images", str(tmp_path / "originals")]) == 0
    (row,) = read_lines(tmp_path / "out.jsonl")
    assert (row["prompt"], row["tag"], row["id"]) == ("Remove the hat.", "remove", "1082")
    assert (tmp_path / row["references"][0]).resolve() == tmp_path / "originals" / "animal" / "1.png"
    assert "basic_edit.json: 7" in capsys.readouterr().out
    assert run([*command, "--images", str(tmp_path / "gone")]) == 2
    assert "--images" in capsys.readouterr().err
    (tmp_path / "basic_edit.json").write_text('{"a": {"prompt": "x"}}')
    assert run(command) == 2
    assert "no object of items with id, prompt, edit_type" in capsys.readouterr().err


def test_gedits_tables_become_prompts_of_both_languages(tmp_path: Path) -> None:
    image = {"bytes": png(), "path": None}
    rows = [
        {"task_type": "color_alter", "key": "k", "instruction": "make it red", "instruction_language": language,
         "input_image": {"bytes": png(SMALL), "path": None}, "input_image_raw": image, "Intersection_exist": True}
        for language in ("en", "cn")
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "g.parquet")
    assert run(["prompts", "import-edits", str(tmp_path / "g.parquet"), "-o", str(tmp_path / "out.jsonl")]) == 0
    found = read_lines(tmp_path / "out.jsonl")
    assert [(row["tag"], row["id"]) for row in found] == [("color_alter", "k-en"), ("color_alter (cn)", "k-cn")]
    assert Image.open(tmp_path / found[0]["references"][0]).size == (40, 24), "the image before it was resized"


def test_eval_gives_the_benchmarks_table(tmp_path: Path, endpoint, capsys) -> None:
    (tmp_path / "a.png").write_bytes(png())
    tags = ("remove", "remove", "style", "style (cn)", "style")
    lines = [{"prompt": f"edit {n}", "references": ["a.png"], "tag": tag} for n, tag in enumerate(tags)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    marks = {"edit 0": 2, "edit 1": 4, "edit 2": 5, "edit 3": 1}

    def reply(request):
        if "edit 4" in parts(request)[1]:
            return "I would rather not."
        number = next(number for prompt, number in marks.items() if prompt in parts(request)[1])
        return json.dumps({"compliance": number, "preservation": number, "quality": number})

    endpoint.reply = reply
    out = tmp_path / "r.json"
    words = ["--model", "mini", "--images", "1", "--steps", "1", "--backend", "transformers", "--out", str(out)]
    judge = [f"imgedit.url={endpoint.url}", "imgedit.model=m"]
    assert run(["eval", "imgedit", *judge, "--file", str(tmp_path / "p.jsonl"), *words]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["remove", "3.00", "3.00", "2"] in printed and ["style", "5.00", "5.00", "1"] in printed
    assert ["overall", "4.00", "4.00", "3"] in printed  # the mean of the types, English alone
    assert ["overall", "(cn)", "1.00", "1.00", "1"] in printed
    assert read_json(out)["components"]["imgedit/points"] == 3 and read_json(out)["failed"] == 1
    nobody = ["gedit.url=http://127.0.0.1:1/v1", "gedit.model=m", "gedit.request_retries=0"]
    assert (
        run(["eval", "gedit", *nobody, "--file", str(tmp_path / "p.jsonl"), *words[:-1], str(tmp_path / "g.json")]) == 2
    )
    assert "no answer from http://127.0.0.1:1/v1" in capsys.readouterr().err
    assert not (tmp_path / "g.json").exists() and not (tmp_path / "g").exists()
    assert run(["eval", "gedit", *words]) == 2
    assert "import-edits" in capsys.readouterr().err
