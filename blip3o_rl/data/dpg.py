"""DPG-Bench's table of questions (`dpg_bench.csv`, one row per question) to prompts of the reward `questions`.

A proposition's number counts within its item, and its dependencies are such numbers, 0 for none. The published script
leaves out the table's first row and items that refer to a missing proposition; here no row is left out, and such a
dependency alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blip3o_rl.data.text_files import Record, open_lines, read_records

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "question_natural_language")


def is_table(file: Path) -> bool:
    """Whether a file's header is that of DPG-Bench."""
    if file.suffix.lower() != ".csv":
        return False
    _, header = next(open_lines(file), (0, ""))
    return {name.strip().strip('"') for name in header.split(",")} >= set(COLUMNS)


def read_table(file: Path, problems: list[str]) -> list[Record]:
    """One record per item; `problems` gets a message for each row and each dependency that is left out."""
    items: dict[str, list[Record]] = {}
    for row in read_records(file, "text", problems=problems):
        missing = [name for name in COLUMNS if not str(row.value.get(name, "")).strip()]
        if missing:
            problems.append(f"{row.where}: has no {missing[0]}; fill it in")
        elif not str(row.value["proposition_id"]).strip().isdecimal():
            problems.append(f"{row.where}: proposition_id is {row.value['proposition_id']!r}; write a number")
        else:
            items.setdefault(str(row.value["item_id"]), []).append(row)
    return [Record(rows[0].where, _prompt(name, rows, problems)) for name, rows in items.items()]


def _prompt(name: str, rows: list[Record], problems: list[str]) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: int(row.value["proposition_id"]))
    places = {int(row.value["proposition_id"]): place for place, row in enumerate(rows)}
    questions: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        needs = []
        for text in str(row.value["dependency"]).split(","):
            number = int(text) if text.strip().isdecimal() else -1
            if places.get(number, place) < place:
                needs.append(places[number])
            elif number != 0:
                problems.append(f"{row.where}: depends on {text.strip()}, which is no earlier proposition of {name}")
        question = {"question": row.value["question_natural_language"], "needs": needs}
        if category := str(row.value.get("category_broad", "")).strip():
            question["category"] = category
        questions.append(question)
    return {"prompt": rows[0].value["text"], "id": name, "questions": questions}
