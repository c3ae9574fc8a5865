"""DPG-Bench's table: one prompt per item, with its questions and what they depend on."""

from __future__ import annotations

import json

from blip3o_rl.cli.main import run

TABLE = """\
item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
p0,"a red ball, on grass",,1,0,entity,whole,entity - whole (ball),Is there a ball?
p0,"a red ball, on grass",,2,1,attribute,color,"attribute - color (ball, red)",Is the ball red?
p0,"a red ball, on grass",,3,"1,2",relation,spatial,"relation - spatial (ball, grass, on)",Is the ball on grass?
p1,a cup,,1,0,entity,whole,entity - whole (cup),Is there a cup?
p1,a cup,,2,7,attribute,color,attribute - color (cup),Is the cup blue?
p1,a cup,,x,0,entity,whole,entity - whole (cup),Is it a cup?
p1,a cup,,3,0,entity,whole,entity - whole (cup),
"""


def test_the_table_is_imported_and_what_does_not_fit_is_said(tmp_path, capsys):
    file, out = tmp_path / "dpg_bench.csv", tmp_path / "dpg.jsonl"
    file.write_text(TABLE)
    assert (
        run(["prompts", "import", str(file), "-o", str(out), "--reward", "questions", "--reward", "questions.model=m"])
        == 1
    )
    printed = capsys.readouterr().out
    assert "dpg_bench.csv:6: depends on 7, which is no earlier proposition of p1" in printed
    assert "dpg_bench.csv:7: proposition_id is 'x'" in printed
    assert "dpg_bench.csv:8: has no question_natural_language" in printed
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first == {
        "prompt": "a red ball, on grass",
        "id": "p0",
        "questions": [
            {"question": "Is there a ball?", "needs": [], "category": "entity"},
            {"question": "Is the ball red?", "needs": [0], "category": "attribute"},
            {"question": "Is the ball on grass?", "needs": [0, 1], "category": "relation"},
        ],
    }
    assert [question["needs"] for question in second["questions"]] == [[], []]
