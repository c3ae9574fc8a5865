"""Planograms of retailers to prompt lines: Space Planning's `.psa` files and CSV exports.

A class map (CSV: upc, class, color, name) says what stands for a product, as no model can draw an article number. A
line of either file that is not UTF-8 is windows-1252. Nothing is dropped silently: what is skipped, changed or not read
is a line of the report with file and line; a planogram of which nothing is left is left out. Of `.psa`: columns
are found by their index, as versions only append some; y grows upwards, and shelves of equal y in neighboring
segments are one row; a UPC is text, with its leading zeros.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip3o_rl.data.synthetic import shelves
from blip3o_rl.data.text_files import csv_rows, read_records, read_text
from blip3o_rl.errors import UserError, did_you_mean

SAME_ROW_MM = 20.0
PSA: dict[str, dict[str, int]] = {
    "Project": {"measurement": 12},
    "Product": {"upc": 1, "id": 2, "name": 3, "width": 5, "height": 6, "depth": 7},
    "Planogram": {"name": 1},
    "Fixture": {"type": 1, "y": 6},
    "Position": {"upc": 1, "id": 2, "order": 4, "style": 13, "wide": 14, "high": 15, "deep": 16, "orientation": 29},
}
"""Columns that are needed, by record; column 0 is the record's name."""
OPTIONAL = {"price": 33, "brand": 232}
SHELVES = (0, 1, 2, 3, 12)
"""Types of fixtures whose products stand in a row: shelf, chest, bin, polygonal shelf, gravity feed."""
FACES = ("front", "side", "top")
"""Orientation // 2 % 3 -> the face that is seen; an odd orientation is turned by 90 degrees."""
ALIASES = {
    "upc": "upc ean gtin productid", "shelf": "shelf shelfnumber row fixture",
    "planogram": "planogram planogramname pog pogname", "bay": "bay baynumber segment segmentnumber",
    "order": "position seq rankx horizontalid locationid", "wide": "facings facingswide hfacings",
    "high": "facingshigh vfacings", "deep": "facingsdeep dfacings", "orientation": "orientation", "x": "x",
    "width": "width", "height": "height", "depth": "depth", "price": "price", "brand": "brand",
}  # fmt: skip
"""Column of a CSV export -> how it is called, in lower case without blanks and underscores. Bays stand next to each
other, from the lowest number on, and their shelves of one number are one row."""
CLASS_COLUMNS = ("upc", "class", "color", "name")
ENCODING = "cp1252"
NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
AMBIGUOUS = re.compile(r"[+-]?[1-9]\d*,\d{3}", re.ASCII)
"""Thousands, or a fraction of three digits."""


@dataclass(frozen=True)
class Position:
    """Facings of a product next to each other, as cells of text; `unit` is that of the product's size in mm."""

    where: str
    cells: Mapping[str, str]
    unit: float = 1.0

    def number(self, name: str, label: str = "", least: float = -math.inf) -> float:
        """The number in a cell, 0 if it is empty."""
        text = self.cells.get(name, "") or "0"
        if AMBIGUOUS.fullmatch(text):
            remedy = "write it without a separator of thousands, and a fraction with a point"
            raise UserError(f"{self.where}: {label or name} is '{text}', which may be read in two ways; {remedy}")
        value = float(text.replace(",", ".")) if NUMBER.fullmatch(text) else math.nan
        if not (math.isfinite(value) and value >= least):
            bound = "" if least == -math.inf else f" from {least:g} on"
            raise UserError(f"{self.where}: {label or name} is '{text}'; a number is due{bound}, fix it")
        return value

    @property
    def facings(self) -> list[int]:
        """Wide, high, deep; as many as it takes."""
        wide, high, deep = (
            self.number(name, f"facings {name}") if self.cells.get(name) else 1.0 for name in ("wide", "high", "deep")
        )
        if min(wide, high, deep) < 1 or wide % 1 or high % 1 or deep % 1:
            given = f"{wide:g} wide and {high:g} high, {deep:g} deep"
            raise UserError(f"{self.where}: facings are {given}; whole numbers from 1 are due")
        return [int(wide), int(high), int(deep)][: 3 if deep > 1 else 2 if high > 1 else 1]


