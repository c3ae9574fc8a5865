"""How well two ways to render agree on the rewards of the same rollouts.

Training compares the samples of a group, so what has to agree is their ranking: Kendall's tau-b (Kendall 1945), which
knows ties, of each group, and its mean over the groups. A group in which only one of the two sees a difference has 0:
there is a signal where there should be none, or none where there should be one. One without any difference in both
says nothing and is left out. The correlation over all images is reported as well; it is mostly between prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau


@dataclass(frozen=True)
class Agreement:
    """Of two columns of rewards.

    Attributes:
        ranking: mean of Kendall's tau-b within groups, -1 to 1; NaN where no group says anything.
        ranking_error: its standard error over the groups; NaN for fewer than two.
        correlation: Pearson's, over all images; NaN where one column is constant.
        groups: that say something.
    """

    ranking: float
    ranking_error: float
    correlation: float
    groups: int


def agreement(full: Sequence[float], cheap: Sequence[float], groups: Sequence[str]) -> Agreement:
    """How well `cheap` agrees with `full`; an image whose reward failed (NaN) in one of them is left out.

    Args:
        full, cheap: rewards of the same images.
        groups: the group of each image.
    """
    a, b = np.asarray(full, float), np.asarray(cheap, float)
    known = ~(np.isnan(a) | np.isnan(b))
    names = np.asarray(groups)
    found = [_tau(a[rows], b[rows]) for name in dict.fromkeys(groups) if (rows := known & (names == name)).any()]
    taus = np.array([tau for tau in found if tau is not None])
    a, b = a[known], b[known]
    varied = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return Agreement(
        ranking=float(taus.mean()) if len(taus) else float("nan"),
        ranking_error=float(taus.std(ddof=1) / len(taus) ** 0.5) if len(taus) > 1 else float("nan"),
        correlation=float(np.corrcoef(a, b)[0, 1]) if varied else float("nan"),
        groups=len(taus),
    )


def _tau(a: np.ndarray, b: np.ndarray) -> float | None:
    """tau-b of a group; None where neither has a difference."""
    differs = np.ptp(a) > 0, np.ptp(b) > 0
    if not any(differs):
        return None
    return float(kendalltau(a, b).statistic) if all(differs) else 0.0
