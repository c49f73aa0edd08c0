"""How sure a mean and a difference of two are: intervals, paired tests, and corrections for many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Z = 1.959964
"""Two-sided 5% of the normal distribution."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval.

    Attributes:
        mean: over `n` values.
        low, high: percentile bootstrap over the values.
        n: how many values.
    """

    mean: float
    low: float
    high: float
    n: int


def interval(values: Float[np.ndarray, " n"], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean and 95% percentile-bootstrap interval; NaN for no values."""
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def paired(a: Float[np.ndarray, " users"], b: Float[np.ndarray, " users"]) -> dict[str, float]:
    """Mean `difference` of a - b over users, its standard error `se`, and the `p` of a two-sided z-test.

    Args:
        a, b: of the same users in the same order, e.g. `Metrics.gains`.
    """
    differences = a - b
    mean, n = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    z = mean / error if error else 0.0
    return {"difference": mean, "se": error, "p": math.erfc(abs(z) / math.sqrt(2))}


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p's that keep the chance of any false finding among all of them."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def versus(gains: Mapping[str, Float[np.ndarray, " users"]], reference: str) -> dict[str, dict[str, float]]:
    """`paired` of each with the reference, with `p_holm` over them all."""
    tests = {name: paired(gain, gains[reference]) for name, gain in gains.items() if name != reference}
    corrected = holm([test["p"] for test in tests.values()])
    return {n: {**test, "p_holm": p} for (n, test), p in zip(tests.items(), corrected, strict=True)}


def resolution(rate: float, users: int) -> dict[str, float]:
    """Standard error of a hit rate over users, and the smallest difference of two such rates that shows.

    The difference is that of two independent rates at the two-sided 5% level.
    """
    error = math.sqrt(rate * (1 - rate) / users)
    return {"rate": rate, "se": error, "smallest": Z * math.sqrt(2) * error}
