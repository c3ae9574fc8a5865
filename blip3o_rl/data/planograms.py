"""Planograms of retailers to prompt lines: Space Planning's `.psa` files and CSV exports.

A class map (CSV: upc, class, color, name) says what stands for a product, as no model can draw an article number.
Nothing is dropped silently: what is skipped or changed is a line of the report with file and line. Of `.psa`: columns
are found by their index, as versions only append some; y grows upwards, and shelves of equal y in neighboring
segments are one row; a UPC is text, with its leading zeros.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip3o_rl.data.synthetic import shelves
from blip3o_rl.data.text_files import decode, read_records
from blip3o_rl.errors import UserError

SAME_ROW_MM = 20.0
PSA: dict[str, dict[str, int]] = {
    "Project": {"measurement": 12},
    "Product": {"upc": 1, "id": 2, "name": 3, "width": 5, "height": 6, "depth": 7},
    "Planogram": {"name": 1},
    "Fixture": {"type": 1, "y": 6},
    "Position": {"upc": 1, "id": 2, "x": 4, "style": 13, "wide": 14, "high": 15, "deep": 16, "orientation": 29},
}
"""Columns that are needed, by record; column 0 is the record's name."""
PRICE, BRAND = 33, 232
SHELVES = {0: "shelf", 1: "chest", 2: "bin", 3: "polygonal shelf", 12: "gravity feed"}
"""Types of fixtures whose products stand in a row."""
FACES = ("front", "side", "top", "front", "side", "top")
"""Orientation // 2 -> the face that is seen (the last three: back, other side, base); an odd one is turned by 90."""
ALIASES = {
    "upc": "upc ean gtin productid", "shelf": "shelf shelfnumber row fixture", "name": "name description",
    "order": "position seq rankx horizontalid locationid", "wide": "facings facingswide hfacings",
    "high": "facingshigh vfacings", "deep": "facingsdeep dfacings", "orientation": "orientation", "x": "x",
    "width": "width", "height": "height", "depth": "depth", "price": "price", "brand": "brand",
}  # fmt: skip
"""Column of a CSV export -> how it is called, in lower case without blanks and underscores."""


@dataclass(frozen=True)
class Position:
    """Facings of a product next to each other; `shelf` and `order` are sorted by, sizes in mm."""

    where: str
    keys: tuple[str, ...]
    shelf: float
    order: float
    facings: tuple[int, int, int]
    orientation: str
    info: Mapping[str, Any]


