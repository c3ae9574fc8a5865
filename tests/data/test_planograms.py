"""Importing retailers' planograms: fictional files by the published column list, and the traps of the format."""

from __future__ import annotations

import itertools

import pytest

from blip3o_rl.cli.main import run
from blip3o_rl.data.planograms import import_plan
from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.planogram.reward import PlanogramReward
from blip3o_rl.scoring.rubric import Rubric

CLASSES = """upc,class,color,name
0500000000002,circle,red,red circle
0500000000019,square,blue,blue square
0500000000026,triangle,green,green triangle
"""


def record(kind, length, **columns):
    cells = [kind] + [""] * (length - 1)
    for place, value in columns.items():
        cells[int(place[1:])] = str(value)
    return ",".join(cells)


def product(upc, number, name, width="10", height="20", depth="5", **more):
    return record(
        "Product", 273, _1=upc, _2=number, _3=name, _5=width, _6=height, _7=depth, _33="1.99", _232="X", **more
    )


def fixture(y, kind=0, **more):
    return record("Fixture", 40, _1=kind, _4=0, _5=100, _6=y, **more)


def position(upc, x, wide=1, high=1, deep=1, number="", **more):
    return (
        record("Position", 166, _1=upc, _2=number, _4=x, _14=wide, _15=high, _16=deep, _29=0)
        if not more
        else record(
            "Position",
            166,
            **{"_1": upc, "_2": number, "_4": x, "_14": wide, "_15": high, "_16": deep, "_29": 0, **more},
        )
    )


A, B, C = "0500000000002", "0500000000019", "0500000000026"
HEAD = ["PROSPACE SCHEMATIC FILE   ", "; Version 2024.4.0", "; Codepage=1252", record("Project", 20, _1="Shop", _12=1)]
PRODUCTS = [product(A, "11", "Caf\u00e9 Rouge"), product(B, "12", "Blue\\, large"), product(C, "13", "Gr\u00fcn")]
PLAN = [
    record("Planogram", 262, _1="Drinks", _3=100), record("Segment", 20, _4=100),
    fixture(10), position(C, 0, 3, deep=4),
    fixture(60), position(B, 40), position(A, 0, 2),
]  # fmt: skip


def write(tmp_path, lines, name="plan.psa", classes=CLASSES, encoding="cp1252"):
    (tmp_path / name).write_bytes("\r\n".join(lines).encode(encoding))
    (tmp_path / "map.csv").write_text(classes)
    return tmp_path / name, tmp_path / "map.csv"


def test_a_psa_file_becomes_a_brief_that_can_be_judged(tmp_path):
    found = import_plan(*write(tmp_path, [*HEAD, *PRODUCTS, *PLAN]))
    (line,) = found.lines
    brief = line["planogram"]
    assert line["id"] == "Drinks" and found.read == 3 and brief["count_from"] == "bottom"
    assert (
        line["prompt"] == "a photo of shelves: two red circles, a blue square; three green triangles"
    )  # y grows upwards
    assert [[item["product"] for item in row] for row in brief["shelves"]] == [
        [C],
        [A, B],
    ]  # by x, not by the file's order
    assert brief["shelves"][0][0]["facings"] == [3, 1, 4]
    assert brief["products"][A] == {
        "class": "circle", "color": "red", "name": "red circle", "upc": A, "brand": "X",
        "size_mm": [100, 200], "price": "1.99",
    }  # fmt: skip
    assert [line.split(": ")[1] for line in found.report] == [
        "facings in depth are kept and not judged, an image shows none"
    ]
    assert PlanogramReward().check_metadata(line) == ""


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-8-sig"])
def test_encodings_escapes_and_quotation_marks(tmp_path, encoding):
    lines = [*HEAD, *PRODUCTS, *PLAN]
    lines[4] = lines[4].replace("Caf\u00e9 Rouge", '"Rouge, ""doux"""')
    assert import_plan(*write(tmp_path, lines, encoding=encoding)).read == 3