@dataclass
class Imported:
    """Prompt lines, and a line of report for each thing that was skipped, changed or not read.

    Attributes:
        read: positions.
        left_out: positions and planograms.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    report: list[str] = field(default_factory=list)
    read: int = 0
    left_out: int = 0

    def leave_out(self, text: str) -> None:
        self.report.append(text)
        self.left_out += 1


def import_plan(plan: Path, classes: Path, count_from: str | None = None) -> Imported:
    """The planograms of a file as prompt lines.

    Args:
        plan: `.psa`, or a CSV export.
        classes: the class map.
        count_from: whether shelf 1 of a CSV export is at the top or the bottom; houses differ.

    Raises:
        UserError: naming file, line and field.
    """
    known = _read_classes(classes)
    result = Imported()
    near = 0.0
    if plan.suffix.lower() == ".psa":
        if count_from is not None:
            raise UserError(f"{plan}: says by itself where its shelves are; leave out --count-from")
        plans, count_from, near = _read_psa(plan, result), "bottom", SAME_ROW_MM
    elif count_from is None:
        raise UserError(f"{plan}: say whether its shelf 1 is the top or the bottom one, --count-from top or bottom")
    else:
        plans = _read_csv(plan, result)
    for name, positions in plans.items():
        brief = {"count_from": count_from, **_brief(positions, near, known, str(classes), result)}
        if brief["products"]:
            result.lines.append({"id": name, "tag": "planogram", "prompt": shelves.prompt(brief), "planogram": brief})
        else:
            result.leave_out(f"{plan}: planogram '{name}' has no product that {classes} knows; add some to the map")
    if not result.lines:
        raise UserError(result.report[-1] if plans else f"{plan}: has no positions; export it again")
    if any(len(position.facings) > 2 for positions in plans.values() for position in positions):
        result.report.append(f"{plan}: facings in depth are kept and not judged, an image shows none")
    return result


def _read_classes(path: Path) -> dict[str, dict[str, Any]]:
    """UPC -> what stands for the product."""
    known: dict[str, dict[str, Any]] = {}
    for record in read_records(path, "upc", fallback=ENCODING):
        if not isinstance(record.value, dict):
            raise UserError(f"{record.where}: is no object; write one with the fields {', '.join(CLASS_COLUMNS)}")
        value = {str(name).strip().lower(): entry for name, entry in record.value.items()}
        if unknown := next((name for name in value if name not in CLASS_COLUMNS), ""):
            hint = did_you_mean(unknown, CLASS_COLUMNS)
            raise UserError(f"{path}: has a column '{unknown}'{hint}; known: {', '.join(CLASS_COLUMNS)}")
        for name, what in (("upc", "the product's number"), ("class", "what stands for the product")):
            if not value.get(name):
                raise UserError(f"{record.where}: field '{name}' is missing; write {what}")
        upc = str(value["upc"]).strip()
        if upc in known:
            raise UserError(f"{record.where}: upc {upc} stands in an earlier line, too; keep one")
        known[upc] = value
    return known


def _brief(
    positions: Sequence[Position], near: float, known: Mapping[str, Any], classes: str, result: Imported
) -> dict[str, Any]:
    products: dict[str, Any] = {}
    rows: dict[float, list[Any]] = {}
    levels: dict[float, float] = {}
    for height in sorted(position.number("shelf") for position in positions):
        levels[height] = next((level for level in levels.values() if height - level <= near), height)
    short = {key.lstrip("0"): key for key in known}
    ordered = sorted(
        positions, key=lambda p: (levels[p.number("shelf")], p.number("bay"), p.number("order", "position"))
    )
    for position in ordered:
        where, keys = position.where, [key for key in map(position.cells.get, ("upc", "id")) if key]
        found = next((key for key in keys if key in known), None)
        if found is None and (found := short.get(keys[0].lstrip("0"))):
            result.report.append(f"{where}: product {keys[0]} is taken for {found}, which differs by leading zeros")
        if found is None:
            result.leave_out(f"{where}: product {keys[0]} is not in {classes}; skipped")
            continue
        result.read += 1
        facings = position.facings
        item = {"product": found, "facings": facings if len(facings) > 1 else facings[0]}
        rows.setdefault(levels[position.number("shelf")], []).append(item)
        price = position.cells.get("price")
        if price and not re.fullmatch(r"\d+[.,]\d\d", price):
            result.report.append(f"{where}: price {price} is no number with two decimals; left out")
            price = None
        asked = {key: known[found].get(key) for key in ("class", "color", "name")} | {"upc": found, "price": price}
        asked |= {"brand": position.cells.get("brand"), "size_mm": _size(position, result.report)}
        products.setdefault(found, {key: value for key, value in asked.items() if value})
    return {"products": products, "shelves": list(rows.values())}


def _size(position: Position, report: list[str]) -> list[float] | None:
    """Width and height of what is seen of a product that may be turned, mm."""
    text = position.cells.get("orientation", "").lower()
    if re.fullmatch(r"\d\d?", text) and text != "90":
        face, turned = FACES[int(text) // 2 % 3], int(text) % 2 == 1
    else:
        face, turned = next((f for f in FACES if f in text), "front"), bool(re.search("90|270", text))
        if not re.fullmatch(r"(front|side|top|back)?\s*(0|90|180|270)?", text):
            report.append(f"{position.where}: orientation {text} is not known; taken for {face}")
    if face != "front" or turned:
        report.append(f"{position.where}: stands {face}{', turned by 90' if turned else ''}; its size is turned, too")
    sides = {"front": ("width", "height"), "side": ("depth", "height"), "top": ("width", "depth")}[face]
    size = [round(position.number(side, least=0) * position.unit, 2) for side in (sides[::-1] if turned else sides)]
    return size if all(size) else None


def _read_psa(path: Path, result: Imported) -> dict[str, list[Position]]:
    lines = read_text(path, ENCODING).split("\n")
    if not lines[0].startswith("PROSPACE SCHEMATIC FILE"):
        raise UserError(f"{path}:1: is no Space Planning file (PROSPACE SCHEMATIC FILE); give a .psa or a .csv")
    products: dict[str, Mapping[str, str]] = {}
    plans: dict[str, list[Position]] = {}
    kind: int | None = None
    unit, height, name = 25.4, 0.0, ""
    for number, line in enumerate(lines[1:], start=2):
        cells = _cells(line)
        if cells[0] not in PSA:
            continue
        row = Position(f"{path}:{number}", _record(cells, f"{path}:{number}"))
        upc = row.cells.get("upc", "")
        if cells[0] == "Project":
            unit = 10.0 if row.number("measurement") else 25.4
        elif cells[0] == "Product":
            _ = [row.number(side, least=0) for side in ("width", "height", "depth")]
            products |= {key: row.cells for key in (row.cells["id"], upc) if key and key not in products}
        elif cells[0] == "Planogram":
            name, kind = _free(row.cells["name"] or f"planogram {len(plans) + 1}", plans), None
            plans[name] = []
        elif cells[0] == "Fixture":
            kind, height = int(row.number("type")), row.number("y") * unit
        elif not plans or kind is None:
            raise UserError(f"{row.where}: Position stands before any Planogram and Fixture; export the file again")
        elif kind not in SHELVES:
            result.leave_out(f"{row.where}: product {upc} is on a fixture of type {kind}, no shelf; skipped")
        elif not upc and not row.cells["id"]:
            raise UserError(f"{row.where}: Position has neither upc nor id; fill one in")
        else:
            if row.number("style"):
                result.report.append(f"{row.where}: product {upc} is in trays or cases; each counts as a facing")
            row.number("order", "x")
            product = products.get(upc) or products.get(row.cells["id"]) or {}
            plans[name].append(Position(row.where, {**product, **row.cells, "shelf": str(height)}, unit))
    if not any(plans.values()):
        raise UserError(f"{path}: has no Position on a shelf; export it again")
    return {name: positions for name, positions in plans.items() if positions}


def _free(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name} {number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)


def _cells(line: str) -> list[str]:
    """The cells of a record: commas between them, backslashes before commas inside them; or quotation marks."""
    found = re.findall(r'(?:^|(?<=,))(?:"((?:[^"]|"")*)"|((?:\\.|[^\\,])*))(?:,|$)', line)
    return [(quoted.replace('""', '"') or re.sub(r"\\(.)", r"\1", bare)).strip() for quoted, bare in found] or [""]


def _record(cells: Sequence[str], where: str) -> dict[str, str]:
    for name, index in PSA[cells[0]].items():
        if index >= len(cells):
            raise UserError(f"{where}: {cells[0]} has {len(cells)} columns, {name} is number {index}; the line is cut")
    more = OPTIONAL if cells[0] == "Product" else {}
    return {name: cells[index] for name, index in {**PSA[cells[0]], **more}.items() if index < len(cells)}


def _read_csv(path: Path, result: Imported) -> dict[str, list[Position]]:
    rows = csv_rows(read_text(path, ENCODING), str(path))
    top, header = next(rows, (f"{path}:1", []))
    columns = _columns(header, top)
    if unread := [title.strip() for n, title in enumerate(header) if n not in columns.values() and title.strip()]:
        result.report.append(f"{top}: not read: {', '.join(unread)}; docs/prompts.md says what columns are called")
    columns.setdefault("order", columns.get("x", -1))
    for name in ("upc", "shelf", "order"):
        if columns.get(name, -1) < 0:
            raise UserError(f"{top}: no column is the {name}; call one {' or '.join(ALIASES[name].split())}")
    plans: dict[str, list[Position]] = {}
    for where, row in rows:
        if any(cell.strip() for cell in row[len(header) :]):
            raise UserError(f"{where}: has {len(row)} cells under {len(header)} columns; quote the commas")
        cells = {name: row[n].strip() for name, n in columns.items() if n < len(row)}
        if any(cells.values()):
            for name in ("upc", "shelf", "order", "planogram", "bay"):
                if name in columns and not cells.get(name):
                    raise UserError(f"{where}: {'position' if name == 'order' else name} is empty; fill it in")
            plans.setdefault(cells.get("planogram", path.stem), []).append(Position(where, cells))
    return plans


def _columns(header: Sequence[str], where: str) -> dict[str, int]:
    """Column -> where it stands in the header."""
    found: dict[str, int] = {}
    for n, title in enumerate(header):
        called = re.sub(r"[\s_]+", "", title.lower())
        for name in (name for name, names in ALIASES.items() if called in names.split()):
            if name in found:
                raise UserError(f"{where}: '{header[found[name]]}' and '{title}' both are the {name}; remove one")
            found[name] = n
    return found