@dataclass
class Imported:
    """Prompt lines, and a line of report for each thing that was skipped or changed."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    report: list[str] = field(default_factory=list)
    read: int = 0


def import_plan(plan: Path, classes: Path, count_from: str | None = None) -> Imported:
    """The planograms of a file as prompt lines.

    Args:
        plan: `.psa`, or a CSV export.
        classes: the class map.
        count_from: whether shelf 1 of a CSV export is at the top or the bottom; houses differ.

    Raises:
        UserError: naming file, line and field.
    """
    known = {str(record.value["upc"]).strip(): record.value for record in read_records(classes, "upc")}
    for record in read_records(classes, "upc"):
        if not record.value.get("class"):
            raise UserError(f"{record.where}: field 'class' is missing; write what stands for the product")
    result = Imported()
    near = 0.0
    if plan.suffix.lower() == ".psa":
        plans, count_from, near = _read_psa(plan, result.report), "bottom", SAME_ROW_MM
    elif count_from is None:
        raise UserError(f"{plan}: say whether its shelf 1 is the top or the bottom one, --count-from top or bottom")
    else:
        plans = {plan.stem: list(_read_csv(plan))}
    for name, positions in plans.items():
        brief = _brief(positions, near, known, count_from, str(classes), result)
        if not brief["products"]:
            raise UserError(f"{plan}: planogram '{name}' has no product that {classes} knows; add some to the map")
        line = {"id": name, "tag": "planogram", "prompt": shelves.prompt(brief), "planogram": brief}
        result.lines.append(line)
    if any(position.facings[2] > 1 for positions in plans.values() for position in positions):
        result.report.append(f"{plan}: facings in depth are kept and not judged, an image shows none")
    return result


def _brief(
    positions: Sequence[Position],
    near: float,
    known: Mapping[str, Any],
    count_from: str,
    classes: str,
    result: Imported,
) -> dict[str, Any]:
    products: dict[str, Any] = {}
    rows: dict[float, list[Any]] = {}
    levels: dict[float, float] = {}
    for shelf in sorted({position.shelf for position in positions}):
        levels[shelf] = next((level for level in levels.values() if shelf - level <= near), shelf)
    short = {key.lstrip("0"): key for key in known}
    for position in sorted(positions, key=lambda position: (levels[position.shelf], position.order)):
        upc = position.keys[0]
        found = next((key for key in position.keys if key in known), None)
        if found is None and (found := short.get(upc.lstrip("0"))):
            result.report.append(
                f"{position.where}: product {upc} is taken for {found}, which differs by leading zeros"
            )
        if found is None:
            result.report.append(f"{position.where}: product {upc} is not in {classes}; skipped")
            continue
        result.read += 1
        wide, high, deep = position.facings
        facings = [wide, high, deep] if deep > 1 else [wide, high] if high > 1 else wide
        rows.setdefault(levels[position.shelf], []).append({"product": found, "facings": facings})
        size = _size(position, result.report)
        asked = {key: known[found].get(key) for key in ("class", "color", "name")} | {"upc": found}
        asked |= {"brand": position.info.get("brand"), "size_mm": size, "price": position.info.get("price")}
        if asked["price"] and not re.fullmatch(r"\d+[.,]\d\d", asked["price"]):
            result.report.append(f"{position.where}: price {asked['price']} is no number with two decimals; left out")
            asked["price"] = None
        products.setdefault(found, {key: value for key, value in asked.items() if value})
    return {"count_from": count_from, "products": products, "shelves": list(rows.values())}


def _size(position: Position, report: list[str]) -> list[float] | None:
    """Width and height of what is seen of a product that may be turned, mm."""
    width, height, depth = (position.info.get(side) for side in ("width", "height", "depth"))
    text = position.orientation.lower()
    code = int(text) if text.isdigit() and int(text) < 90 else None
    face = FACES[code // 2 % 6] if code is not None else next((f for f in ("side", "top") if f in text), "front")
    turned = code % 2 == 1 if code is not None else "90" in text or "270" in text
    if code is None and text and not re.fullmatch(r"(front|side|top|back)?\s*(0|90|180|270)?", text):
        report.append(f"{position.where}: orientation {position.orientation} is not known; taken for front")
    seen = {"front": (width, height), "side": (depth, height), "top": (width, depth)}[face]
    if face != "front" or turned:
        report.append(f"{position.where}: stands {face}{', turned by 90' if turned else ''}; its size is turned, too")
    return [round(side, 2) for side in (seen[::-1] if turned else seen) if side] if all(seen) else None


def _text(path: Path) -> str:
    """The text of a file in UTF-8, or else in windows-1252."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; fix the path")
    data = path.read_bytes()
    try:
        return decode(data, str(path))
    except UserError:
        if b"\0" in data:
            raise
        return io.TextIOWrapper(io.BytesIO(data), "cp1252", errors="replace").read()


def _number(text: str, where: str, name: str) -> float:
    try:
        return float(text.replace(",", ".") or 0)
    except ValueError as error:
        raise UserError(f"{where}: {name} is '{text}'; a number is due, fix it") from error


def _facings(cells: Mapping[str, str], where: str) -> tuple[int, int, int]:
    wide, high, deep = (_number(cells.get(name) or "1", where, f"facings {name}") for name in ("wide", "high", "deep"))
    if not all(value >= 1 and value == int(value) for value in (wide, high, max(deep, 1))):
        raise UserError(f"{where}: facings are {wide:g} wide and {high:g} high; whole numbers from 1 are due, fix them")
    return int(wide), int(high), max(int(deep), 1)