def test_inches_are_25_4_mm(tmp_path):
    head = [*HEAD[:3], record("Project", 20, _12=0)]
    brief = import_plan(*write(tmp_path, [*head, *PRODUCTS, *PLAN])).lines[0]["planogram"]
    assert brief["products"][A]["size_mm"] == [254, 508]


def test_appended_columns_and_foreign_records_change_nothing(tmp_path):
    expected = import_plan(*write(tmp_path, [*HEAD, *PRODUCTS, *PLAN])).lines
    longer = [
        line + "," * 60 if line.startswith(("Product", "Planogram", "Position")) else line
        for line in [*PRODUCTS, *PLAN]
    ]
    more = ["ProductCalc,1,2", "Drawing,x", *longer[:3], "Performance,1", *longer[3:], "Divider"]
    assert import_plan(*write(tmp_path, [*HEAD, *more])).lines == expected


def test_shelves_of_equal_height_in_two_segments_are_one_row(tmp_path):
    plan = [PLAN[0], fixture(10), position(A, 0), record("Segment", 20, _10=100), fixture(11), position(B, 100),
            fixture(60), position(C, 120), ]  # fmt: skip
    brief = import_plan(*write(tmp_path, [*HEAD, *PRODUCTS, *plan])).lines[0]["planogram"]
    assert [[item["product"] for item in row] for row in brief["shelves"]] == [[A, B], [C]]


def test_several_planograms_of_a_file_are_several_lines(tmp_path):
    found = import_plan(*write(tmp_path, [*HEAD, *PRODUCTS, *PLAN, *PLAN, record("Planogram", 262, _1="Empty")]))
    assert [line["id"] for line in found.lines] == ["Drinks", "Drinks 2"]
    named = [[record("Planogram", 262, _1=name), *PLAN[1:]] for name in ("B 3", "B", "B", "B")]
    found = import_plan(*write(tmp_path, [*HEAD, *PRODUCTS, *itertools.chain(*named)]))
    assert [line["id"] for line in found.lines] == ["B 3", "B", "B 2", "B 4"]


@pytest.mark.parametrize(
    ("change", "report"),
    [
        (lambda p: [*p[:3], position("0500000000099", 0), *p[3:]], "product 0500000000099 is not in"),
        (
            lambda p: [*p[:3], position("500000000002", 0), *p[3:]],
            "taken for 0500000000002, which differs by leading zeros",
        ),
        (lambda p: [*p, fixture(90, 10), position(A, 0)], "is on a fixture of type 10, no shelf; skipped"),
        (lambda p: [*p, fixture(90, 7), position(A, 0)], "is on a fixture of type 7, no shelf; skipped"),
        (lambda p: [*p[:-1], position(A, 0, 2, _13=1)], "is in trays or cases; each counts as a facing"),
    ],
)
def test_what_is_skipped_or_changed_is_reported_by_line(tmp_path, change, report):
    found = import_plan(*write(tmp_path, [*HEAD, *PRODUCTS, *change(PLAN)]))
    (line,) = [line for line in found.report if report in line]
    assert line.startswith(f"{tmp_path}/plan.psa:")


def test_swapped_upc_and_id_are_found(tmp_path):
    lines = [*HEAD, *PRODUCTS, PLAN[0], fixture(10), position("11", 0, number=A)]
    assert list(import_plan(*write(tmp_path, lines)).lines[0]["planogram"]["products"]) == [A]


@pytest.mark.parametrize(
    ("code", "size"),
    [(0, [100, 200]), (1, [200, 100]), (2, [50, 200]), (3, [200, 50]), (4, [100, 50]), (6, [100, 200]),
     (12, [100, 200]), (13, [200, 100])],
)  # fmt: skip
def test_orientations_turn_the_size(tmp_path, code, size):
    lines = [*HEAD, *PRODUCTS, PLAN[0], fixture(10), position(A, 0, _29=code)]
    found = import_plan(*write(tmp_path, lines))
    assert found.lines[0]["planogram"]["products"][A]["size_mm"] == size
    assert any("its size is turned, too" in line for line in found.report) == (size != [100, 200])


