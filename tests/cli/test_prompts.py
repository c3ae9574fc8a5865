"""`prompts make`, `import` and `rewrite`: right and wrong input, each error one line."""

from __future__ import annotations

import json
import re

import datasets
import pytest
from editing import encoded, photo

from blip3o_rl.cli.main import run
from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.data.sources import SOURCES
from blip3o_rl.scoring.build import build_rubric


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_source_is_written_to_a_file_that_can_be_trained_on(home, capsys):
    assert run(["prompts", "make", "geneval", "-n", "34", "--seed", "7"]) == 0
    assert run(["prompts", "make", "geneval", "--held-out"]) == 0
    assert "553 prompts" in capsys.readouterr().out
    trained, held_out = (read_prompts(home / "outputs" / f"geneval-{side}.jsonl") for side in ("train", "held-out"))
    assert (len(trained), len(held_out), held_out[0].prompt) == (34, 553, "a photo of a bench")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["make", "genevel"], "prompts make genevel: there is no such source of prompts; did you mean 'geneval'"),
        (["make", "words", "--held-out", "-n", "57"], "--prompts 57: words has 56 held-out prompts"),
        (["import", "gone.jsonl"], "gone.jsonl: there is no such file, and no folder or owner/name of a data set"),
        (["import", "data/gone.jsonl"], "data/gone.jsonl: there is no such file, and no folder or owner/name"),
        (["make", "shapes", "-o", "."], "--out .: is a folder; give the name of a file in it, such as prompts.jsonl"),
        (["import", "p.txt", "-o", "empty"], "--out empty: is a folder; give the name of a file in it, such as empty/"),
        (["import", "p.txt", "-o", "p.txt/x.jsonl"], "p.txt is no folder that can be written; give another"),
        (["import-edits", "gone.jsonl", "-o", "empty"], "--out empty: is a folder"),
        (["rewrite", "p.txt", "--model", "m", "-o", "empty"], "--out empty: is a folder"),
        (["pairs", "edits", "--per-prompt", "2", "--font", "f"], "has no use for --per-prompt, --font; leave it out"),
        (["pairs", "p.txt", "--count", "1"], "prompts pairs p.txt: has no use for --count"),
        (["pairs", "posters", "--seed", "-1"], "--seed"),
        (["import", "plan.psa"], "prompts import plan.psa: a planogram needs --classes map.csv"),
        (["import", "p.txt", "--split", "train"], "prompts import p.txt: is a file, which has no --split"),
        (["import", "p.txt", "--reward", "ocr"], "p.txt: no prompt is left; fix the 1 lines above"),
        (["import", "empty"], "empty: cannot be opened as a data set"),
        (["rewrite", "p.txt", "--model", "m", "--url", "nowhere"], "url: is 'nowhere'; write it like http://"),
        (["rewrite", "p.txt", "--model", "m", "--instruction-file", "p.txt"], "p.txt: has no {prompt} in it"),
        (["rewrite", "p.txt", "--model", "m", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set; export it"),
        (["rewrite", "p.txt", "--model", "m", "-o", "p.txt"], "--out p.txt: is the file that is read"),
        (["rewrite", "gone.txt", "--model", "m"], "gone.txt: there is no such file"),
    ],
)
def test_bad_input_is_one_line(home, capsys, arguments, says):
    (home / "p.txt").write_text("a red circle\n")
    (home / "empty").mkdir()
    assert run(["prompts", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_flow_grpos_files_are_imported_and_what_is_wrong_is_said_line_by_line(home, capsys):
    include = [{"class": "circle", "count": 2}]
    good = {"tag": "counting", "include": include, "exclude": [], "prompt": "a photo of two circles"}
    bad = [{**good, "include": [{"class": "dog", "count": 1}]}, {"tag": "counting"}, {**good, "prompt": ""}]
    lines = [json.dumps(line) for line in (good, *bad)]
    (home / "train_metadata.jsonl").write_text("\n".join([lines[0], '{"prompt": "cut', *lines[1:], lines[0]]) + "\n")
    assert run(["prompts", "import", "train_metadata.jsonl", "--reward", "geneval", "-o", "p.jsonl"]) == 1
    printed = capsys.readouterr().out
    for number, says in ((2, "is not JSON"), (3, "'dog' is not known"), (4, "'prompt' is missing"), (5, "non-empty")):
        [line] = [line for line in printed.splitlines() if line.startswith(f"train_metadata.jsonl:{number}: ")]
        assert says in line
    assert "2 prompts, 4 left out" in printed and lines_of(home / "p.jsonl") == [good, good]

    (home / "train.txt").write_text('A sign that says "Slow"\nA sign that says Slow\n')
    assert run(["prompts", "import", "train.txt", "--reward", "ocr", "--reward", "ocr.mode=original"]) == 1
    assert "train.txt:2: reward 'ocr' cannot score this prompt: it names no text" in capsys.readouterr().out
    assert lines_of(home / "outputs" / "prompts.jsonl") == [{"prompt": 'A sign that says "Slow"'}]

    assert run(["prompts", "import", "train.txt", "--reward", "ocr", "--tag", "text", "-o", "t.jsonl"]) == 1
    (home / "both.jsonl").write_text((home / "p.jsonl").read_text() + (home / "t.jsonl").read_text())
    rewards = {"geneval": {"only_for": ["counting"], "detector": "scenes"}, "ocr": {"only_for": ["text"]}}
    build_rubric(rewards).check_prompts(read_prompts(home / "both.jsonl"))


def test_tables_are_imported_line_by_line(home, capsys):
    (home / "p.csv").write_text("Prompt,tag\na cup,colors\na cup, a fork,colors\n,colors\na fork,\n")
    assert run(["prompts", "import", "p.csv"]) == 1
    printed = capsys.readouterr().out
    assert "p.csv:3: has 3 cells under 2 columns" in printed and "p.csv:4: field 'prompt' is missing" in printed
    assert lines_of(home / "outputs" / "prompts.jsonl") == [{"prompt": "a cup", "tag": "colors"}, {"prompt": "a fork"}]


def test_data_sets_are_imported_from_their_folder(home, capsys):
    table = datasets.Dataset.from_dict({"Prompt": ["a cup", "a fork"], "level": [1, None], "image": [None, None]})
    table = table.cast_column("image", datasets.Image())
    table.to_parquet(str(home / "files" / "train.parquet"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(home / "saved"))
    assert run(["prompts", "import", "files", "-o", "a.jsonl"]) == 0
    assert "files: without the columns image, which hold no text" in capsys.readouterr().out
    assert lines_of(home / "a.jsonl") == [{"prompt": "a cup", "level": 1}, {"prompt": "a fork"}]
    assert run(["prompts", "import", "saved", "--split", "test", "-o", "b.jsonl"]) == 0
    assert lines_of(home / "b.jsonl") == [{"prompt": "a cup", "level": 1}]
    table.select([0]).save_to_disk(str(home / "one"))
    assert run(["prompts", "import", "one", "-o", "c.jsonl"]) == 0
    for arguments, says in (
        (["--split", "train"], "--split train: one was saved without splits; leave it out"),
        (["--subset", "en"], "--subset en: one was saved without subsets; leave it out"),
    ):
        assert run(["prompts", "import", "one", *arguments]) == 2
        assert says in capsys.readouterr().err
    for arguments, says in (
        ([], "saved: has the splits train, test; choose"),
        (["--split", "dev"], "--split dev: saved has"),
    ):
        assert run(["prompts", "import", "saved", *arguments]) == 2
        assert says in capsys.readouterr().err


def test_edits_can_be_read_back_wherever_they_are_written(home, capsys, endpoint):
    assert run(["prompts", "make", "edits", "-n", "2"]) == 0
    made = read_prompts(home / "outputs" / "edits-train.jsonl")
    assert len(made) == 2 and all(row.references for row in made)
    (home / "data").mkdir()
    (home / "data" / "a.png").write_bytes(encoded(photo(0)))
    line = {"prompt": "make it red", "references": ["a.png"]}
    (home / "data" / "e.jsonl").write_text(json.dumps(line) + "\n")
    assert run(["prompts", "import", "data/e.jsonl", "-o", "out/e.jsonl"]) == 0
    endpoint.reply = richer
    assert run(["prompts", "rewrite", "data/e.jsonl", "--url", endpoint.url, "--model", "m", "-o", "new/e.jsonl"]) == 0
    for file in ("out/e.jsonl", "new/e.jsonl"):
        assert lines_of(home / file)[0]["references"] == ["../data/a.png"]
        assert read_prompts(home / file)[0].references[0].source == str(home / "data" / "a.png")


def test_a_data_set_in_the_home_folder_is_found(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    datasets.Dataset.from_dict({"prompt": ["a cup"]}).to_parquet(str(home / "files" / "train.parquet"))
    assert run(["prompts", "import", "~/files", "-o", "a.jsonl"]) == 0


def test_the_images_of_a_data_set_of_edits_are_not_left_out(home, capsys):
    table = datasets.Dataset.from_dict({"prompt": ["a"], "input_image": [None]})
    table.cast_column("input_image", datasets.Image()).to_parquet(str(home / "files" / "train.parquet"))
    assert run(["prompts", "import", "files"]) == 2
    assert "files: column 'input_image' holds images; make a prompt file of it" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["eval"], ["prompts", "make"]])
def test_the_help_names_every_source(capsys, command):
    assert run([*command, "--help"]) == 0
    said = re.sub(r"[\s│]+", "", capsys.readouterr().out)
    assert [name for name in SOURCES if name not in said] == []


def question_of(request):
    return request["messages"][0]["content"]


def richer(request):
    return f"{question_of(request).split('<prompt>')[1].split('</prompt>')[0].strip()}, in soft light\n"


def test_prompts_are_rewritten_once_and_the_originals_are_kept(home, capsys, endpoint):
    given = [
        {"prompt": 'a sign that says "OPEN"', "text": ["OPEN"]},
        {"prompt": "a cup"},
        {"prompt": "a cup", "tag": "x"},
    ]
    (home / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in given))
    command = ["prompts", "rewrite", "p.jsonl", "--url", endpoint.url, "--model", "qwen"]
    endpoint.reply = lambda request: 'a sign with "SHUT"' if "OPEN" in question_of(request) else richer(request)
    assert run(command) == 1
    printed = capsys.readouterr().out
    assert 'p.jsonl:1: stays as it is: the answer quotes "SHUT", the prompt "OPEN"' in printed
    assert "2 of 3 prompts rewritten, 2 asked for" in printed
    new = home / "outputs" / "p-rewritten.jsonl"
    assert lines_of(new) == [
        {"prompt": 'a sign that says "OPEN"', "text": ["OPEN"]},
        {"prompt": "a cup, in soft light", "original_prompt": "a cup"},
        {"prompt": "a cup, in soft light", "tag": "x", "original_prompt": "a cup"},
    ]
    endpoint.reply, endpoint.requests = richer, []
    assert run(command) == 0 and len(endpoint.requests) == 1 and endpoint.requests[0]["model"] == "qwen"
    assert lines_of(new)[0] == {
        "prompt": 'a sign that says "OPEN", in soft light',
        "text": ["OPEN"],
        "original_prompt": 'a sign that says "OPEN"',
    }
    assert run(command) == 0 and len(endpoint.requests) == 1, "everything is in the cache"
    (home / "question.txt").write_text("shorter: <prompt>{prompt}</prompt>")
    assert run([*command, "--instruction-file", "question.txt"]) == 0 and len(endpoint.requests) == 3
    assert run([*command[:-1], "llama"]) == 0 and len(endpoint.requests) == 5, "another model is asked again"
    twice = ["prompts", "rewrite", str(new), *command[3:], "-o", "twice.jsonl"]
    assert run(twice) == 0 and lines_of(home / "twice.jsonl")[1]["original_prompt"] == "a cup"


def test_a_server_that_fails_ends_the_step_and_the_answers_so_far_are_kept(home, capsys, endpoint):
    (home / "p.txt").write_text("".join(f"prompt {number}\n" for number in range(8)))
    command = ["prompts", "rewrite", "p.txt", "--url", endpoint.url, "--model", "m", "--concurrency", "1"]
    endpoint.reply = lambda request: (503, {}, b"") if "prompt 5" in question_of(request) else richer(request)
    assert run(command) == 2
    error = capsys.readouterr().err
    assert "HTTP 503" in error and "start the server and give the same command again" in error
    assert not (home / "outputs" / "p-rewritten.jsonl").exists()
    endpoint.reply, endpoint.requests = richer, []
    assert run(command) == 0 and 1 <= len(endpoint.requests) <= 3
    assert len(lines_of(home / "outputs" / "p-rewritten.jsonl")) == 8