def _read_psa(path: Path, report: list[str]) -> dict[str, list[Position]]:
    lines = _text(path).split("\n")
    if not lines[0].startswith("PROSPACE SCHEMATIC FILE"):
        raise UserError(f"{path}:1: is no Space Planning file (PROSPACE SCHEMATIC FILE); give a .psa or a .csv")
    products: dict[str, dict[str, Any]] = {}
    plans: dict[str, list[Position]] = {}
    shelf: tuple[int, float] | None = None
    unit = 25.4
    for number, line in enumerate(lines[1:], start=2):
        where, cells = f"{path}:{number}", _cells(line)
        if cells[0] not in PSA:
            continue
        record = _record(cells, where)
        if cells[0] == "Project":
            unit = 25.4 if record["measurement"].strip() in ("", "0") else 10.0
        elif cells[0] == "Product":
            sides = {side: _number(record[side], where, side) * unit for side in ("width", "height", "depth")}
            more = {
                "price": cells[PRICE] if len(cells) > PRICE else "",
                "brand": cells[BRAND] if len(cells) > BRAND else "",
            }
            for key in filter(None, (record["upc"], record["id"])):
                products.setdefault(key, {"name": record["name"], **sides, **more})
        elif cells[0] == "Planogram":
            name, shelf = record["name"] or f"planogram {len(plans) + 1}", None
            plans[name if name not in plans else f"{name} {len(plans) + 1}"] = current = []
        elif cells[0] == "Fixture":
            kind, y = int(_number(record["type"], where, "type")), _number(record["y"], where, "y") * unit
            shelf = (kind, y)
        elif not plans or shelf is None:
            raise UserError(
                f"{where}: Position stands before any Planogram and Fixture; the file is cut, export it again"
            )
        elif shelf[0] not in SHELVES:
            report.append(f"{where}: product {record['upc']} is on a fixture of type {shelf[0]}, no shelf; skipped")
        else:
            if record["style"].strip() not in ("", "0"):
                report.append(f"{where}: product {record['upc']} is in trays or cases; each counts as a facing")
            keys = tuple(filter(None, (record["upc"], record["id"])))
            info: Mapping[str, Any] = next((products[key] for key in keys if key in products), {})
            order = _number(record["x"], where, "x")
            current.append(
                Position(where, keys, shelf[1], order, _facings(record, where), record["orientation"].strip(), info)
            )
    if not any(plans.values()):
        raise UserError(f"{path}: has no Position on a shelf; export it again")
    return {name: positions for name, positions in plans.items() if positions}


def _cells(line: str) -> list[str]:
    """The cells of a record: commas between them, backslashes before commas inside them; or quotation marks."""
    found = re.findall(r'(?:^|(?<=,))(?:"((?:[^"]|"")*)"|((?:\\.|[^\\,])*))(?:,|$)', line)
    escapes = {"n": " ", "r": " ", "t": " "}
    plain = [re.sub(r"\\(.)", lambda m: escapes.get(m[1], m[1]), bare) for _, bare in found]
    return [(quoted.replace('""', '"') or bare).strip() for (quoted, _), bare in zip(found, plain, strict=True)] or [""]


def _record(cells: Sequence[str], where: str) -> dict[str, str]:
    columns = PSA[cells[0]]
    for name, index in columns.items():
        if index >= len(cells):
            raise UserError(
                f"{where}: {cells[0]} has {len(cells)} columns, and {name} is number {index}; the line is cut"
            )
    return {name: cells[index] for name, index in columns.items()}


def _read_csv(path: Path) -> Iterator[Position]:
    text = _text(path)
    delimiter = max(",;\t", key=text.split("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [re.sub(r"[\s_]+", "", name.lower()) for name in next(reader, [])]
    columns = {
        name: next((n for n, title in enumerate(header) if title in names.split()), None)
        for name, names in ALIASES.items()
    }
    for name in ("upc", "shelf"):
        if columns[name] is None:
            raise UserError(f"{path}:1: no column is the {name}; call one {' or '.join(ALIASES[name].split())}")
    if columns["order"] is None and columns["x"] is None:
        raise UserError(f"{path}:1: no column is the order in a shelf; call one position or x")
    for row in reader:
        where = f"{path}:{reader.line_num}"
        cells = {name: row[n].strip() for name, n in columns.items() if n is not None and n < len(row)}
        if not any(cells.values()):
            continue
        for name in ("upc", "shelf"):
            if not cells.get(name):
                raise UserError(f"{where}: {name} is empty; fill it in")
        info: dict[str, Any] = {name: cells.get(name) or None for name in ("price", "brand")}
        info |= {side: _number(cells[side], where, side) for side in ("width", "height", "depth") if cells.get(side)}
        order = _number(cells.get("order") or cells.get("x") or "", where, "position")
        shelf = _number(cells["shelf"], where, "shelf")
        yield Position(where, (cells["upc"],), shelf, order, _facings(cells, where), cells.get("orientation", ""), info)
