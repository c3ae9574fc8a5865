"""`blip3o-rl eval compare`: two models on one suite, or on several, which shows what a gain on one costs.

The results of a suite are paired image by image. A file says which suite it is of, so the files of two models can be
given as two globs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blip3o_rl.cli.output import PlainTable, number, print_table, table
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.report.evaluations import Comparison

EXAMPLE = "give two files, such as eval compare A.json B.json, or two for each of several suites"


def compare(files: Sequence[Path]) -> None:
    """Prints the results of two models next to each other, with intervals of 95 %, for each suite and for all.

    Raises:
        UserError: a file is no result, a suite has not two of them, or two must not be compared.
    """
    from blip3o_rl.report.evaluations import compare_files, read_result

    suites: dict[str, list[Path]] = {}
    for file in files:
        suites.setdefault(str(read_result(file).get("settings", {}).get("suite", "")), []).append(file)
    for suite, own in suites.items():
        if len(own) != 2:
            raise UserError(f"eval compare: {len(own)} results of {suite}; {EXAMPLE}")
    if not suites:
        raise UserError(f"eval compare: 0 results given; {EXAMPLE}")
    compared: dict[str, Comparison] = {}
    for suite, (first, second) in suites.items():
        found = compare_files(first, second)
        if found is not None and found.difference:
            raise UserError(
                f"eval compare: the results are not alike: {found.difference}; evaluate with equal settings"
            )
        if found is None or not found.images:
            raise UserError(f"eval compare {first} {second}: no image has a score in both; evaluate again")
        compared[suite] = found
    for suite, found in compared.items():
        rows = _table(suite if len(compared) > 1 else "")
        for name in found.rows:
            _add(rows, name, found, name)
        win, tie, loss = found.outcomes["overall"]
        rows.caption = f"of {len(found.images)} images the second is better in {win}, equal in {tie}, worse in {loss}"
        print_table(rows)
    if len(compared) > 1:
        rows = _table("all suites")
        for suite, found in compared.items():
            _add(rows, suite, found, "overall")
        print_table(rows)


def _table(title: str) -> PlainTable:
    return table(title, "first", "second", "difference", "95 % interval", "better", "equal", "worse")


def _add(rows: PlainTable, label: str, found: Comparison, part: str) -> None:
    before, after, gain = found.rows[part]
    outcome = map(str, found.outcomes[part])
    rows.add_row(label, number(before.mean), number(after.mean), f"{gain.mean:+.3f}", gain.ends, *outcome)
