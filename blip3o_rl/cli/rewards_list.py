"""`blip3o-rl rewards list`."""

from __future__ import annotations

from blip3o_rl.cli.output import print_table, table


def list_rewards() -> None:
    """Lists the built-in rewards and those of installed packages."""
    from blip3o_rl.scoring.registry import BUILT_IN, ENTRY_POINT_GROUP, known_rewards

    rows = table("name", "module:class", "from")
    for name, place in sorted(known_rewards().items()):
        rows.add_row(name, place, "built in" if name in BUILT_IN else f"entry point {ENTRY_POINT_GROUP}")
    print_table(rows)
    print("your own: reward.rewards.mine.path=my_reward.py:function reward.rewards.mine.weight=1.0")
