"""Gates: a reward that counts only where others are good enough (`only_if: {geneval: 0.5}`).

An easy reward (looks, style) drowns a hard one (is it what was asked for?). GDPO (arXiv 2601.05242) therefore lets the
easy reward count only where the hard one is reached: r_k if r_j >= t, else 0. The gate looks at the other reward's
own, unweighted value. Where it is closed the reward is not even asked, and the sample gets `otherwise` (default 0). A
reward with negative values needs an `otherwise` at or below its worst value: else staying below the gate would pay.
A gate steers training, so it cannot hang on a held-out reward.
"""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence

from blip3o_rl.config.reward import KEY
from blip3o_rl.errors import UserError, did_you_mean
from blip3o_rl.scoring.api import Score
from blip3o_rl.scoring.entry import Outcome, RubricEntry


def order(entries: Sequence[RubricEntry]) -> list[RubricEntry]:
    """The rewards, each after its gates.

    Raises:
        UserError: a gate is no other reward of the run, or is held out, or two rewards wait for each other.
    """
    by_name = {entry.name: entry for entry in entries}
    for entry in entries:
        for gate in entry.settings.gates:
            key = f"{KEY}.{entry.name}.only_if.{gate}"
            others = [name for name in by_name if name != entry.name]
            if gate == entry.name:
                raise UserError(f"{key}: a reward cannot be its own gate; name another one")
            if gate not in by_name:
                hint = did_you_mean(gate, others)
                raise UserError(f"{key}: there is no such reward{hint}; this run has {', '.join(others) or 'no other'}")
            if by_name[gate].settings.held_out:
                raise UserError(f"{key}: '{gate}' is held out, and a gate would train on it; gate by another reward")
    try:
        names = graphlib.TopologicalSorter({e.name: e.settings.gates for e in entries}).static_order()
        return [by_name[name] for name in names]
    except graphlib.CycleError as error:
        circle = list(reversed(error.args[1]))
        raise UserError(
            f"{KEY}.{circle[0]}.only_if: the gates form a circle, {' -> '.join(circle)}; take one of them out"
        ) from error


def is_open(entry: RubricEntry, outcomes: Mapping[str, Outcome | None]) -> bool:
    """Whether all gates of `entry` are open for a sample; `outcomes` has None where a gate was itself not asked."""
    found = ((outcomes[gate], minimum) for gate, minimum in entry.settings.gates.items())
    return all(isinstance(outcome, Score) and outcome.value >= minimum for outcome, minimum in found)
