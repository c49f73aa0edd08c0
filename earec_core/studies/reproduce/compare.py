"""What can be said of the difference of two rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Z = 1.959964
"""Two-sided 5% of the normal distribution."""


def difference(a: Float[np.ndarray, " users"], b: Float[np.ndarray, " users"]) -> dict[str, float]:
    """Mean of a - b over users, its standard error, and the p of a two-sided z-test (paired)."""
    each = a - b
    error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else 0.0
    z = float(each.mean()) / error if error else 0.0
    return {"difference": float(each.mean()), "se": error, "p": math.erfc(abs(z) / math.sqrt(2))}


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p's that keep the chance of any false finding among all of them."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def versus(gains: Mapping[str, Float[np.ndarray, " users"]], reference: str) -> dict[str, dict[str, float]]:
    """`difference` of each to the reference, with `p_holm` over them all."""
    found = {name: difference(gain, gains[reference]) for name, gain in gains.items() if name != reference}
    corrected = holm([one["p"] for one in found.values()])
    return {n: {**one, "p_holm": p} for (n, one), p in zip(found.items(), corrected, strict=True)}


@dataclass(frozen=True)
class Effect:
    """A method over all weightings, or a weighting over all methods.

    Attributes:
        level: which.
        rows: over how many rows.
        ndcg: mean NDCG@10.
        versus: see `versus`; None for the reference's own level.
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
    found = versus(means, reference)
    return tuple(Effect(level, len(across), float(means[level].mean()), found.get(level)) for level in levels)


def resolution(rate: float, users: int) -> dict[str, float]:
    """Standard error of a hit rate over users, and the smallest difference of two such rates that shows.

    The difference is that of two independent rates at the two-sided 5% level.
    """
    error = math.sqrt(rate * (1 - rate) / users)
    return {"rate": rate, "se": error, "smallest": Z * math.sqrt(2) * error}
