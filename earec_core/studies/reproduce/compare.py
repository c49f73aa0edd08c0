"""What one factor of a table does over all levels of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from earec_core.metrics.statistics import versus


@dataclass(frozen=True)
class Effect:
    """A method over all weightings, or a weighting over all methods.

    Attributes:
        level: which.
        rows: over how many rows.
        ndcg: mean NDCG@10.
        versus: see `metrics.statistics.versus`; None for the reference's own level.
    """

    level: str
    rows: int
    ndcg: float
    versus: Mapping[str, float] | None


def main_effects(
    gains: Mapping[tuple[str, str], Float[np.ndarray, " users"]], axis: int, reference: str
) -> tuple[Effect, ...]:
    """What one factor does, the other averaged out: many rows' noise cancels, and there are few comparisons.

    Args:
        gains: by method and weighting, seeds averaged.
        axis: 0 for methods, 1 for weightings.
        reference: the level that the others are compared with.

    Returns:
        Every level, over those levels of the other factor at which all have a row; nothing where that are fewer
        than two of either, or the reference is none of them.
    """
    cells = {(key[axis], key[1 - axis]): gain for key, gain in gains.items()}
    levels = list(dict.fromkeys(level for level, _ in cells))
    across = [a for a in dict.fromkeys(a for _, a in cells) if all((level, a) in cells for level in levels)]
    if min(len(levels), len(across)) < 2 or reference not in levels:
        return ()
    means = {level: np.mean([cells[level, a] for a in across], axis=0) for level in levels}
    tests = versus(means, reference)
    return tuple(Effect(level, len(across), float(means[level].mean()), tests.get(level)) for level in levels)
