from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from blip3o_rl.cli.main import run
from blip3o_rl.data.synthetic import edits, wrong_edits
from blip3o_rl.sft.files import find_files
from blip3o_rl.sft.pairs import Fields, check_first, read_rows


def test_pairs_for_fine_tuning_show_the_briefs_with_fonts_and_pasted_products(tmp_path: Path, capsys) -> None:
    cutouts = tmp_path / "cutouts"
    cutouts.mkdir()
    Image.new("RGBA", (10, 20), (255, 0, 255, 255)).save(cutouts / "bottle.png")
    planogram = {"products": {"A": {"class": "bottle"}}, "shelves": [[{"product": "A", "facings": 2}]]}
    layout = {"elements": [{"id": "t", "class": "text", "text": "SALE", "region": "top left"}]}
    prompts = tmp_path / "briefs.jsonl"
    lines = [
        {"prompt": "two bottles", "planogram": planogram | {"count_from": "top"}},
        {"prompt": "a sale", "layout": layout},
    ]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "pairs"
    font = str(next(Path(matplotlib.get_data_path()).rglob("DejaVuSerif.ttf")))
    command = [
        "prompts",
        "pairs",
        str(prompts),
        "-o",
        str(out),
        "--side",
        "128",
        "--per-prompt",
        "2",
        "--cutouts",
        str(cutouts),
    ]
    assert run([*command, "--font", font]) == 0
    rows = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == ["two bottles"] * 2 + ["a sale"] * 2
    shelf, title = (np.asarray(Image.open(out / rows[number]["image"])) for number in (0, 2))
    assert (shelf == (255, 0, 255)).all(-1).sum() > 100 and (title < 60).all(-1).sum() > 50
    row = check_first(find_files(str(out / "pairs.jsonl")), Fields())
    assert row["caption"] == "two bottles" and not row["fault"]
    assert run([*command, "--font", str(prompts)]) == 2
    assert "not readable as a font" in capsys.readouterr().err
    (cutouts / "bottle.png").write_bytes(b"no image")
    assert run(command) == 2
    assert "bottle.png: not readable as an image" in capsys.readouterr().err


def test_pairs_of_built_in_sources(tmp_path: Path, capsys) -> None:
    options = ["--side", "64", "--count", "6", "--per-prompt", "1", "-o"]
    assert run(["prompts", "pairs", "posters", *options, str(tmp_path / "posters")]) == 0
    assert len((tmp_path / "posters" / "pairs.jsonl").read_text().splitlines()) == 6
    assert run(["prompts", "pairs", "edits", *options, str(tmp_path / "edits")]) == 0
    line = json.loads((tmp_path / "edits" / "pairs.jsonl").read_text().splitlines()[1])
    before, after = (np.asarray(Image.open(tmp_path / "edits" / line[f"{key}_image"])) for key in ("input", "output"))
    assert before.shape == after.shape == (64, 64, 3) and (before != after).any() and line["instruction"]
    edits = str(tmp_path / "edits" / "pairs.jsonl")
    assert [row["task"] for row in read_rows([(edits, edits)], Fields())] == ["edit"] * 5 + ["keep"]
    assert run(["prompts", "pairs", "words", "--wrong", "0.5", *options, str(tmp_path / "no")]) == 2
    assert "has no use for --wrong" in capsys.readouterr().err
    for source in ("shapes", "words"):
        assert run(["prompts", "pairs", source, *options, str(tmp_path / source)]) == 0
        index = str(tmp_path / source / "pairs.jsonl")
        rows = list(read_rows([(index, index)], Fields()))
        assert [row["task"] for row in rows] == ["text_to_image"] * 6 and not any(row["fault"] for row in rows)
    mixed = "shapes-and-words"
    for wrong, reason in (("poster", "did you mean 'posters'"), (mixed, "has neither a layout nor a planogram")):
        assert run(["prompts", "pairs", wrong, *options, str(tmp_path / "no")]) == 2
        assert reason in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()


def test_wrong_edits_copy_spoil_or_remake(tmp_path: Path) -> None:
    options = ["--side", "64", "--count", "300", "--wrong", "0.5", "-o", str(tmp_path)]
    assert run(["prompts", "pairs", "edits", *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    changing = [line for line in lines if not line["instruction"].startswith(edits.TEMPLATES["keep"])]
    copies = sum(line.get("task") == "keep" for line in changing) / len(changing)
    assert 0.13 < copies < 0.27  # 0.4 of a half
    rng = np.random.default_rng(0)
    edit = edits.sample(rng, "recolor", "supervised")
    found = {kind: [] for kind in ("removed", "recolored", "right", "new")}
    for _ in range(200):
        scene = wrong_edits.wrong(rng, edit)
        if scene == edit.before:
            continue
        same = [item for item in edit.after.objects if item in scene.objects]
        few = len(scene.objects) < len(edit.after.objects)
        kind = "removed" if few else "right" if scene == edit.after else "recolored" if same else "new"
        found[kind].append(scene)
    assert not found["right"] and all(len(found[kind]) > 15 for kind in ("removed", "recolored", "new"))
    looks = {(item.shape, item.color) for item in edit.after.objects}
    assert all({(item.shape, item.color) for item in scene.objects} == looks for scene in found["new"])