CSV = """UPC;Shelf Number;Position;Facings Wide;Facings High;Orientation;Width;Height;Price
0500000000002;2;10;1;;;6,5;12;1,99
0500000000019;2;9;2;2;side;6;10;
0500000000026;1;1;3;;front 90;6;10;gratis
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_export(tmp_path, end):
    plan, classes = write(tmp_path, CSV.rstrip().split("\n"), "plan.csv")
    plan.write_bytes(CSV.replace("\n", end).encode())
    found = import_plan(plan, classes, "top")
    brief = found.lines[0]["planogram"]
    assert brief["shelves"] == [
        [{"product": C, "facings": 3}],
        [{"product": B, "facings": [2, 2]}, {"product": A, "facings": 1}],
    ]
    assert brief["products"][A]["size_mm"] == [6.5, 12] and brief["products"][C]["size_mm"] == [10, 6]
    assert brief["products"][A]["price"] == "1,99" and "price" not in brief["products"][C]
    assert len([line for line in found.report if "plan.csv:4: price gratis" in line]) == 1
    assert import_plan(plan, classes, "bottom").lines[0]["prompt"].endswith("three green triangles")


def test_columns_that_are_not_read_are_reported(tmp_path):
    found = import_plan(*write(tmp_path, ["upc,shelf,position,Facing,Brand", f"{A},1,1,3,X"], "plan.csv"), "top")
    assert found.report == [f"{tmp_path}/plan.csv:1: not read: Facing; docs/prompts.md says what columns are called"]


def test_planograms_of_a_table_are_told_apart_and_bays_stand_next_to_each_other(tmp_path):
    rows = [f"{A},P,1,2,1", f"{B},P,1,1,2", f"{C},P,1,1,1", f"{A},Q,1,1,1"]
    found = import_plan(*write(tmp_path, ["upc,planogram name,shelf,bay,position", *rows], "plan.csv"), "top")
    assert [line["id"] for line in found.lines] == ["P", "Q"]
    assert [[item["product"] for item in row] for row in found.lines[0]["planogram"]["shelves"]] == [[C, B, A]]


def test_a_class_map_is_read_whatever_the_case_of_its_columns_and_like_the_plan(tmp_path):
    plan, classes = write(tmp_path, [*HEAD, *PRODUCTS, *PLAN])
    classes.write_bytes(f"UPC,Class,Color,Name\n{A},circle,red,Caf\u00e9\n".encode("cp1252"))
    product = import_plan(plan, classes).lines[0]["planogram"]["products"][A]
    assert product["name"] == "Caf\u00e9" and product["color"] == "red"
    json_map = tmp_path / "map.json"
    json_map.write_text('[["0500000000002", "circle"]]')
    with pytest.raises(UserError, match="map.json:1: is no object; write one with the fields upc, class, color, name"):
        import_plan(plan, json_map)


@pytest.mark.parametrize("name", ["plan.csv", "plan.psa"])
def test_a_workbook_is_refused_by_what_it_is(tmp_path, name):
    plan, classes = write(tmp_path, [], name)
    plan.write_bytes(b"PK\x03\x04\x14\0")
    with pytest.raises(UserError, match=f"{name}: is a zip archive or an Office document; save it as UTF-8 text"):
        import_plan(plan, classes, "top" if name == "plan.csv" else None)


def cut(number, cells):
    lines = [*HEAD, *PRODUCTS, *PLAN]
    lines[number] = ",".join(lines[number].split(",")[:cells])
    return lines


BAD_PSA = [
    ([], "plan.psa:1: is no Space Planning file"),
    (["x"], "plan.psa:1: is no Space Planning file"),
    (["<html>"], "plan.psa: is a web page; save it as UTF-8 text"),
    (HEAD, "plan.psa: has no Position on a shelf"),
    ([*HEAD, *PRODUCTS], "plan.psa: has no Position on a shelf"),
    ([*HEAD, *PRODUCTS, PLAN[0]], "plan.psa: has no Position on a shelf"),
    ([*HEAD, *PRODUCTS, PLAN[0], fixture(0, 10), position(A, 0)], "plan.psa: has no Position on a shelf"),
    ([*HEAD, *PRODUCTS, position(A, 0)], "plan.psa:8: Position stands before any Planogram and Fixture"),
    ([*HEAD, *PRODUCTS, PLAN[0], position(A, 0)], "plan.psa:9: Position stands before any Planogram and Fixture"),
    ([*HEAD, *PRODUCTS, PLAN[0], fixture(0), position("9", 0)], "plan.psa: planogram 'Drinks' has no product that"),
    ([*HEAD, *PRODUCTS, *PLAN[:3], position("", 0)], "plan.psa:11: Position has neither upc nor id; fill one in"),
    ([*HEAD, product(A, 1, "n", width=-5), *PLAN], "plan.psa:5: width is '-5'; a number is due from 0 on"),
    (cut(3, 5), "plan.psa:4: Project has 5 columns, measurement is number 12"),
    (cut(4, 6), "plan.psa:5: Product has 6 columns, height is number 6"),
    (cut(7, 1), "plan.psa:8: Planogram has 1 columns, name is number 1"),
    (cut(9, 5), "plan.psa:10: Fixture has 5 columns, y is number 6"),
    (cut(10, 14), "plan.psa:11: Position has 14 columns, wide is number 14"),
    (cut(10, 20), "plan.psa:11: Position has 20 columns, orientation is number 29"),
    (*[([*HEAD, *PRODUCTS, *PLAN[:3], position(A, 0, **{key: value}), *PLAN[4:]], f"plan.psa:11: {message}")
       for key, value, message in [
        ("wide", "x", "facings wide is 'x'; a number is due"),
        ("wide", 0, "facings are 0 wide and 1 high"),
        ("wide", -1, "facings are -1 wide"),
        ("wide", 1.5, "facings are 1.5 wide"),
        ("high", "two", "facings high is 'two'"),
        ("high", 0, "facings are 1 wide and 0 high"),
        ("deep", "?", "facings deep is '?'"),
        ("deep", "nan", "facings deep is 'nan'"),
        ("deep", 2.7, "facings are 1 wide and 1 high, 2.7 deep"),
        ("deep", -3, "facings are 1 wide and 1 high, -3 deep"),
    ]],),
    ([*HEAD, *PRODUCTS, *PLAN[:3], position(A, "left")], "plan.psa:11: x is 'left'; a number is due"),
    ([*HEAD, product(A, 1, "n", width="wide"), *PLAN], "plan.psa:5: width is 'wide'; a number is due"),
    ([*HEAD, product(A, 1, "n", depth="deep"), *PLAN], "plan.psa:5: depth is 'deep'; a number is due"),
    ([*HEAD, *PRODUCTS, PLAN[0], fixture("top"), position(A, 0)], "plan.psa:9: y is 'top'; a number is due"),
    ([*HEAD, *PRODUCTS, PLAN[0], fixture(1, "shelf"), position(A, 0)], "plan.psa:9: type is 'shelf'; a number is due"),
]  # fmt: skip
BAD_PSA = [case for entry in BAD_PSA for case in ([entry] if isinstance(entry[1], str) else entry)]
ROW = "0500000000002,1,1,2"
HEADER = "upc,shelf,position,facings"
BAD_CSV = [
    ("", "plan.csv:1: no column is the upc; call one upc or ean or gtin or productid"),
    ("shelf,position\n1,1", "plan.csv:1: no column is the upc"),
    ("upc,position\n1,1", "plan.csv:1: no column is the shelf"),
    ("upc,shelf\n1,1", "plan.csv:1: no column is the order; call one position"),
    (HEADER, "plan.csv: has no positions; export it again"),
    (f"{HEADER}\n0500000000002,1,,2", "plan.csv:2: position is empty; fill it in"),
    (f"{HEADER},POG\n{ROW},", "plan.csv:2: planogram is empty; fill it in"),
    (f"upc,EAN,shelf,position\n{ROW}", "plan.csv:1: 'upc' and 'EAN' both are the upc; remove one"),
    (f"{HEADER},Location ID\n{ROW},1", "plan.csv:1: 'position' and 'Location ID' both are the order; remove one"),
    (f'{HEADER}\n{ROW}\n2,1,2,"Big,1\n{ROW}', "plan.csv:3: is not CSV"),
    (f"{HEADER}\n0500000000002,1,1,2,1", "plan.csv:2: has 5 cells under 4 columns; quote the commas"),
    (f'{HEADER},width\n{ROW},"1,200"', "plan.csv:2: width is '1,200', which may be read in two ways"),
    (f"{HEADER},width\n{ROW},1_0", "plan.csv:2: width is '1_0'; a number is due"),
    (f"{HEADER},width,height\n{ROW},-5,2", "plan.csv:2: width is '-5'; a number is due from 0 on"),
    (f"{HEADER}\n9,1,1,1", "plan.csv: planogram 'plan' has no product that"),
    (f"{HEADER}\n,1,1,2", "plan.csv:2: upc is empty"),
    (f"{HEADER}\n{ROW}\n0500000000019,,1,2", "plan.csv:3: shelf is empty"),
    (f"{HEADER}\n0500000000002,top,1,2", "plan.csv:2: shelf is 'top'; a number is due"),
    (f"{HEADER}\n0500000000002,inf,1,2", "plan.csv:2: shelf is 'inf'; a number is due"),
    (f"{HEADER}\n0500000000002,1,first,2", "plan.csv:2: position is 'first'; a number is due"),
    (f"{HEADER}\n0500000000002,1,1,many", "plan.csv:2: facings wide is 'many'"),
    (f"{HEADER}\n0500000000002,1,1,0", "plan.csv:2: facings are 0 wide"),
    (f"{HEADER}\n0500000000002,1,1,2.5", "plan.csv:2: facings are 2.5 wide"),
    (f"{HEADER},facings high\n{ROW},-2", "plan.csv:2: facings are 2 wide and -2 high"),
    (f"{HEADER},width\n{ROW},12mm", "plan.csv:2: width is '12mm'; a number is due"),
    (f"{HEADER},height\n{ROW},?", "plan.csv:2: height is '?'; a number is due"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "message"), BAD_PSA)
def test_a_malformed_psa_file_is_one_line_with_its_place(tmp_path, lines, message):
    with pytest.raises(UserError) as caught:
        import_plan(*write(tmp_path, lines))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), BAD_CSV)
def test_a_malformed_csv_file_is_one_line_with_its_place(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        import_plan(*write(tmp_path, text.split("\n"), "plan.csv"), "top")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("product,class\n1,circle\n", "map.csv: has the columns product, class; one must be 'upc'"),
        ("upc,class,colour\n1,circle,red\n", "map.csv: has a column 'colour'; did you mean 'color'"),
        ("upc,class\n1,circle\n1,square\n", "map.csv:3: upc 1 stands in an earlier line, too; keep one"),
        ("upc,class\n1,circle\n,square\n", "map.csv:3: field 'upc' is missing"),
        ("upc,class,color\n0500000000002,,red\n", "map.csv:2: field 'class' is missing"),
        ("upc,color\n0500000000002,red\n", "map.csv:2: field 'class' is missing"),
    ],
)
def test_a_malformed_class_map_is_one_line_with_its_place(tmp_path, classes, message):
    with pytest.raises(UserError, match=message):
        import_plan(*write(tmp_path, [*HEAD, *PRODUCTS, *PLAN], classes=classes))


def test_where_shelf_1_is_and_missing_files(tmp_path):
    plan, classes = write(tmp_path, CSV.split("\n"), "plan.csv")
    with pytest.raises(UserError, match="plan.csv: say whether its shelf 1 is the top or the bottom one, --count-from"):
        import_plan(plan, classes)
    with pytest.raises(UserError, match="nothing.psa: there is no such file"):
        import_plan(tmp_path / "nothing.psa", classes)


def test_the_commands_import_and_draw(tmp_path, capsys):
    plan, classes = write(tmp_path, [*HEAD, *PRODUCTS, *PLAN])
    out = tmp_path / "prompts.jsonl"
    assert run(["prompts", "import", str(plan), "--classes", str(classes), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 planograms, 3 positions read" in printed and str(out) in printed
    Rubric.of(PlanogramReward()).check_prompts(read_prompts(out))
    assert run(["prompts", "preview", str(out), "-o", str(tmp_path / "images"), "--side", "128"]) == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 1
    out.write_text('{"prompt": "a", "layout": {"elements": [{"id": "a", "class": "text"}]}}\n')
    assert run(["prompts", "preview", str(out), "-o", str(tmp_path / "images")]) == 2
    assert "prompts.jsonl:1: layout.elements.0: text of 'a'" in capsys.readouterr().err
    out.write_text('{"prompt": "a"}\n')
    assert run(["prompts", "preview", str(out)]) == 2
    assert "prompts.jsonl:1: has neither a layout nor a planogram" in capsys.readouterr().err


def test_a_plan_that_no_detector_can_count_is_refused(tmp_path, capsys):
    plan, classes = write(tmp_path, [*HEAD, *PRODUCTS, PLAN[0], fixture(10), position(A, 0, 17)])
    assert run(["prompts", "import", str(plan), "--classes", str(classes), "-o", str(tmp_path / "p.jsonl")]) == 2
    assert "planogram 'Drinks': shelves: 17 facings of class circle" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "p.jsonl").exists()


def test_what_is_left_out_is_said_and_the_others_are_written(tmp_path, capsys):
    bad = [record("Planogram", 262, _1="Full"), fixture(10), position(A, 0, 17)]
    unknown = [record("Planogram", 262, _1="Other"), fixture(10), position("9", 0)]
    plan, classes = write(tmp_path, [*HEAD, *PRODUCTS, *PLAN, *bad, *unknown])
    out = tmp_path / "p.jsonl"
    assert run(["prompts", "import", str(plan), "--classes", str(classes), "-o", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "planogram 'Full': shelves: 17 facings of class circle" in printed
    assert "product 9 is not in" in printed and "planogram 'Other' has no product that" in printed
    assert "1 planograms, 4 positions read, 3 left out" in printed
    assert [row.id for row in read_prompts(out)] == ["Drinks"]


@pytest.mark.parametrize(
    ("words", "says"),
    [(["plan.psa", "--classes", "map.csv"], "leave out --count-from"), (["p.txt"], "--count-from is for a planogram")],
)
def test_where_shelf_1_is_is_said_of_a_table_only(tmp_path, monkeypatch, capsys, words, says):
    write(tmp_path, [*HEAD, *PRODUCTS, *PLAN])
    monkeypatch.chdir(tmp_path)
    assert run(["prompts", "import", *words, "--count-from", "top"]) == 2
    assert says in capsys.readouterr().err


def test_options_that_a_plan_has_no_use_for_are_refused(tmp_path, capsys):
    plan, classes = write(tmp_path, [*HEAD, *PRODUCTS, *PLAN])
    words = ["prompts", "import", str(plan), f"--classes={classes}", "--tag=shelf", "--split=train"]
    assert run(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--tag, --split and --classes: a planogram has no use for them" in said
