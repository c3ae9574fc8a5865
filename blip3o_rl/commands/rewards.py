"""Verbs about rewards."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def list_rewards() -> None:
    """The built-in rewards and those of installed packages."""
    from blip3o_rl.reward.registry import BUILT_IN, ENTRY_POINT_GROUP, known_rewards

    rows = Table(box=None, pad_edge=False)
    for column in ("name", "where", "from"):
        rows.add_column(column, style="bold" if column == "name" else None, overflow="fold")
    for name, where in sorted(known_rewards().items()):
        rows.add_row(name, where, "built in" if name in BUILT_IN else f"entry point {ENTRY_POINT_GROUP}")
    Console().print(rows)
    print("your own: reward.rewards.mine.path=my_reward.py:function reward.rewards.mine.weight=1.0")
